"""Tables: however cells are quoted, delimited and ended, the rows are the same; what is no table is named with its line."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_files import write

from meanaudio.data.tables import read_rows
from meanaudio.errors import InputError


def rows_of(path):
    return [row for _, row in read_rows(path)]


cells = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\r\0\x1a"), max_size=20)


@given(
    st.lists(st.tuples(cells, cells), min_size=1, max_size=4),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from(['"', "'"]),
)
@example([("a dog, \"loud\"; 'barks'", "x\ny,z")], ",", "\n", True, '"')
@example([("it's", "'")], ";", "\r\n", False, "'")
def test_a_csv_reads_the_same_however_it_is_written(tmp_path_factory, rows, delimiter, ends, mark, quote):
    """Any delimiter, line ends, byte order mark and quotes, as the csv module writes them."""
    text = io.StringIO(newline="")
    # single quotes are told from the header, so that it must have them
    quoting = csv.QUOTE_ALL if quote == "'" else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ends, quotechar=quote, quoting=quoting)
    writer.writerows([("id", "caption"), *rows])
    path = tmp_path_factory.mktemp("t") / ("t.tsv" if delimiter == "\t" else "t.csv")
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.getvalue().encode())
    assert rows_of(path) == [{"id": a, "caption": b} for a, b in rows]


plain = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20)


@given(st.lists(plain, max_size=4))
@example(['a "loud" bang', '"', '"x"'])
def test_a_tsv_without_quoting_keeps_its_quotes(tmp_path_factory, captions):
    """One cell that opens a quote and goes on behind its end shows that quotes are letters in this file."""
    captions = ['"Hello" says a man', *captions]
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    path.write_text("id\tcaption\n" + "".join(f"{i}\t{c}\n" for i, c in enumerate(captions)), encoding="utf-8", newline="")
    assert [row["caption"] for row in rows_of(path)] == captions


def test_the_place_is_the_line_where_a_row_begins(tmp_path):
    path = write(tmp_path / "t.csv", 'id,caption\n\n1,"two\nlines"\n2,x\n')
    assert [where for where, _ in read_rows(path)] == [f"{path}:3", f"{path}:5"]
    path = write(tmp_path / "t.json", json.dumps({"data": [{"id": 1}, {"id": 2}]}))
    assert [where for where, _ in read_rows(path)] == [f"{path}: data[0]", f"{path}: data[1]"]
    assert rows_of(write(tmp_path / "u.json", '[{"id": 1}]')) == [{"id": 1}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "id,caption\n1,a dog, barking\n", r"t\.csv:2: 1 more cells than the 2 columns; is a comma unquoted"),
        ("t.csv", "id,split,caption\n1,train\n", r"t\.csv:2: only 2 cells for the 3 columns id, split, caption"),
        ("t.csv", 'id,caption\n1,x\n2,"a dog\n3,y\n', r"t\.csv:3: not a table row .*is a quote not closed"),
        ("t.csv", 'id,caption\n1,"a \\"loud\\" bang"\n', r"t\.csv:2: not a table row"),
        ("t.csv", "id,caption,id\n1,x,2\n", r"t\.csv:1: the column id stands twice"),
        ("t.json", '{"data": 3}', r't\.json: expected a list of objects, or an object with such a list under "data"'),
        ("t.json", '{"data": [3]}', r"t\.json: data\[0\]: expected an object"),
        ("t.json", '{\n"data": [\n', r"t\.json:3: not JSON"),
        ("t.jsonl", '{"a": 1}\n{', r"t\.jsonl:2: not JSON"),
        ("t.jsonl", "[" * 100_000, r"t\.jsonl:1: not JSON"),
        ("t.xlsx", "", r"a table ends in \.jsonl, \.csv, \.tsv, \.json"),
    ],
)
def test_what_is_no_table_is_named_with_its_line(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        rows_of(write(tmp_path / name, text))


def test_other_encodings_are_refused(tmp_path):
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "t.csv").write_bytes("id,caption\n1,café\n".encode(encoding))
        with pytest.raises(InputError, match="not UTF-8 text"):
            rows_of(tmp_path / "t.csv")
    with pytest.raises(InputError, match="no such table"):
        rows_of(tmp_path / "none.csv")
