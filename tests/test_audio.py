"""Audio on disk: exact lengths, round trips, refusals, and nothing half-written."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.audio import (
    SAVE_SUFFIXES,
    AudioSpec,
    fit,
    high_pass,
    join,
    limit_peak,
    load_audio,
    match_level,
    read_metadata,
    resample,
    save_audio,
)
from meanaudio.errors import InputError


def tone(seconds: float = 0.5, rate: int = 16000, hertz: float = 440.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * rate)) / rate)


specs = st.builds(AudioSpec, st.sampled_from([8000, 16000, 44100]), st.sampled_from([160, 256, 512]), st.integers(1, 8))


@given(spec=specs, seconds=st.floats(0.001, 200))
def test_covering_latents_cover_and_window_latents_fit(spec, seconds):
    samples, one = spec.num_samples(seconds), spec.samples_per_latent
    assert abs(samples - seconds * spec.sample_rate) <= 0.5
    assert (spec.covering_latents(seconds) - 1) * one < max(samples, 1) <= spec.covering_latents(seconds) * one
    assert spec.window_latents(seconds) * one <= samples < (spec.window_latents(seconds) + 1) * one
    assert 0 <= spec.covering_latents(seconds) - spec.window_latents(seconds) <= 1


def test_the_release_makes_31_and_a_quarter_latents_a_second():
    assert AudioSpec().latent_rate == 31.25


@given(samples=st.integers(0, 50), wanted=st.integers(0, 50), batch=st.integers(0, 3))
def test_fit_is_exact_and_pads_with_silence_at_the_end(samples, wanted, batch):
    audio = torch.arange(1.0, samples + 1).expand(batch, samples)
    fitted = fit(audio, wanted)
    assert fitted.shape == (batch, wanted)
    kept = min(samples, wanted)
    assert torch.equal(fitted[:, :kept], audio[:, :kept])
    assert (fitted[:, kept:] == 0).all()


@pytest.mark.parametrize(("source", "target"), [(44100, 16000), (16000, 44100), (48000, 16000), (8000, 16000)])
def test_resampling_keeps_a_tone(source, target):
    found = resample(tone(1.0, source).numpy(), source, target)
    expected = tone(1.0, target).numpy()
    assert abs(len(found) - len(expected)) <= 1
    middle = slice(target // 10, target * 9 // 10)
    assert np.abs(found[middle] - expected[middle]).max() < 1e-3


def test_limit_peak_leaves_quiet_clips_alone():
    audio = torch.stack([tone() * 4, tone()])
    limited = limit_peak(audio)
    assert limited.abs().amax(1).tolist() == pytest.approx([0.98, audio[1].abs().max().item()])
    assert torch.equal(limited[1], audio[1])
    assert torch.equal(limit_peak(torch.zeros(3)), torch.zeros(3))


def test_joined_parts_fade_into_each_other_at_equal_power():
    parts = [torch.full((2, 10), 1.0), torch.full((2, 9), 2.0), torch.full((2, 5), 3.0)]
    assert join(parts[:1], 4) is parts[0]
    assert torch.equal(join(parts, 0), torch.cat(parts, 1))
    whole = join(parts, 4)
    assert whole.shape == (2, 10 + 9 + 5 - 8)
    assert torch.equal(whole[:, :6], parts[0][:, :6]) and torch.equal(whole[:, -1:], parts[2][:, -1:])
    rise, fall = (join([torch.full((1, 9), a), torch.full((1, 9), b)], 4)[0, 5:9] for a, b in ((0.0, 1.0), (1.0, 0.0)))
    torch.testing.assert_close(rise**2 + fall**2, torch.ones(4))
    assert (rise.diff() > 0).all()
    torch.testing.assert_close(whole[0, 6:10], fall + 2 * rise)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", SAVE_SUFFIXES)
def test_what_is_saved_is_read_back(tmp_path, suffix):
    audio = tone(0.7)
    path = save_audio(tmp_path / "deep" / f"tone{suffix}", audio, 16000)
    found = load_audio(path, 16000)
    assert found.dtype == torch.float32
    assert found.shape == audio.shape
    assert (found - audio).abs().max() < (0.1 if suffix == ".ogg" else 1e-4)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SAVE_SUFFIXES)
def test_metadata_is_read_back(tmp_path, suffix):
    metadata = {"prompt": 'naïve "rain"\n雨 ' + "x" * 900, "seed": 2**62, "duration": 0.1, "list": [1, None]}
    path = save_audio(tmp_path / f"a{suffix}", tone(0.1), 16000, metadata)
    assert read_metadata(path) == metadata
    assert len(load_audio(path, 16000)) == 1600


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("letter", ["x", "犬", "🐕"])
def test_long_metadata_is_read_back(tmp_path, suffix, letter):
    metadata = {"prompt": letter * 1000, "negative_prompt": letter * 1000, "events": [letter * 999], "odd": "x"}
    assert read_metadata(save_audio(tmp_path / f"a{suffix}", tone(0.1), 16000, metadata)) == metadata


def test_metadata_of_no_sound_file_are_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF nonsense")
    for name in ("a.wav", "missing.wav"):
        with pytest.raises(InputError, match=f"{name}: not a readable sound file"):
            read_metadata(tmp_path / name)


def test_names_that_begin_alike_do_not_meet_on_the_way(tmp_path):
    """Files are written beside their places first, by several threads here."""
    paths = [tmp_path / ("n" * 200 + f"{i}.wav") for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: save_audio(paths[i], tone(0.1), 16000, {"seed": i}), range(8)))
    assert [read_metadata(path)["seed"] for path in paths] == list(range(8))
    assert len(list(tmp_path.iterdir())) == 8
    save_audio(tmp_path / ("犬" * 83 + ".wav"), tone(0.1), 16000)  # as long a name as there may be


def test_files_of_others_have_no_metadata(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(10), 16000)
    assert read_metadata(tmp_path / "a.wav") == {}


@pytest.mark.parametrize(
    ("audio", "name", "told"),
    [
        (torch.tensor([0.0, float("nan")]), "a.wav", "NaN"),
        (torch.tensor([0.0, float("inf")]), "a.wav", "infinite"),
        (torch.tensor([0.0, 1.01]), "a.wav", "1.01"),
        (torch.zeros(2, 5), "a.wav", "(2, 5)"),
        (torch.zeros(0), "a.wav", "(0,)"),
        (torch.zeros(5), "a.mp3", ".wav, .flac, .ogg"),
        (torch.zeros(5), "a", ".wav, .flac, .ogg"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_is_written(tmp_path, audio, name, told):
    with pytest.raises(InputError) as error:
        save_audio(tmp_path / "sub" / name, audio, 16000)
    assert told in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_audio(tmp_path / "a.wav", tone(), 16000)
    before = path.read_bytes()

    def fail(self, data):
        raise soundfile.LibsndfileError(1, "disk full: ")

    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    with pytest.raises(InputError, match="disk full"):
        save_audio(path, tone(0.1), 16000)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_a_file_where_a_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        save_audio(tmp_path / "file" / "a.wav", tone(), 16000)


def test_a_stretch_of_a_stereo_file_is_mixed_cut_and_resampled(tmp_path):
    left = tone(1.0, 44100).numpy()
    soundfile.write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], 1), 44100, subtype="FLOAT")
    found = load_audio(tmp_path / "a.wav", 16000, start=0.25, duration=0.5)
    assert len(found) == 8000
    assert (found - 0.5 * tone(1.0)[4000:12000])[500:-500].abs().max() < 1e-3
    assert len(load_audio(tmp_path / "a.wav", 16000, start=0.9, duration=5.0)) == 1600


def test_bad_files_are_refused_by_name(tmp_path):
    def refused(path, told, **options):
        with pytest.raises(InputError) as error:
            load_audio(path, 16000, **options)
        assert told in str(error.value)
        assert path.name in str(error.value)

    refused(tmp_path / "missing.wav", "no such audio file")
    refused(tmp_path, "no such audio file")
    (tmp_path / "text.wav").write_text("this is no sound")
    refused(tmp_path / "text.wav", "cannot be read")
    (tmp_path / "nothing.wav").write_bytes(b"")
    refused(tmp_path / "nothing.wav", "cannot be read")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    refused(tmp_path / "empty.wav", "no samples")
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan], np.float32), 16000, subtype="FLOAT")
    refused(tmp_path / "nan.wav", "NaN")
    soundfile.write(tmp_path / "short.wav", np.ones(1600) * 0.1, 16000)
    refused(tmp_path / "short.wav", "past its end (0.100 s)", start=0.1)
    refused(tmp_path / "short.wav", "past its end", start=5.0)


def test_silence_is_sound(tmp_path):
    path = save_audio(tmp_path / "a.wav", torch.zeros(100), 16000)
    assert torch.equal(load_audio(path, 16000), torch.zeros(100))


@pytest.mark.parametrize("length", [1, 300, 16000, 163840])
def test_a_high_pass_takes_the_offset_and_leaves_the_sound(length):
    time = torch.arange(length) / 16000
    sound = 0.3 * torch.sin(2 * torch.pi * 100 * time)
    heard = high_pass(torch.stack([sound, sound + 0.5, torch.full_like(sound, 0.5)]), 16000)
    assert heard.shape == (3, length)
    torch.testing.assert_close(heard[1], high_pass(sound + 0.5, 16000), atol=1e-6, rtol=0)  # alone or beside others
    if length >= 16000:
        inner = slice(4000, length - 4000)  # the ends are steps, which hold every frequency
        torch.testing.assert_close(heard[:2, inner], sound[inner].expand(2, -1), atol=2e-3, rtol=0)
        assert heard[2, inner].abs().max() < 1e-3


@pytest.mark.parametrize(("frequency", "share"), [(2, 0.01), (20, 0.5**0.5), (50, 0.987), (200, 1.0), (7000, 1.0)])
def test_a_high_pass_falls_as_butterworth_says(frequency, share):
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(16000 * 8) / 16000)
    inner = slice(16000, -16000)
    assert float(high_pass(tone, 16000)[inner].norm() / tone[inner].norm()) == pytest.approx(share, abs=2e-3)


@given(st.floats(-60, 0), st.floats(-60, -6), st.integers(1, 20000))
def test_levels_are_matched_up_to_the_largest_gain(before, wanted, samples):
    tone = torch.sin(torch.arange(samples) * 0.5 + 1)[None] * 10 ** (before / 20)
    loudest = lambda x: x.unfold(-1, min(samples, 6400), max(1, min(samples, 6400) // 4)).square().mean(-1).amax().sqrt()  # noqa: E731
    gain = loudest(match_level(tone, wanted, 16000)) / loudest(tone)
    expected = min(10 ** (wanted / 20) / float(loudest(tone)), 10**1.5)
    assert float(gain) == pytest.approx(expected, rel=1e-3)


def test_silence_stays_silent_at_any_level():
    assert match_level(torch.zeros(2, 100), -18.0, 16000).abs().max() == 0
