"""The check decodes everything and names what is wrong, with any number of workers; what it calls usable is."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import soundfile
from small_files import tone, write

from meanaudio.audio import load_audio
from meanaudio.data import check as module
from meanaudio.data.check import check_manifest, inspect
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.errors import InputError


def manifest_of(folder, *rows):
    """A manifest of rows like {"audio": …}; captions and ids are added."""
    lines = [json.dumps({"id": str(i), "caption": "x", **row}) + "\n" for i, row in enumerate(rows)]
    return write(folder / "m.jsonl", "".join(lines))


def test_check_finds_what_is_wrong(tmp_path):
    tone(tmp_path / "good.wav", 1.0)
    tone(tmp_path / "twin.flac", 0.5, 16000, channels=2)
    tone(tmp_path / "again.flac", 0.5, 16000, channels=2)
    tone(tmp_path / "silent.wav", level=0)
    tone(tmp_path / "clipped.wav", level=3)
    tone(tmp_path / "short.wav", seconds=0.05, frequency=300)
    (tmp_path / "bad.wav").write_bytes(b"RIFF no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), 8000, subtype="FLOAT")
    names = ["good.wav", "good.wav", "twin.flac", "again.flac", "silent.wav", "clipped.wav", "short.wav", "bad.wav", "nan.wav", "gone.wav"]
    late = {"id": "late", "audio": "good.wav", "start": 0.8, "duration": 0.5, "split": "test"}
    report = check_manifest(manifest_of(tmp_path, *({"audio": name} for name in names), late))
    assert {kind: [line.split(":")[0] for line in lines] for kind, lines in report.problems.items()} == {
        "duplicated": ["3"],
        "silent": ["4"],
        "clipped": ["5"],
        "too short": ["6"],
        "unreadable": ["7"],
        "not finite": ["8"],
        "missing": ["9"],
        "past its end": ["late"],
    }
    assert not report.ok
    assert report.rates == {8000: 5, 16000: 2}
    assert report.channels == {1: 5, 2: 2}
    assert report.splits["train"][0] == 10
    assert "gone.wav" in report.to_text()
    assert "NOT usable" in report.to_text()


def test_check_of_a_good_manifest(tmp_path):
    tone(tmp_path / "a.wav", 1.8)
    report = check_manifest(write(tmp_path / "m.csv", "audio,caption\na.wav,x\na.wav,y\n"))
    assert report.ok
    assert not report.problems
    assert (report.clips, report.files, report.captions) == (2, 1, 2)
    assert report.hours == pytest.approx(0.0005)  # one sound, however many captions
    assert "2.00 clips a file" in report.to_text()


def test_damaged_files_are_named_for_what_they_are(tmp_path):
    for name, cut in (("cut.wav", 0.5), ("cut.flac", 0.5)):
        content = tone(tmp_path / name, 2.0, 16000).read_bytes()
        (tmp_path / name).write_bytes(content[: int(cut * len(content))])
    write(tmp_path / "page.wav", "<html>not found</html>")
    write(tmp_path / "nothing.flac", "")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16000)
    (tmp_path / "folder.wav").mkdir()
    names = ["cut.wav", "cut.flac", "page.wav", "nothing.flac", "zero.wav", "folder.wav"]
    report = check_manifest(manifest_of(tmp_path, *({"audio": name} for name in names)))
    assert {kind: [line.split(":")[0] for line in lines] for kind, lines in report.problems.items()} == {
        "truncated": ["0"],  # there is sound to use, but half of it is gone, which its reader hides
        "unreadable": ["1", "2", "3"],
        "empty": ["4"],
        "missing": ["5"],
    }
    assert report.unusable.keys() == {"1", "2", "3", "4", "5"}


def test_the_same_sound_in_two_splits_is_told(tmp_path):
    tone(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.flac", soundfile.read(tone(tmp_path / "c.flac"))[0], 8000)
    rows = [{"audio": "a.wav"}, {"audio": "a.wav", "split": "test"}, {"audio": "c.flac"}, {"audio": "b.flac", "split": "val"}]
    report = check_manifest(manifest_of(tmp_path, *rows))
    assert [line.split(":")[0] for line in report.problems.pop("in two splits")] == ["1 (test)", "3 (val)"]
    assert not report.problems
    assert report.ok


def test_reading_in_blocks_and_in_threads_changes_nothing(tmp_path, monkeypatch):
    rows = [{"audio": tone(tmp_path / f"{i}.wav", 0.3 + 0.1 * (i % 4), frequency=300 + 9 * (i // 2), channels=2).name} for i in range(16)]
    path = manifest_of(tmp_path, *rows)
    one = check_manifest(path, workers=1)
    monkeypatch.setattr(module, "BLOCK_FRAMES", 1000)
    assert check_manifest(path, workers=7) == one
    assert dataclasses.asdict(one)["lengths"] == pytest.approx((0.3, 0.45, 0.6))
    with pytest.raises(InputError, match="workers = 0"):
        check_manifest(path, workers=0)


def test_what_is_called_usable_can_be_loaded_and_the_rest_is_listed(tmp_path):
    tone(tmp_path / "good.wav")
    tone(tmp_path / "silent.wav", level=0)
    rows = [{"audio": "good.wav", "start": 0.1}, {"audio": "silent.wav"}, {"audio": "gone.wav", "split": "test"}, {"audio": "good.wav"}]
    path = manifest_of(tmp_path, *rows)
    out = tmp_path / "out" / "usable.jsonl"
    report = check_manifest(path, out=out)
    assert [clip.id for clip in read_manifest(out)] == ["0", "3"]
    assert all(len(load_audio(c.audio, 8000, c.start, c.duration)) for c in read_manifest(out))
    with (tmp_path / "out" / "usable.left-out.tsv").open(encoding="utf-8", newline="") as file:
        listed = [(row["id"], row["split"], row["reason"]) for row in csv.DictReader(file, delimiter="\t")]
    assert listed == [("1", "train", "silent"), ("2", "test", "missing")]
    assert report.unusable.keys() == {"1", "2"}
    assert check_manifest(out).ok


def test_a_manifest_without_a_usable_clip_writes_nothing(tmp_path):
    path = manifest_of(tmp_path, {"audio": "gone.wav"})
    with pytest.raises(InputError, match=r"no clip is usable; the first: .*gone\.wav: missing"):
        check_manifest(path, out=tmp_path / "usable.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_long_lists_are_cut_unless_asked_for(tmp_path):
    report = check_manifest(manifest_of(tmp_path, *({"audio": f"gone{i}.wav"} for i in range(30))))
    assert "… and 10 more" in report.to_text()
    assert "gone29.wav" in report.to_text(None)
    assert "gone29.wav" not in report.to_text()


def test_inspection_of_a_stretch_equals_that_of_the_same_samples_in_a_file(tmp_path):
    """Content is what is heard, not how it is stored."""
    wave = np.random.default_rng(0).integers(-20000, 20000, 8000).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", wave, 8000)
    soundfile.write(tmp_path / "part.flac", wave[2000:6000], 8000)
    stretch = inspect(Clip("a", tmp_path / "long.wav", "x", 0.25, 0.5))
    assert stretch == inspect(Clip("b", tmp_path / "part.flac", "x"))
    assert stretch.seconds == 0.5
