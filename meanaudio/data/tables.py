"""Rows of text tables: csv, tsv, jsonl and json. Each row comes with its place, `file:line`, for messages."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from meanaudio.errors import InputError

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".json")
DELIMITERS = ",\t;|"

Row = tuple[str, dict]  # (place, cells by column)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table, by its suffix. Raises InputError with file and line for the first thing that is no table.

    csv and tsv are UTF-8 with a header, with or without a byte order mark, any line ends. The header tells the delimiter (comma, tab,
    semicolon, bar) and the quotes (double; single where it is written in single quotes). json holds a list of objects, or one under "data".
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise InputError(f"{path}: a table ends in {', '.join(TABLE_SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"no such table: {path}")
    try:
        if suffix == ".jsonl":
            yield from _read_jsonl(path)
        elif suffix == ".json":
            yield from _read_json(path)
        else:
            yield from _read_tsv(path) if suffix == ".tsv" else _read_separated(path, ",")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
                raise InputError(f"{where}: not JSON ({error}): {line.strip()[:80]!r}") from error
            if not isinstance(row, dict):
                raise InputError(f'{where}: expected an object like {{"audio": …, "caption": …}}, got {line.strip()[:80]!r}')
            yield where, row


def _read_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    rows, name = (values, "") if isinstance(values, list) else (values.get("data") if isinstance(values, dict) else None, "data")
    if not isinstance(rows, list):
        raise InputError(f'{path}: expected a list of objects, or an object with such a list under "data"')
    for number, row in enumerate(rows):
        where = f"{path}: {name}[{number}]"
        if not isinstance(row, dict):
            raise InputError(f'{where}: expected an object like {{"id": …, "caption": …}}, got {str(row)[:80]!r}')
        yield where, row


def _read_tsv(path: Path) -> Iterator[Row]:
    """Many tsv files are written without quoting: where the quotes do not close, they are letters like others."""
    try:
        rows = list(_read_separated(path, "\t"))
    except _BadQuotes:
        rows = list(_read_separated(path, "\t", quoted=False))
    yield from rows


class _BadQuotes(InputError):
    pass


def _read_separated(path: Path, delimiter: str, *, quoted: bool = True) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline(1 << 16).strip()
        file.seek(0)
        if delimiter not in head:
            delimiter = next((d for d in DELIMITERS if d in head), delimiter)
        # a cell is quoted where a quote stands at both its ends; the header's first cell decides
        quote = "'" if head.startswith("'") and head.split(delimiter)[0].endswith("'") else '"'
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(file, delimiter=delimiter, quotechar=quote, quoting=quoting, strict=True)  # type: ignore[arg-type]
        columns: list[str] = []
        while True:
            where = f"{path}:{reader.line_num + 1}"  # the line where the row begins
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise _BadQuotes(f"{where}: not a table row ({error}); is a quote not closed, or not doubled inside a cell?") from error
            if cells is None:
                return
            if len(cells) < 2 and not "".join(cells).strip():  # a blank line
                continue
            if not columns:
                columns = _header(cells, where)
                continue
            if len(cells) > len(columns):
                raise InputError(f"{where}: {len(cells) - len(columns)} more cells than the {len(columns)} columns; is a comma unquoted?")
            if len(cells) < len(columns):
                raise InputError(f"{where}: only {len(cells)} cells for the {len(columns)} columns {', '.join(columns)}")
            yield where, dict(zip(columns, cells, strict=True))


def _header(cells: list[str], where: str) -> list[str]:
    columns = [cell.strip() for cell in cells]
    if twice := sorted({c for c in columns if c and columns.count(c) > 1}):
        raise InputError(f"{where}: the column {', '.join(twice)} stands twice in the header")
    return columns
