"""Lists of prompts: a text file, a table with a caption, an id or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meanaudio.data.manifest import COLUMNS, read_lines
from meanaudio.data.tables import TABLE_SUFFIXES, read_rows
from meanaudio.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """id: of the recording it belongs to, or "" if the list names none. caption: "" if the list names ids alone."""

    id: str
    caption: str


def read_prompts(path: str | Path, *, id_columns: Sequence[str] = COLUMNS["id"], lines_are: str = "captions") -> list[Prompt]:
    """Prompts of a .txt file (one a line: "captions" or "ids") or of a .csv, .tsv, .jsonl or .json table.

    A row's caption is the first where it has several. Raises InputError for an empty list and for rows with neither id nor caption.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        lines = [" ".join(line.split()) for line in read_lines(path)]
        prompts = [Prompt(line, "") if lines_are == "ids" else Prompt("", line) for line in lines]
    elif path.suffix.lower() in TABLE_SUFFIXES:
        prompts = [_of_row(row, where, id_columns) for where, row in read_rows(path)]
    else:
        raise InputError(f"{path}: prompts come as .txt, {', '.join(TABLE_SUFFIXES)}")
    if not prompts:
        raise InputError(f"{path}: holds no prompt")
    return prompts


def _of_row(row: dict, where: str, id_columns: Sequence[str]) -> Prompt:
    columns = {"id": id_columns, "caption": ("prompt", *COLUMNS["caption"])}
    found = {name: next((row[c] for c in names if row.get(c) not in (None, "", [])), "") for name, names in columns.items()}
    caption = found["caption"][0] if isinstance(found["caption"], list) else found["caption"]
    if not isinstance(caption, str) or not isinstance(found["id"], str | int) or not (caption.strip() or found["id"] != ""):
        names = ", ".join((*columns["id"], *columns["caption"]))
        raise InputError(f"{where}: neither an id nor a caption; columns may be called {names}, there are {', '.join(map(str, row))}")
    return Prompt(str(found["id"]).strip(), " ".join(caption.split()))
