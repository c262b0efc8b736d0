import pytest
import torch
from fakes import fill, normals

from meanaudio.codec.mel import LogMel, mel_filters, slaney_points
from meanaudio.codec.vocos import LOUDEST, InverseSTFT, Vocos
from meanaudio.config import MelConfig
from meanaudio.errors import InputError


def tiny(**changes) -> Vocos:
    return Vocos(**{"n_mels": 80, "width": 16, "intermediate": 32, "blocks": 2, "n_fft": 1024, "hop_length": 256, **changes})


@pytest.mark.parametrize("frames", [1, 5, 64, 130])
def test_length_is_exact(frames):
    assert tiny()(normals(2, 80, frames) - 3).shape == (2, frames * 256)


def test_inverse_of_the_stft_is_exact():
    """Frames of real audio, cut as the mel cuts them, give the audio back."""
    inverse = InverseSTFT(64, 16)
    audio = normals(2, 160)
    padded = torch.nn.functional.pad(audio, (24, 24))
    spectrum = torch.stft(padded, 64, 16, window=torch.hann_window(64), center=False, return_complex=True).mT
    torch.testing.assert_close(inverse(spectrum), audio, atol=1e-5, rtol=1e-5)


def test_digital_silence_stays_silent_whatever_the_weights():
    vocoder = fill(tiny(), std=0.5)
    assert vocoder(LogMel(MelConfig())(torch.zeros(1, 16384))).abs().max() < 1 / 32768


def test_a_mel_that_no_sound_has_makes_finite_sound():
    vocoder = fill(tiny())
    loud = vocoder(torch.full((1, 80, 16), 40.0))
    assert torch.isfinite(loud).all()
    torch.testing.assert_close(loud, vocoder(torch.full((1, 80, 16), LOUDEST)))
    assert LogMel(MelConfig())(torch.sin(0.3 * torch.arange(16384))[None]).max() < LOUDEST


def test_band_centres_are_the_filters_own():
    filters = mel_filters(MelConfig())
    hz = torch.linspace(0, 8000, 513)
    peaks = hz[filters.argmax(0)]
    assert (peaks - slaney_points(82, 0.0, 8000.0)[1:-1]).abs().max() < 8000 / 512


def test_level_of_flat_noise():
    """Where each band's spectrum is flat, the level read from the mel is the spectrum's magnitude."""
    config = MelConfig()
    mel = torch.log10(torch.full((513,), 0.3) @ mel_filters(config))[None, :, None]
    level = tiny()._level(mel)[0, 0, 40:500]
    assert ((level / 0.3).log().abs() < 0.15).all()


def test_every_parameter_gets_a_gradient():
    vocoder = fill(tiny())
    vocoder(normals(2, 80, 64) - 3).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in vocoder.parameters())


def test_bad_hop_is_an_error():
    with pytest.raises(InputError, match="1000"):
        tiny(n_fft=1000)


def test_corrections_bring_the_output_nearer_to_the_mel():
    log_mel = LogMel(MelConfig())
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(2, 16384, generator=generator) * torch.linspace(0.001, 0.3, 16384)
    mel = log_mel(audio)
    errors = []
    for corrections in (0, 1, 3):
        vocoder = fill(Vocos(80, 16, 32, 1, 1024, 256, log_mel=log_mel, corrections=corrections), std=0.3)
        in_training = vocoder.train()(mel)
        output = vocoder.eval()(mel)
        assert (corrections == 0) == torch.equal(output, in_training)
        errors.append((log_mel(output) - mel).abs().mean())
        assert vocoder(log_mel(torch.zeros(1, 8192))).abs().max() < 1e-5
    assert errors[2] < errors[1] < 0.8 * errors[0]


def test_corrections_need_a_mel():
    with pytest.raises(InputError, match="2 corrections"):
        Vocos(80, 16, 32, 1, 1024, 256, corrections=2)


def test_no_frame_has_a_constant_part():
    audio = fill(tiny(), std=0.5)(normals(1, 80, 32) - 2)
    assert audio.abs().max() > 1e-3
    assert audio[0, 1024:-1024].mean().abs() < 0.02 * audio.abs().mean()
