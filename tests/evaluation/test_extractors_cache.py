"""Features kept on disk: the same as fresh ones, never those of another sound, other weights, or a damaged file."""

import os

import numpy as np
import pytest
import soundfile
import torch
from extractor_fakes import Levels
from fakes import normals
from safetensors import safe_open
from safetensors.torch import save_file

from meanaudio.audio import save_audio
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors import cache as module
from meanaudio.evaluation.extractors.cache import extract


@pytest.fixture
def sounds(tmp_path):
    """20 clips of 0.2 to 0.4 s at 8 kHz, each of its own level."""
    paths = [tmp_path / "sounds" / f"{i:02d}.wav" for i in range(20)]
    for i, path in enumerate(paths):
        save_audio(path, (i + 1) / 25 * normals(1600 + 80 * i, seed=i).clamp(-1, 1), 8000)
    return paths


def run(extractor, paths, cache=None, **options):
    return list(extract(extractor, paths, cache=cache, **options))


def same(a, b):
    assert [path for path, _ in a] == [path for path, _ in b]
    for (_, one), (_, other) in zip(a, b, strict=True):
        assert torch.equal(one.embeddings, other.embeddings)
        assert torch.equal(one.logits, other.logits)


def entries(cache):
    return sorted(cache.rglob("*.safetensors"))


def test_kept_features_are_the_fresh_ones_in_the_order_asked_for(sounds, tmp_path):
    extractor, store = Levels(), tmp_path / "store"
    fresh = run(Levels(), sounds)
    same(run(extractor, sounds[:7], store), fresh[:7])
    assert (extractor.heard, len(entries(store))) == (7, 7)
    mixed = [*sounds[::-1], sounds[3], sounds[3]]
    found = run(extractor, mixed, store)
    assert [path for path, _ in found] == mixed
    same(found[:20], fresh[::-1])
    assert (extractor.heard, len(entries(store))) == (20, 20)
    same(run(extractor, sounds, store), fresh)
    assert extractor.heard == 20
    assert sorted(path.name for path in (tmp_path / "sounds").iterdir()) == [path.name for path in sounds]  # nothing beside the sounds


def test_another_sound_under_the_same_name_is_heard(sounds, tmp_path):
    extractor, store = Levels(), tmp_path / "store"
    run(extractor, sounds, store)
    stat = sounds[0].stat()
    sounds[0].write_bytes(sounds[1].read_bytes())
    os.utime(sounds[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (_, found), (_, other) = run(extractor, sounds[:2], store)
    assert torch.equal(found.embeddings, other.embeddings)
    assert extractor.heard == 20  # the same content under another name was kept already
    save_audio(sounds[0], 0.1 * normals(1600, seed=99), 8000)
    same(run(extractor, sounds, store), run(Levels(), sounds))
    assert extractor.heard == 21


def test_other_weights_and_another_rate_are_other_entries(sounds, tmp_path):
    store = tmp_path / "store"
    run(Levels("a" * 64), sounds, store)
    for change in ({"fingerprint": "b" * 64}, {"fingerprint": "a" * 63 + "b"}):  # the second one's folder has the same name
        other = Levels(**change)
        run(other, sounds, store)
        assert other.heard == 20
    slower = Levels("a" * 64)
    slower.sample_rate = 4000
    run(slower, sounds, store)
    assert slower.heard == 20


def flip(data, where):
    return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: flip(data, len(data) - 3), lambda data: flip(data, 2), None],
)
def test_damaged_entries_are_made_anew(sounds, tmp_path, damage):
    extractor, store = Levels(), tmp_path / "store"
    expected = run(extractor, sounds, store)
    entry = entries(store)[4]
    if damage is None:  # a file that somebody else's hand made, whole but of other values
        with safe_open(entry, "pt") as file:
            save_file({"embeddings": torch.zeros(2, 2)}, entry.with_suffix(".new"), metadata=file.metadata())
        entry.with_suffix(".new").rename(entry)
    else:
        entry.write_bytes(damage(entry.read_bytes()))
    same(run(extractor, sounds, store), expected)
    assert extractor.heard == 21
    same(run(extractor, sounds, store), expected)
    assert extractor.heard == 21


def test_a_change_of_how_files_are_read_makes_entries_stale(sounds, tmp_path, monkeypatch):
    extractor, store = Levels(), tmp_path / "store"
    run(extractor, sounds, store)
    monkeypatch.setattr(module, "LOADING", "another way")
    run(extractor, sounds, store)
    assert extractor.heard == 40


def test_unreadable_files_are_told_and_never_replaced(sounds, tmp_path):
    broken, empty, gone = (tmp_path / name for name in ("broken.wav", "empty.wav", "gone.wav"))
    broken.write_text("no sound")
    soundfile.write(empty, np.zeros(0), 8000)
    paths = [sounds[0], broken, empty, sounds[1], gone]
    told = []
    found = run(Levels(), paths, tmp_path / "store", on_error=lambda path, message: told.append((path, message)))
    assert [path for path, _ in found] == sounds[:2]
    assert [path for path, _ in told] == [broken, empty, gone]
    assert all(path.name in message for path, message in told)
    assert len(entries(tmp_path / "store")) == 2
    with pytest.raises(InputError, match=r"broken\.wav"):
        run(Levels(), paths)


def test_rates_and_channels_are_brought_to_the_extractor_s(tmp_path):
    time = np.arange(44100) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, 0 * tone], 1), 44100, subtype="FLOAT")
    ((_, found),) = run(Levels(), [tmp_path / "stereo.wav"])
    assert found.embeddings[:, 0].mean().item() == pytest.approx(0.25**2 / 2, rel=1e-2)
    assert found.embeddings.shape == (2, 2)


def test_few_clips_are_in_memory_at_a_time(sounds):
    extractor = Levels()
    stream = extract(extractor, sounds, cache=None)
    next(stream)
    assert extractor.heard == module.BATCH < len(sounds)
    assert run(Levels(), []) == []


def test_features_that_are_views_are_kept_whole(sounds, tmp_path):
    class Views(Levels):
        def __call__(self, clips):
            found = super().__call__(clips)
            shared = torch.cat([features.embeddings for features in found])
            return [type(f)(rows, f.logits) for f, rows in zip(found, shared.split([len(f.embeddings) for f in found]), strict=True)]

    store = tmp_path / "store"
    expected = run(Views(), sounds, store)
    same(run(Views(), sounds, store), expected)
    assert all(path.stat().st_size < 2000 for path in entries(store))
