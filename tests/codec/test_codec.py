import pytest
import torch
from fakes import TINY_CODEC, fill, normals
from safetensors.torch import load_file, save_file

from meanaudio.checkpoint import save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE, Codec, load_codec, load_vae, read_codec_config
from meanaudio.codec.griffin_lim import griffin_lim
from meanaudio.codec.losses import Discriminator, ReconstructionLoss, StatisticsLoss, discriminator_loss, generator_losses, stft_distance
from meanaudio.config import MelConfig
from meanaudio.errors import InputError


@pytest.fixture
def codec() -> Codec:
    return fill(Codec(TINY_CODEC)).eval()


@pytest.fixture
def folder(codec, tmp_path):
    save_weights(tmp_path / VAE_FILE, codec.vae.state_dict())
    save_weights(tmp_path / VOCODER_FILE, codec.vocoder.state_dict())
    write_json(tmp_path / "config.json", {"codec": TINY_CODEC.model_dump(mode="json")})
    return tmp_path


@pytest.mark.parametrize("samples", [1, 1024, 1025, 16000])
def test_lengths(codec, samples):
    audio = 0.1 * normals(2, samples)
    num_latents = -(-samples // codec.spec.samples_per_latent)
    posterior = codec.encode(audio)
    assert posterior.mean.shape == (2, num_latents, TINY_CODEC.vae.latent_dim)
    assert codec.decode(posterior.mean).shape == (2, num_latents * codec.spec.samples_per_latent)
    assert codec.reconstruct(audio).shape == audio.shape


def test_round_trip_of_a_folder(codec, folder):
    audio = 0.1 * normals(1, 4096)
    loaded = load_codec(folder)
    torch.testing.assert_close(loaded.reconstruct(audio), codec.reconstruct(audio))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert load_vae(folder)[1] == TINY_CODEC


def test_texture_is_part_of_decoding_and_of_nothing_else(codec):
    audio = 0.1 * normals(2, 8192)
    rough = Codec(TINY_CODEC.model_copy(update={"texture": 0.1}), codec.vae, codec.vocoder)
    latents = codec.encode(audio).mean
    assert torch.equal(rough.encode(audio).mean, latents)
    assert (rough.decode_mel(latents) - codec.decode_mel(latents)).std().item() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(codec.decode_mel(latents), codec.vae.decode(latents))
    assert not torch.equal(rough.decode(latents), codec.decode(latents))
    torch.testing.assert_close(rough.decode(latents)[:1], rough.decode(latents[:1]))


def test_broken_folders_are_refused(folder):
    state = load_file(folder / VAE_FILE)
    name = next(iter(state))
    save_file({k: v for k, v in state.items() if k != name} | {"stray": torch.zeros(1)}, folder / VAE_FILE)
    with pytest.raises(InputError, match=f"missing {name}.*stray"):
        load_codec(folder)
    save_file(state | {name: state[name] * torch.nan}, folder / VAE_FILE)
    with pytest.raises(InputError, match=f"NaN.*{name}"):
        load_codec(folder)
    write_json(folder / "config.json", {"something": 1})
    with pytest.raises(InputError, match="codec"):
        read_codec_config(folder)


def test_empty_audio_is_an_error(codec):
    with pytest.raises(InputError, match="N > 0"):
        codec.encode(torch.zeros(1, 0))


def test_distances_are_zero_for_equals_and_grow():
    audio = 0.1 * normals(3, 8192)
    noise = 0.1 * normals(3, 8192, seed=1)
    loss = ReconstructionLoss(MelConfig())
    assert stft_distance(audio, audio).abs().max() == 0
    assert all(value == 0 for value in loss(audio, audio))
    assert (stft_distance(audio + 0.1 * noise, audio) < stft_distance(audio + noise, audio)).all()
    assert torch.isfinite(stft_distance(audio, torch.zeros_like(audio))).all()
    silent = torch.zeros(1, 8192, requires_grad=True)
    sum(loss(silent, audio[:1])).backward()
    assert torch.isfinite(silent.grad).all()


def test_statistics_tell_how_a_sound_moves_and_not_what_it_is_at_a_moment():
    """The same noise in pulses is nearer by values than another draw of the noise, which moves as the first does."""
    values, statistics = ReconstructionLoss(MelConfig()), StatisticsLoss(MelConfig())
    noise, another = 0.1 * normals(2, 16384), 0.1 * normals(2, 16384, seed=1)
    pulses = noise * (1 + 0.7 * (torch.arange(16384) // 128 % 2 * 2 - 1))
    assert statistics(noise, noise) == 0
    assert values(pulses, noise)[1] < values(another, noise)[1]
    assert statistics(another, noise) < 0.8 * statistics(pulses, noise)
    silent = torch.zeros(2, 16384, requires_grad=True)
    statistics(silent, noise).backward()
    assert torch.isfinite(silent.grad).all()


def test_discriminator_learns_to_tell_noise_from_tones():
    judge = Discriminator(4)
    tones = torch.sin(torch.arange(4096) * 0.2).expand(2, -1)
    noise = 0.1 * normals(2, 4096)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    first = discriminator_loss(judge, noise, tones).item()
    for _ in range(10):
        optimizer.zero_grad()
        discriminator_loss(judge, noise, tones).backward()
        optimizer.step()
    assert discriminator_loss(judge, noise, tones).item() < 0.7 * first
    adversarial, features = generator_losses(judge, tones, tones)
    assert features == 0
    assert adversarial < generator_losses(judge, noise, tones)[0]


def test_griffin_lim_keeps_a_tone(codec):
    tone = 0.3 * torch.sin(2 * torch.pi * 1000 * torch.arange(4096) / 16000)[None]
    mel = codec.mel(tone)
    made = griffin_lim(mel[0], MelConfig(), seed=0)
    assert made.shape == (4096,)
    assert torch.fft.rfft(made).abs().argmax().item() == pytest.approx(256, abs=4)
    assert torch.equal(made, griffin_lim(mel[0], MelConfig(), seed=0))
