"""Lists of ids mean the same in any shape, choose rows, and name what is in no table."""

from __future__ import annotations

import json

import pytest
from small_files import AUDIOCAPS_HEADER as HEADER
from small_files import AUDIOCAPS_IDS as IDS
from small_files import audiocaps, imported, tone, write

from meanaudio.errors import InputError


@pytest.fixture
def sounds(tmp_path):
    for name in IDS:
        tone(tmp_path / "audio" / f"{name}.wav")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", f"{IDS[0]}\n\nY{IDS[2]}.wav\r\nnot_a_row\n"),
        ("list.txt", "0\n2\nnot_a_row\n"),
        ("list.tsv", f"id\tcaption\nY{IDS[0]}\tx\nY{IDS[2]}\ty\nnot_a_row\tz\n"),
        ("list.csv", HEADER + f"0,{IDS[0]},30,x\n2,{IDS[2]},50,y\nnot_a_row,ddddddddddd,0,z\n"),
        ("list.csv", f"{IDS[0]}\n{IDS[2]}\nnot_a_row\n"),
        ("list.json", json.dumps([f"Y{IDS[0]}.wav", 2, "not_a_row"])),
    ],
)
def test_lists_in_any_shape_choose_the_same_rows(sounds, name, text):
    """Only these; all but these; these are the test split. What no row is called is named."""
    lst = write(sounds / name, text)
    table = audiocaps(sounds)
    summary, clips, left = imported(sounds, "audiocaps", table, ids=lst)
    assert [c.id for c in clips] == ["0", "2"]
    assert summary.lists == {str(lst): (3, ["not_a_row"])}
    assert "2 of 3 ids found; in no table: not_a_row" in summary.to_text()
    assert [(row["id"], row["reason"]) for row in left] == [("1", "not listed"), ("3", "not listed")]
    _, clips, left = imported(sounds, "audiocaps", table, exclude=[lst])
    assert [c.id for c in clips] == ["1", "3"]
    assert [row["reason"] for row in left] == ["excluded"] * 2
    _, clips, left = imported(sounds, "audiocaps", table, test_ids=lst)
    assert [c.split for c in clips] == ["test", "train", "test", "train"]
    assert left == []


def test_the_test_split_is_exactly_the_list(sounds):
    table = audiocaps(sounds, "test")
    _, clips, left = imported(sounds, "audiocaps", table, test_ids=write(sounds / "l.txt", IDS[1]))
    assert [(c.id, c.split) for c in clips] == [("1", "test")]
    assert [row["reason"] for row in left] == ["not listed"] * 3


def test_lists_that_cannot_be_read(sounds):
    for name, text, message in (
        ("l.csv", "name,words\na,b\n", r"l\.csv: no column of ids; it may be called id, youtube_id"),
        ("l.json", '{"AudioSet": ["a"]}', "holds ids of AudioSet; say with --source"),
        ("l.json", '{"AudioSet": "a"}', "expected a list of ids"),
        ("l.json", "[[]]", "expected a list of ids"),
        ("l.json", "{", "not JSON"),
    ):
        with pytest.raises(InputError, match=message):
            imported(sounds, "table", write(sounds / "t.csv", f"audio,caption\n{IDS[0]},x\n"), ids=write(sounds / name, text))
