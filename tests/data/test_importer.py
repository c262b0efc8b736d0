"""Published tables: each layout gives the same manifest rows, every row is a clip or is listed with a reason."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_files import AUDIOCAPS_HEADER as HEADER
from small_files import AUDIOCAPS_IDS as IDS
from small_files import audiocaps, imported, tone, write

from meanaudio.data.importer import import_tables
from meanaudio.errors import InputError


def brief(clips):
    return [(c.id, c.audio.name, c.caption, c.start, c.duration, c.split) for c in clips]


# ---------------------------------------------------------------- layouts


def test_audiocaps_names_and_starts(tmp_path):
    """A sound named after its start, or no longer than a clip, is the clip; a longer one holds it at its start."""
    audio = tmp_path / "audio"
    tone(audio / f"{IDS[0]}_30.wav", 12.0, 100)
    tone(audio / "b" / f"{IDS[1]}.flac", 10.02, 8000)
    tone(audio / f"Y{IDS[2]}.wav", 65.0, 100)
    tone(audio / f"Y{IDS[3]}_60.wav", 3.0, 100)
    tone(audio / "of_no_row.wav")
    summary, clips, left = imported(tmp_path, "audiocaps", audiocaps(tmp_path))
    assert brief(clips) == [
        ("0", f"{IDS[0]}_30.wav", "caption 0", 0.0, 12.0, "train"),
        ("1", f"{IDS[1]}.flac", "caption 1", 0.0, 10.02, "train"),
        ("2", f"Y{IDS[2]}.wav", "caption 2", 50.0, 10.0, "train"),
        ("3", f"Y{IDS[3]}_60.wav", "caption 3", 0.0, 3.0, "train"),
    ]
    assert [(c.group, c.source) for c in clips] == [(name, "audiocaps") for name in IDS]
    assert (summary.cut, summary.longer, summary.unused, left) == (3, 1, 1, [])
    assert brief(imported(tmp_path, "audiocaps", audiocaps(tmp_path), clips=True)[1])[2][3:5] == (0.0, 65.0)


def test_audiocaps_folder_of_tables_with_several_captions(tmp_path):
    tables = tmp_path / "csv"
    audiocaps(tables, "train", [(1, IDS[0], 0, "one")])
    audiocaps(tables, "val", [(i, IDS[1], 0, f"way {i}") for i in range(2, 7)])
    audiocaps(tables, "test", [(i, IDS[2], 0, f"way {i}") for i in range(7, 12)])
    for name in IDS[:3]:
        tone(tmp_path / "audio" / f"{name}.wav")
    summary, clips, _ = imported(tmp_path, "audiocaps", tables)
    assert {split: count for split, (count, _) in summary.splits.items()} == {"test": 5, "train": 1, "val": 5}
    assert (summary.clips, summary.files, sum(rows for rows in summary.tables.values())) == (11, 3, 11)
    assert sum(hours for _, hours in summary.splits.values()) == pytest.approx(3 * 0.5 / 3600, abs=2e-4)  # a sound counts once
    assert len({c.group for c in clips if c.split == "test"}) == 1


def test_release_tsv(tmp_path):
    table = write(tmp_path / "test-audiocaps.tsv", f'id\tcaption\nY{IDS[0]}\t\'A power tool\nY{IDS[1]}\t"Hi" says a man\nplain_3\tx\n')
    for name in (f"Y{IDS[0]}.wav", f"{IDS[1]}.flac", "plain_3.ogg"):
        tone(tmp_path / "audio" / name)
    _, clips, _ = imported(tmp_path, "meanaudio", table)
    assert [(c.id, c.audio.name, c.caption, c.split) for c in clips] == [
        (f"Y{IDS[0]}", f"Y{IDS[0]}.wav", "'A power tool", "test"),
        (f"Y{IDS[1]}", f"{IDS[1]}.flac", '"Hi" says a man', "test"),
        ("plain_3", "plain_3.ogg", "x", "test"),
    ]


def test_clotho(tmp_path):
    names = ['"Crowd, int, echoes.wav"', "20090412.fountain.wav", "Grillons-d&#39;Italie.wav"]
    header = "file_name," + ",".join(f"caption_{i}" for i in range(1, 6)) + "\n"
    rows = "".join(f"{name}," + ",".join(f"{i} of {k}" for i in range(1, 6)) + "\n" for k, name in enumerate(names))
    table = write(tmp_path / "clotho_captions_evaluation.csv", header + rows)
    for name in names:
        tone(tmp_path / "audio" / "evaluation" / name.strip('"'))
    _, clips, _ = imported(tmp_path, "clotho", table)
    assert len(clips) == 15
    assert brief(clips)[4:6] == [
        ("Crowd, int, echoes-5", "Crowd, int, echoes.wav", "5 of 0", 0.0, 0.5, "test"),
        ("20090412.fountain-1", "20090412.fountain.wav", "1 of 1", 0.0, 0.5, "test"),
    ]
    assert {c.group for c in clips} == {name.strip('"').removesuffix(".wav") for name in names}


def test_wavcaps_sources_do_not_mix(tmp_path):
    """Ids of one source say nothing about another: neither names, nor files, nor lists."""
    folder = tmp_path / "json"
    entry = {"caption": "x", "duration": 99.0, "download_link": "elsewhere"}
    for path, ids in (
        ("AudioSet_SL/as_final.json", [f"Y{IDS[0]}.wav", f"Y{IDS[1]}.wav"]),
        ("FreeSound/fsd_final.json", ["2219", "156"]),
        ("SoundBible/sb_final.json", ["2219", "156"]),
    ):
        rows = [{"id": name, **entry} for name in ids]
        write(folder / path, json.dumps({"num_captions_per_audio": 1, "data": rows} if "Bible" not in path else rows))
    for name in (
        f"AudioSet_SL_flac/Y{IDS[0]}",
        f"AudioSet_SL_flac/Y{IDS[1]}",
        "FreeSound_flac/2219",
        "SoundBible_flac/2219",
        "SoundBible_flac/156",
    ):
        tone(tmp_path / "audio" / f"{name}.flac")
    black = write(tmp_path / "black.json", json.dumps({"AudioSet": [f"Y{IDS[0]}.wav"], "FreeSound": ["156", "7"]}))
    summary, clips, left = imported(tmp_path, "wavcaps", folder, exclude=[black])
    assert [(c.id, c.audio.parent.name, c.duration, c.source) for c in clips] == [
        (f"AudioSet_SL-Y{IDS[1]}", "AudioSet_SL_flac", 0.5, "wavcaps:AudioSet_SL"),
        ("FreeSound-2219", "FreeSound_flac", 0.5, "wavcaps:FreeSound"),
        ("SoundBible-2219", "SoundBible_flac", 0.5, "wavcaps:SoundBible"),
        ("SoundBible-156", "SoundBible_flac", 0.5, "wavcaps:SoundBible"),
    ]
    assert [(row["id"], row["reason"]) for row in left] == [(f"AudioSet_SL-Y{IDS[0]}", "excluded"), ("FreeSound-156", "excluded")]
    assert summary.lists == {str(black): (3, ["7"])}
    # the ids of an AudioCaps test csv are YouTube ids
    table = audiocaps(tmp_path, "test")
    _, clips, left = imported(tmp_path, "wavcaps", folder / "AudioSet_SL", folder / "SoundBible", exclude=[table])
    assert [row["reason"] for row in left] == ["excluded"] * 2
    assert len(clips) == 2
    bare = write(tmp_path / "part.json", json.dumps([{"id": "2219", **entry}]))
    with pytest.raises(InputError, match="which source of WavCaps is it"):
        imported(tmp_path, "wavcaps", bare)
    assert imported(tmp_path, "wavcaps", bare, source="SoundBible")[1][0].audio.parent.name == "SoundBible_flac"


def test_tables_with_named_columns(tmp_path):
    for name in ("a.wav", "sub/b.flac"):
        tone(tmp_path / "audio" / name, 1.0)
    rows = "clip;text;from;licence\na.wav;rain;0,5;CC0\n"
    table = write(tmp_path / "t.csv", rows.replace("0,5", "0.5") + "sub/b;wind;;CC BY\n")
    columns = {"audio": "clip", "start": "from", "duration": None}
    _, clips, _ = imported(tmp_path, "table", table, columns=columns, source="mine", split="val")
    assert brief(clips) == [("a", "a.wav", "rain", 0.5, 0.5, "val"), ("b", "b.flac", "wind", 0.0, 1.0, "val")]
    assert [(c.licence, c.source) for c in clips] == [("CC0", "mine"), ("CC BY", "mine")]
    table = write(tmp_path / "t.jsonl", '{"key": 7, "captions": ["one", "two"], "split": "test"}\n')
    tone(tmp_path / "audio" / "clip-7.wav")
    _, clips, _ = imported(tmp_path, "table", table, patterns=["clip-{key}.*"], columns={"audio": None, "id": "key"})
    assert [(c.id, c.caption, c.split) for c in clips] == [("7-1", "one", "test"), ("7-2", "two", "test")]


def test_folder_of_sounds_and_texts(tmp_path):
    for name in ("a.wav", "sub/a.wav", "alone.wav"):
        tone(tmp_path / "audio" / name)
    for name, text in (("a", "one\ntwo\n"), ("sub/a", "three"), ("silent", "nothing there")):
        write(tmp_path / "audio" / f"{name}.txt", text)
    _, clips, left = imported(tmp_path, "folder", tmp_path / "audio")
    assert [(c.id, c.audio.parent.name, c.caption) for c in clips] == [
        ("a", "audio", "one"),
        ("a-2", "audio", "two"),
        ("a-3", "sub", "three"),
    ]
    assert [(row["id"], row["reason"]) for row in left] == [("", "missing"), ("alone", "no caption")]


# ---------------------------------------------------------------- finding sounds


def test_which_of_several_files_is_taken(tmp_path):
    """The suffix that was asked for, then the folder called like the split, then told as a choice."""
    audio = tmp_path / "audio"
    for name in (f"train/{IDS[0]}.wav", f"val/{IDS[0]}.wav", f"{IDS[1]}.flac", f"{IDS[1]}.wav", f"{IDS[2]}.wav", f"Y{IDS[3]}.wav"):
        tone(audio / name)
    summary, clips, _ = imported(tmp_path, "audiocaps", audiocaps(tmp_path, "val"))
    assert [c.audio.relative_to(audio).as_posix() for c in clips] == [
        f"val/{IDS[0]}.wav",
        f"{IDS[1]}.flac",
        f"{IDS[2]}.wav",
        f"Y{IDS[3]}.wav",
    ]
    assert [line.split(":")[1] for line in summary.several] == ["3"]
    table = audiocaps(tmp_path, "val", [(1, IDS[1], 0, "x")])
    summary, clips, _ = imported(tmp_path, "audiocaps", table, patterns=["{youtube_id}.wav"])
    assert (clips[0].audio.suffix, summary.several) == (".wav", [])


def test_patterns(tmp_path):
    for i, name in enumerate(("0.wav", f"{IDS[1]}_40000_50000.wav", f"x/{IDS[2]}.wav")):
        tone(tmp_path / "audio" / name, 0.5 + i)
    _, clips, left = imported(
        tmp_path, "audiocaps", audiocaps(tmp_path), patterns=["{audiocap_id}", "{youtube_id}_{start_ms}_{end_ms}.flac", "x/{youtube_id}.*"]
    )
    assert [c.id for c in clips] == ["0", "1", "2"]
    assert [row["detail"].split(" in ")[0] for row in left] == [f"no 3, {IDS[3]}_60000_70000.flac, x/{IDS[3]}"]
    with pytest.raises(
        InputError, match=r"train\.csv:2: nothing to put for \{title\} in the pattern '\{title\}'; there are audiocap_id, youtube_id"
    ):
        imported(tmp_path, "audiocaps", audiocaps(tmp_path), patterns=["{title}"])


def test_names_cannot_leave_the_folder_of_sounds(tmp_path):
    tone(tmp_path / "secret.wav")
    tone(tmp_path / "audio" / "a.wav")
    rows = ["a", "../secret.wav", str(tmp_path / "secret.wav"), "/secret", str(tmp_path / "audio" / "a.wav")]
    table = write(tmp_path / "t.csv", "audio,caption\n" + "".join(f"{row},x\n" for row in rows))
    _, clips, left = imported(tmp_path, "table", table)
    assert {c.audio for c in clips} == {tmp_path / "audio" / "a.wav"}
    assert len(clips) == 2
    assert [row["reason"] for row in left] == ["missing"] * 3


def test_links_are_followed_once_and_accents_compare(tmp_path):
    tone(tmp_path / "elsewhere" / "caf\u0065\u0301.wav")
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "audio")
    table = write(tmp_path / "t.csv", "audio,caption\ncaf\u00e9.wav,x\n")
    summary, clips, _ = imported(tmp_path, "table", table)
    assert (len(clips), summary.several) == (1, [])


# ---------------------------------------------------------------- what is left out


def test_every_row_that_gives_no_clip_is_listed_with_its_place_and_reason(tmp_path):
    audio = tmp_path / "audio"
    names = [*IDS, "aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc"]
    tone(audio / f"{IDS[0]}.wav")
    write(audio / f"{IDS[1]}.wav", "429 Too Many Requests")
    write(audio / f"{IDS[2]}.flac", "")
    tone(audio / f"{IDS[3]}.wav", 20.0, 100)
    tone(audio / "aaaaaaaaaaa.wav", 0.0)
    write(audio / "bbbbbbbbbbb.m4a", "cannot be read here")
    table = audiocaps(tmp_path, rows=[(i, name, 30, "x") for i, name in enumerate(names)])
    summary, clips, left = imported(tmp_path, "audiocaps", table)
    assert [c.id for c in clips] == ["0"]
    assert [(row["where"].rpartition(":")[2], row["reason"]) for row in left] == [
        ("7", "missing"),
        ("8", "missing"),
        ("3", "unreadable"),
        ("4", "unreadable"),
        ("5", "shorter than its start"),
        ("6", "empty"),
    ]
    assert "convert it to wav or flac" in left[0]["detail"]
    assert "ends at 20.000 s, the clip starts at 30.000 s" in left[4]["detail"]
    assert "LEFT OUT: 2 missing" in summary.to_text()
    with pytest.raises(InputError, match=r"train\.csv:7: missing: only of a kind .* \(6 such rows\)"):
        imported(tmp_path, "audiocaps", table, strict=True)


def test_a_sound_that_ends_early_is_cut_and_told(tmp_path):
    tone(tmp_path / "audio" / f"{IDS[0]}.wav", 36.0, 100)
    summary, clips, left = imported(tmp_path, "audiocaps", audiocaps(tmp_path, rows=[(1, IDS[0], 30, "x")]))
    assert (clips[0].start, clips[0].duration, left) == (30.0, 6.0, [])
    assert "ends at 36.000 s, the clip at 40.000 s" in summary.shortened[0]


def test_nothing_is_written_if_nothing_is_found_and_old_lists_do_not_stay(tmp_path):
    (tmp_path / "audio").mkdir()
    with pytest.raises(InputError, match=r"no row gives a clip \(4 missing\); .*train\.csv:2: missing: no .*; say how .* --pattern"):
        imported(tmp_path, "audiocaps", audiocaps(tmp_path))
    assert not (tmp_path / "out").exists()
    tone(tmp_path / "audio" / f"{IDS[0]}.wav")
    assert len(imported(tmp_path, "audiocaps", audiocaps(tmp_path))[2]) == 3
    assert imported(tmp_path, "audiocaps", audiocaps(tmp_path, rows=[(1, IDS[0], 0, "x")]))[2] == []


@pytest.mark.parametrize(
    ("layout", "text", "message"),
    [
        ("audiocaps", "id,caption\n1,x\n", r"t\.csv:2: no column 'audiocap_id' for id; there are id, caption"),
        ("audiocaps", HEADER + "1,aaaaaaaaaaa,0,x\n2,bbbbbbbbbbb,0, \n", r"t\.csv:3: the caption is ' '"),
        ("audiocaps", HEADER + "1,aaaaaaaaaaa,soon,x\n", r"t\.csv:2: start is 'soon'"),
        ("audiocaps", HEADER + "1,aaaaaaaaaaa,-1,x\n", r"t\.csv:2: start is '-1'"),
        ("audiocaps", HEADER + "1,a,0,x\n2,b,0,y\n1,c,0,z\n", r"t\.csv:4: the id '1' was used before, in .*t\.csv:2"),
        ("audiocaps", HEADER + "1,aaaaaaaaaaa,0,a dog, barking\n", r"t\.csv:2: 1 more cells"),
        ("audiocaps", HEADER + "1, ,0,x\n", r"t\.csv:2: nothing to name the sound by; \{youtube_id\}"),
        ("audiocaps", HEADER, r"t\.csv: has no row"),
        ("clotho", "file_name,text\na.wav,x\n", None),
        ("clotho", "file_name,words\na.wav,x\n", r"t\.csv:2: no column for caption"),
        ("clotho", "file_name,caption_1,caption_2\na.wav,x,x\nb.wav,,\n", r"t\.csv:3: no caption"),
        ("table", "audio,caption\n,x\n", r"t\.csv:2: nothing to name the sound by; \{audio\}"),
        ("sounds", "", r"unknown format 'sounds'; known are audiocaps, meanaudio, clotho, wavcaps, table, folder"),
    ],
)
def test_wrong_tables_are_refused_with_their_line(tmp_path, layout, text, message):
    tone(tmp_path / "audio" / "a.wav")
    table = write(tmp_path / "t.csv", text)
    if message is None:
        assert imported(tmp_path, layout, table)[1][0].caption == "x"
        return
    with pytest.raises(InputError, match=message):
        imported(tmp_path, layout, table)
    assert not (tmp_path / "out").exists()


def test_twins_across_tables_and_other_refusals(tmp_path):
    tone(tmp_path / "audio" / f"{IDS[0]}.wav")
    with pytest.raises(InputError, match=r"val\.csv:2: the id '0' was used before, in .*train\.csv:2"):
        imported(tmp_path, "audiocaps", audiocaps(tmp_path), audiocaps(tmp_path, "val"))
    for message, options in (
        ("no such folder", {"audio": "nowhere"}),
        ("unknown field sound", {"columns": {"sound": "x"}}),
        ("no such list of ids", {"ids": tmp_path / "gone.txt"}),
        ("holds no id", {"exclude": [write(tmp_path / "none.txt", "\n")]}),
    ):
        with pytest.raises(InputError, match=message):
            imported(tmp_path, "audiocaps", audiocaps(tmp_path), **options)
    with pytest.raises(InputError, match=r"manifests are written as \.jsonl"):
        import_tables("audiocaps", [audiocaps(tmp_path)], tmp_path / "m.csv", tmp_path / "audio")
    with pytest.raises(InputError, match=r"holds no \*\.csv"):
        imported(tmp_path, "audiocaps", tmp_path / "audio")


# ---------------------------------------------------------------- round trip

captions = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30).filter(str.strip)


@given(st.lists(captions, min_size=1, max_size=4), st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]))
def test_captions_arrive_word_for_word(tmp_path_factory, sentences, quoting):
    """From the csv module's quoting through the manifest's JSON; only white space is made plain."""
    folder = tmp_path_factory.mktemp("c")
    tone(folder / "audio" / f"{IDS[0]}.wav", 0.01)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=quoting)
        writer.writerow(HEADER.strip().split(","))
        writer.writerows([i, IDS[0], 0, sentence] for i, sentence in enumerate(sentences))
    _, clips, _ = imported(folder, "audiocaps", folder / "train.csv")
    assert [c.caption for c in clips] == [" ".join(s.split()) for s in sentences]
