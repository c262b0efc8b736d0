"""The rehearsal data looks like AudioCaps, and goes through the command line: what is good arrives, the rest is listed for what it is."""

from __future__ import annotations

import csv

import pytest
import soundfile
from audiocaps_fakes import BROKEN, make_audiocaps
from small_files import tone, write

from meanaudio.audio import load_audio
from meanaudio.data.manifest import read_manifest


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_audiocaps(tmp_path_factory.mktemp("audiocaps"), 30, seconds=1.0, missing=3, broken=5, recordings=2)


def listed(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_fake_is_laid_out_like_audiocaps_and_the_same_each_time(fake, tmp_path):
    for split, captions in (("train", 1), ("val", 5), ("test", 5)):
        with (fake.tables / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["audiocap_id", "youtube_id", "start_time", "caption"]
        assert len(rows) == captions * len(fake.of(split)) > 0
        assert {len(row["youtube_id"]) for row in rows} == {11}
    assert {c.state for c in fake.clips} == {"good", "missing", *BROKEN}
    assert {c.rate for c in fake.clips} == {48000, 32000}
    assert all(fake.of(split, "good") for split in ("train", "val", "test"))
    for c in fake.clips:
        assert c.file.is_file() == (c.state != "missing")
        if c.state == "good":
            info = soundfile.info(c.file)
            assert (info.samplerate, info.duration) == (c.rate, c.start_time + 10 if c.recording else 1.0)
    make_audiocaps(tmp_path, 30, seconds=1.0, missing=3, broken=5, recordings=2)
    for one, other in zip(sorted(fake.tables.parent.rglob("*.*")), sorted(tmp_path.rglob("*.*")), strict=True):
        assert one.relative_to(fake.tables.parent) == other.relative_to(tmp_path)
        assert one.read_bytes() == other.read_bytes()
    with pytest.raises(ValueError, match="too few"):
        make_audiocaps(tmp_path, 6, seconds=1.0)


def test_the_fake_is_made_of_given_sounds(tiny_manifest, tmp_path):
    fake = make_audiocaps(tmp_path, 4, seconds=1.0, sounds=tiny_manifest, missing=0, broken=0, recordings=0)
    assert all("hertz" in caption for c in fake.clips for _, caption in c.captions)
    (val,) = fake.of("val")
    assert any(f"{f} hertz" in val.captions[0][1] for f in (1400, 1600))  # the tiny manifest's own val clips


def test_import_then_check_leaves_exactly_what_is_good(run, fake, tmp_path):
    out = tmp_path / "m" / "manifest.jsonl"
    code, text, err = run("data", "import", "audiocaps", fake.tables, "--audio", fake.audio, "-o", out, "--quiet")
    assert (code, err) == (0, "")
    reasons = {"missing": "missing", "text": "unreadable", "no bytes": "unreadable", "early end": "shorter than its start"}
    expected = {str(number): reasons[c.state] for c in fake.clips if c.state in reasons for number, _ in c.captions}
    assert {row["id"]: row["reason"] for row in listed(out.with_name("manifest.left-out.tsv"))} == expected
    assert f"LEFT OUT: {sum(r == 'missing' for r in expected.values())} missing" in text

    code, text, _ = run("data", "check", out, "--quiet")
    assert code == 2
    assert "NOT usable" in text
    usable = tmp_path / "m" / "usable.jsonl"
    code, text, _ = run("data", "check", out, "-o", usable, "--quiet", "--workers", "2")
    assert code == 0
    late = {str(c.captions[0][0]): {"truncated": "unreadable", "nan": "not finite"}[c.state] for c in fake.of("train", "truncated", "nan")}
    assert {row["id"]: row["reason"] for row in listed(usable.with_name("usable.left-out.tsv"))} == late
    assert f"{usable}: " in text
    assert run("data", "check", usable, "--quiet")[0] == 0

    clips = {clip.id: clip for clip in read_manifest(usable)}
    good = {str(number): (c, caption) for c in fake.clips if c.state == "good" for number, caption in c.captions}
    assert clips.keys() == good.keys()
    for name, clip in clips.items():
        made, caption = good[name]
        assert (clip.caption, clip.split, clip.group) == (caption, made.split, made.youtube_id)
        assert clip.start == (made.start_time if made.recording else 0)
        sound = load_audio(clip.audio, 16000, clip.start, 1.0)
        assert sound.abs().max() > 0.05  # the scene, not the noise around it


def test_a_list_of_test_ids_on_the_command_line(run, fake, tmp_path):
    out = tmp_path / "manifest.jsonl"
    options = ["--audio", fake.audio, "-o", out, "--quiet"]
    code, text, err = run("data", "import", "audiocaps", fake.tables, "--test-ids", fake.test_ids, *options)
    assert code == 0, err
    ids = fake.test_ids.read_text(encoding="utf-8").split()
    test = [c for c in read_manifest(out) if c.split == "test"]
    assert {c.group for c in test} == {c.youtube_id for c in fake.of("test", "good")} & set(ids)
    assert f"{len(ids) - 1} of {len(ids)} ids found; in no table: in_no_table" in text
    code, text, _ = run("data", "import", "audiocaps", fake.tables / "test.csv", "--ids", fake.test_ids, "--split", "judge", *options)
    assert {c.split for c in read_manifest(out)} == {"judge"}


@pytest.mark.parametrize(
    ("told", "arguments"),
    [
        ("unknown format 'sounds'; known are audiocaps", ["sounds", "t.csv", "-o", "m.jsonl"]),
        ("no such table: gone.csv", ["audiocaps", "gone.csv", "-o", "m.jsonl"]),
        ("no such folder: gone", ["audiocaps", "t.csv", "--audio", "gone", "-o", "m.jsonl"]),
        ("t.csv:2: no column 'audiocap_id' for id; there are audio, caption", ["audiocaps", "t.csv", "-o", "m.jsonl"]),
        ("--column 'audio': must be field=COLUMN", ["table", "t.csv", "--column", "audio", "-o", "m.jsonl"]),
        ("unknown field sound; a column can be named for id", ["table", "t.csv", "--column", "sound=audio", "-o", "m.jsonl"]),
        ("manifests are written as .jsonl", ["table", "t.csv", "-o", "m.csv"]),
        ("t.csv:3: missing: no gone.wav in .", ["table", "t.csv", "-o", "m.jsonl", "--strict"]),
        ("workers = 0: must be 1 or more", ["table", "t.csv", "-o", "m.jsonl", "--workers", "0"]),
    ],
)
def test_import_refuses_in_one_line_and_writes_nothing(run, monkeypatch, tmp_path, told, arguments):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.csv", "audio,caption\na.wav,x\ngone.wav,y\n")
    tone(tmp_path / "a.wav")
    code, out, err = run("data", "import", *arguments, "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "t.csv"]


def test_import_of_a_table_beside_its_sounds(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.csv", "file;words\na.wav;rain, softly\ngone;y\n")
    tone(tmp_path / "a.wav")
    code, out, err = run("data", "import", "table", "t.csv", "-o", "m.jsonl", "--column", "caption=words", "--quiet")
    assert (code, err) == (0, "")
    assert "LEFT OUT: 1 missing" in out
    (clip,) = read_manifest(tmp_path / "m.jsonl")
    assert (clip.caption, clip.audio) == ("rain, softly", tmp_path / "a.wav")
    assert '"audio": "a.wav"' in (tmp_path / "m.jsonl").read_text(encoding="utf-8")  # beside it: the folder can be moved
