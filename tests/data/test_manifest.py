"""Manifests: every shape gives the same clips, errors name file, line and value, what is written is read back."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_files import tone, write

from meanaudio.data.manifest import Clip, read_manifest, write_manifest
from meanaudio.errors import InputError


def brief(clips):
    return [(c.id, c.audio.name, c.caption, c.start, c.duration, c.split) for c in clips]


def test_two_lines_of_each_format_give_the_same_clips(tmp_path):
    rows = [("a", "a.wav", "a dog, barking", 1.5, 2.0, "test"), ("b", "b.wav", 'a "loud" bang', 0.0, None, "train")]
    jsonl = "".join(
        json.dumps({"id": i, "location": a, "captions": [c], "start_time": s, "duration": d, "split": p}) + "\n"
        for i, a, c, s, d, p in rows
    )
    write(tmp_path / "m.jsonl", jsonl)
    write(tmp_path / "m.csv", 'id,file_name,text,start,duration,split\na,a.wav,"a dog, barking",1.5,2,test\nb,b.wav,"a ""loud"" bang",,,\n')
    write(
        tmp_path / "m.tsv",
        '\ufeffaudiocap_id\tpath\tcaption\tstart\tduration\tsplit\na\ta.wav\ta dog, barking\t1.5\t2\ttest\nb\tb.wav\ta "loud" bang\t\t\t\n',
    )
    for name in ("m.jsonl", "m.csv", "m.tsv"):
        clips = read_manifest(tmp_path / name)
        assert brief(clips) == rows
        assert clips[0].audio == tmp_path / "a.wav"


def test_folder_of_sounds_and_texts(tmp_path):
    tone(tmp_path / "a.wav")
    tone(tmp_path / "sub" / "b.flac")
    write(tmp_path / "a.txt", "a dog barks\na dog is angry\n")
    write(tmp_path / "sub" / "b.txt", "a bang")
    found = [(c.id, c.audio.name, c.caption) for c in read_manifest(tmp_path)]
    assert found == [("a", "a.wav", "a dog barks"), ("a-2", "a.wav", "a dog is angry"), ("b", "b.flac", "a bang")]
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    with pytest.raises(InputError, match=r"a\.wav has no caption a\.txt; \S*c\.txt has no sound$"):
        read_manifest(tmp_path)
    for i in range(12):
        tone(tmp_path / f"e{i}.wav")
    with pytest.raises(InputError, match=r"e6\.wav has no caption e6\.txt, and 4 more$"):
        read_manifest(tmp_path)


def test_several_captions_and_named_columns(tmp_path):
    path = write(tmp_path / "m.csv", "file_name,caption_1,caption_2\na.wav,one,two\n")
    assert [(c.id, c.caption) for c in read_manifest(path)] == [("a", "one"), ("a-2", "two")]
    path = write(tmp_path / "n.csv", "youtube_id,start_time,caption\nxyz,30,a bang\n")
    tone(tmp_path / "xyz.flac")
    (clip,) = read_manifest(path, {"audio": "youtube_id", "start": None})
    assert (clip.audio, clip.start) == (tmp_path / "xyz.flac", 0.0)
    with pytest.raises(InputError, match="no column 'wave' for audio; there are youtube_id, start_time, caption"):
        read_manifest(path, {"audio": "wave"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": "a.wav", "caption": " "}', r"m\.jsonl:2: the caption is ' '"),
        ('{"audio": "", "caption": "x"}', r"m\.jsonl:2: audio is ''"),
        ('{"audio": 3, "caption": "x"}', r"m\.jsonl:2: audio is 3"),
        ('{"caption": "x"}', r"m\.jsonl:2: no column for audio; it may be called .*location"),
        ('{"audio": "a.wav"}', r"m\.jsonl:2: no column for caption"),
        ('{"audio": "a.wav", "captions": []}', r"m\.jsonl:2: no caption"),
        ('{"audio": "a.wav", "caption": "x", "start": "soon"}', r"m\.jsonl:2: start is 'soon'"),
        ('{"audio": "a.wav", "caption": "x", "duration": 0}', r"m\.jsonl:2: duration is 0"),
        ('{"audio": "a.wav", "caption": "x", "start": NaN}', r"m\.jsonl:2: start is nan"),
        ('{"audio": "a.wav", "caption": "x", "id": "first"}', r"m\.jsonl:2: the id 'first' was used before, in .*m\.jsonl:1"),
        ('{"audio": "../../etc/x.wav", "caption": "x"}', r"m\.jsonl:2: audio '../../etc/x.wav' leaves"),
        ('{"audio": "b/../../x.wav", "caption": "x"}', r"m\.jsonl:2: audio .* leaves"),
        ('{"audio"', r"m\.jsonl:2: not JSON"),
        ("[1]", r"m\.jsonl:2: expected an object"),
    ],
)
def test_errors_name_line_and_value(tmp_path, line, message):
    path = write(tmp_path / "m.jsonl", '{"id": "first", "audio": "a.wav", "caption": "ok"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_manifest(path)


def test_other_errors(tmp_path):
    for path, message in (
        (tmp_path / "none.jsonl", "no such manifest"),
        (tmp_path / "m.parquet", "ends in .jsonl, .csv, .tsv"),
        (write(tmp_path / "empty.csv", "audio,caption\n"), r"empty\.csv: has no row"),
        (write(tmp_path / "cells.csv", "audio,caption\na.wav,a dog, barking\n"), r"cells\.csv:2: 1 more cells"),
    ):
        with pytest.raises(InputError, match=message):
            read_manifest(path)
    (tmp_path / "latin.csv").write_bytes(b"audio,caption\na.wav,caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_manifest(tmp_path / "latin.csv")
    with pytest.raises(InputError, match="unknown field sound"):
        read_manifest(tmp_path / "empty.csv", {"sound": "x"})


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), min_size=1, max_size=20)


@given(st.lists(st.tuples(words, st.floats(0, 1e6), st.none() | st.floats(0.1, 1e6)), min_size=1, max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("m")
    clips = [Clip(f"id{i}", folder / "audio" / f"{i}.wav", *row, split="val", group="g") for i, row in enumerate(rows)]
    clips.append(Clip("far", folder.parent / "far.wav", "outside the folder"))
    write_manifest(folder / "manifest.jsonl", clips)
    assert read_manifest(folder) == clips
    assert json.loads((folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[0])["audio"] == "audio/0.wav"
    assert os.listdir(folder) == ["manifest.jsonl"]
