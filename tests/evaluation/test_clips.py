"""Which clips are compared: reading, choosing, pairing, treating."""

import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import normals
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.audio import file_facts, load_audio, read_metadata, save_audio
from meanaudio.data.manifest import Clip
from meanaudio.errors import InputError
from meanaudio.evaluation.clips import (
    Treatment,
    choose,
    evenly,
    halves,
    matching,
    names_hash,
    one_a_recording,
    other_recordings,
    read_clips,
    stem_of,
    treat,
)


@given(st.lists(st.text(min_size=1, max_size=120), min_size=2, max_size=6, unique=True))
def test_file_names_survive_any_id_and_stay_different(names):
    stems = [stem_of(name) for name in names]
    assert len(set(stems)) == len(names)
    allowed = set(string.ascii_letters + string.digits + "._-")
    for stem in stems:
        assert 0 < len(stem) <= 100 and set(stem) <= allowed and stem[0] != "."


def test_harmless_ids_are_their_own_file_names():
    for name in ("Y--0w1YA1Hm4", "clip_3.a", "00017"):
        assert stem_of(name) == name
    assert stem_of("../../etc/passwd").startswith("etc-passwd-")


def test_a_folder_of_sounds_needs_no_captions(tmp_path):
    for name in ("b", "sub/a", ".hidden"):
        save_audio(tmp_path / f"{name}.wav", normals(100) / 10, 16000)
    (tmp_path / "b.txt").write_text("a  bell\n")
    assert [(clip.id, clip.caption) for clip in read_clips(tmp_path)] == [("b", "a bell"), ("sub/a", "")]
    save_audio(tmp_path / "b.flac", normals(100) / 10, 16000)
    with pytest.raises(InputError, match="several clips are called b"):
        read_clips(tmp_path)


def test_a_manifest_inside_a_folder_wins(tmp_path):
    save_audio(tmp_path / "b.wav", normals(100) / 10, 16000)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "7", "audio": "b.wav", "caption": "a bell"}) + "\n")
    for path in (tmp_path, tmp_path / "manifest.jsonl"):
        assert [(clip.id, clip.caption) for clip in read_clips(path)] == [("7", "a bell")]


@given(st.integers(1, 50), st.integers(1, 60))
def test_a_limit_is_spread_over_all(count, limit):
    items = list(range(count))
    chosen = evenly(items, limit)
    assert len(chosen) == min(count, limit) and chosen == sorted(set(chosen)) and chosen[0] == 0
    if limit < count:
        gaps = [b - a for a, b in zip([*chosen, count], [*chosen[1:], count], strict=False)][: len(chosen)]
        assert max(gaps) - min(gaps) <= 1
    assert evenly(items, None) == items


def clips(*captions: str, split: str = "val", start: float = 0.0) -> list[Clip]:
    return [Clip(f"{split}{k}", Path(f"/{split}{k}.wav"), caption, start, split=split) for k, caption in enumerate(captions)]


def test_splits_are_chosen_and_unknown_ones_named():
    rows = clips("a", "b") + clips("c", split="test")
    assert choose(rows, splits=("test",)) == rows[2:]
    assert choose(rows, splits=("test", "val")) == rows
    with pytest.raises(InputError, match=r"no clip of split dev; there are val \(2\), test \(1\)"):
        choose(rows, splits=("dev",))


def test_one_caption_stands_for_a_recording():
    rows = [Clip(f"7-{k}", Path("/x.wav"), f"caption {k}") for k in range(5)] + [Clip("8", Path("/x.wav"), "later", 10.0)]
    assert [clip.id for clip in one_a_recording(rows)] == ["7-0", "8"]


def test_matching_keeps_the_order_and_lists_what_is_missing():
    sources = ("A", "B")
    assert matching(["b", "a"], ["a", "b", "c"], sources, both_ways=False, lenient=False) == ["b", "a"]
    with pytest.raises(InputError, match="1 of B are not in A: c"):
        matching(["b", "a"], ["a", "b", "c"], sources, both_ways=True, lenient=False)
    with pytest.raises(InputError, match="1 of A are not in B: x"):
        matching(["b", "x"], ["b"], sources, both_ways=False, lenient=False)
    assert matching(["b", "x"], ["b", "c"], sources, both_ways=True, lenient=True) == ["b"]
    many = [f"n{k:02d}" for k in range(40)]
    with pytest.raises(InputError, match="n09 and 30 more"):
        matching(many, ["b"], sources, both_ways=False, lenient=False)


def test_the_floor_takes_each_other_recording_once_before_any_twice():
    references = {clip.id: clip for clip in clips("a", "a", "a", "b")}
    spare = clips("a", "a", "b", "c", split="train")
    found = other_recordings(references, [*references.values(), *spare], seed=0)
    assert found.keys() == references.keys()
    assert all(found[name].caption == clip.caption and found[name].split == "train" for name, clip in references.items())
    assert {found[f"val{k}"].id for k in range(3)} == {"train0", "train1"}
    assert other_recordings(references, spare[:2], seed=0) is None
    takes = [replace(clip, group="one session") for clip in (*references.values(), *spare)]
    assert other_recordings({clip.id: clip for clip in takes[:4]}, takes, seed=0) is None
    assert other_recordings({"x": Clip("x", Path("/x.wav"), "")}, [Clip("y", Path("/y.wav"), "")], seed=0) is None


def test_halves_share_nothing_and_follow_the_seed(tmp_path):
    sounds = list(range(11))
    a, b = halves(sounds, seed=0)
    assert len(a) == len(b) == 5 and not set(a) & set(b)
    assert halves(sounds, seed=0) == (a, b) != halves(sounds, seed=1)


def test_names_are_hashed_as_a_set():
    assert names_hash(["a", "b"]) == names_hash(["b", "a"]) != names_hash(["a", "c"])


# ---------------------------------------------------------------- treatment


@pytest.fixture
def sound(tmp_path):
    """2 s at 8 kHz."""
    return save_audio(tmp_path / "in" / "a.wav", 0.02 * normals(16000), 8000)


def test_what_needs_nothing_is_not_copied(sound, tmp_path):
    for treatment in (Treatment(), Treatment(duration=2.0)):
        made = treat("x", {"a": Clip("a", sound, "c")}, tmp_path / "out", treatment)
        assert made.sounds[0].path == sound and made.facts["treated"] == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("clip", "treatment", "seconds", "done"),
    [
        ({}, Treatment(duration=1.5), 1.5, {"cut"}),
        ({}, Treatment(duration=3.0), 3.0, {"padded"}),
        ({}, Treatment(level_db=-20.0), 2.0, {"level"}),
        ({"start": 0.5}, Treatment(), 1.5, {"excerpt"}),
        ({"start": 0.5, "duration": 0.25}, Treatment(), 0.25, {"excerpt"}),
        ({"start": 1.0, "duration": 5.0}, Treatment(duration=2.0), 2.0, {"excerpt", "padded"}),
    ],
)
def test_clips_become_alike(sound, tmp_path, clip, treatment, seconds, done):
    made = treat("x", {"a/b": Clip("a/b", sound, "c", **clip)}, tmp_path / "out", treatment)
    path = made.sounds[0].path
    assert file_facts(path) == (8000, seconds)
    assert set(made.facts["treated"]) == done
    start = clip.get("start", 0.0)
    expected = load_audio(sound, 8000, start, clip.get("duration"))
    common = min(len(expected), round(seconds * 8000))
    found = load_audio(path, 8000)
    gain = 1.0
    if treatment.level_db is not None:
        gain = found.square().mean().sqrt() / expected.square().mean().sqrt()
        assert found.unfold(0, 3200, 800).square().mean(1).max().log10() * 10 == pytest.approx(-20, abs=0.1)
    torch.testing.assert_close(found[:common], gain * expected[:common], atol=1e-4, rtol=1e-3)
    assert found[common:].abs().max() == 0 if len(found) > common else True


def test_treated_clips_are_kept_until_the_source_or_the_treatment_changes(sound, tmp_path):
    def run(treatment):
        path = treat("x", {"a": Clip("a", sound, "c")}, tmp_path / "out", treatment).sounds[0].path
        return path.stat().st_mtime_ns, read_metadata(path)

    first = run(Treatment(duration=1.0))
    assert run(Treatment(duration=1.0)) == first
    assert run(Treatment(duration=1.5))[1]["duration"] == 1.5
    save_audio(sound, 0.02 * normals(16000, seed=1), 8000)
    before = read_metadata(tmp_path / "out" / "a.wav")["of"]
    assert run(Treatment(duration=1.5))[1]["of"] != before


def test_what_cannot_be_read_is_listed(sound, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF and no more")
    rows = {
        "good": Clip("good", sound, ""),
        "bad": Clip("bad", tmp_path / "bad.wav", ""),
        "gone": Clip("gone", tmp_path / "gone.wav", ""),
        "late": Clip("late", sound, "", start=7.0),
    }
    made = treat("x", rows, tmp_path / "out", Treatment(duration=1.0))
    assert [s.name for s in made.sounds] == ["good"]
    reasons = dict(made.failed)
    assert "cannot be read" in reasons["bad"] and "no such" in reasons["gone"] and "past its end" in reasons["late"]
