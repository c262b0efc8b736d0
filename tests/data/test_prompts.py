"""Prompt lists: every form gives the same prompts, and what is none is refused."""

import json

import pytest

from meanaudio.data.prompts import Prompt, read_prompts
from meanaudio.errors import InputError

PROMPTS = [Prompt("a/1", "a dog, barking"), Prompt("b", "rain")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'id,caption\na/1,"a dog, barking"\nb,rain\n'),
        ("a.tsv", "audiocap_id\tprompt\na/1\ta dog, barking\nb\t rain \n"),
        ("a.jsonl", "".join(json.dumps({"clip_id": p.id, "captions": [p.caption, "other"]}) + "\n" for p in PROMPTS)),
    ],
)
def test_tables_with_ids_and_captions(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == PROMPTS


def test_lines_are_captions_or_ids(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffa dog  barks\n\n rain\n", encoding="utf-8")
    assert read_prompts(path) == [Prompt("", "a dog barks"), Prompt("", "rain")]
    assert read_prompts(path, lines_are="ids") == [Prompt("a dog barks", ""), Prompt("rain", "")]


def test_columns_alone_and_chosen(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("audiocap_id,youtube_id,caption\n7,abc,rain\n", encoding="utf-8")
    assert read_prompts(path) == [Prompt("7", "rain")]
    assert read_prompts(path, id_columns=("youtube_id",)) == [Prompt("abc", "rain")]
    path.write_text("caption\nrain\n", encoding="utf-8")
    assert read_prompts(path) == [Prompt("", "rain")]
    path.write_text("id\n7\n", encoding="utf-8")
    assert read_prompts(path) == [Prompt("7", "")]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.csv", "id,caption\n", "holds no prompt"),
        ("a.csv", "name,words\n1,2\n", "neither an id nor a caption.*there are name, words"),
        ("a.jsonl", '{"caption": 7}\n', "neither an id"),
        ("a.jsonl", "[1]\n", "expected an object"),
        ("a.doc", "rain", "prompts come as"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(tmp_path, name, text, told):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_a_missing_list_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="no such"):
        read_prompts(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="UTF-8"):
        read_prompts(tmp_path / name)
