"""Lists of ids: which rows of a published table to take, to hold out or to leave."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from meanaudio.data.manifest import read_lines
from meanaudio.data.published import youtube_id_of
from meanaudio.data.sound_files import without_suffix
from meanaudio.data.tables import read_rows
from meanaudio.errors import InputError

ID_COLUMNS = ("id", "youtube_id", "audiocap_id", "file_name", "fname", "ytid", "sound_id")


class IdList:
    """The ids of a file, and which of them were found so far.

    A text file holds one a line; a csv or tsv has a column such as id or youtube_id (`prefer` comes first), or is one column without a
    header; json is a list, or lists by source. Ids may be file names; Y before a YouTube id makes no difference.
    """

    def __init__(self, path: Path, prefer: str | None = None) -> None:
        self.path = path
        self._groups = {source: _Group(entries) for source, entries in _entries(path, prefer).items()}

    def holds(self, names: Collection[str], source: str = "") -> bool:
        """Whether one of a row's names is in the list (of its source, where there are several); remembered."""
        if not source and "" not in self._groups:
            raise InputError(f"{self.path}: holds ids of {', '.join(self._groups)}; say with --source which of them are meant")
        return any([group.holds(names) for own, group in self._groups.items() if not own or _same_source(own, source)])

    @property
    def size(self) -> int:
        """How many ids could have been found: those of the sources that were asked for."""
        return sum(len(group.entries) for group in self._groups.values() if group.asked)

    @property
    def not_found(self) -> list[str]:
        return [entry for group in self._groups.values() if group.asked for key, entry in group.entries.items() if key not in group.found]


class _Group:
    """Ids that belong together, as written, by what they are compared as."""

    def __init__(self, entries: list[str]) -> None:
        self.entries = {without_suffix(PurePosixPath(entry).name): entry for entry in entries}
        self.short = {short: key for key in self.entries if (short := youtube_id_of(key))}
        self.found: set[str] = set()
        self.asked = False

    def holds(self, names: Collection[str]) -> bool:
        keys = {name if name in self.entries else self.short.get(name, "") for name in names} - {""}
        self.asked = True
        self.found |= keys
        return bool(keys)


def _entries(path: Path, prefer: str | None) -> dict[str, list[str]]:
    """The ids of a list by source; "" is any."""
    if not path.is_file():
        raise InputError(f"no such list of ids: {path}")
    suffix = path.suffix.lower()
    if suffix == ".json":
        found = _of_json(path)
    elif suffix in (".csv", ".tsv", ".jsonl"):
        found = {"": _of_table(path, prefer)}
    else:
        found = {"": [line.strip() for line in read_lines(path)]}
    if not any(found.values()):
        raise InputError(f"{path}: holds no id")
    return found


def _of_table(path: Path, prefer: str | None) -> list[str]:
    rows = list(read_rows(path))
    if not rows:
        return []
    columns = list(rows[0][1])
    column = next((c for c in (prefer, *ID_COLUMNS) if c in columns), None)
    if column is not None:
        return [value for _, row in rows if (value := str(row.get(column) or "").strip())]
    if len(columns) > 1:
        raise InputError(f"{path}: no column of ids; it may be called {', '.join(ID_COLUMNS)}, but there are {', '.join(columns)}")
    with path.open(
        encoding="utf-8-sig", newline=""
    ) as file:  # the first line may be a title or an id: one that is no id is told as not found
        return [cells[0].strip() for cells in csv.reader(file) if cells and cells[0].strip()]


def _of_json(path: Path) -> dict[str, list[str]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    lists = values if isinstance(values, dict) else {"": values}
    for ids in lists.values():
        if not isinstance(ids, list) or not all(isinstance(v, str | int) and not isinstance(v, bool) for v in ids):
            raise InputError(f"{path}: expected a list of ids, or lists of ids by source")
    return {source: [str(v).strip() for v in ids if str(v).strip()] for source, ids in lists.items()}


def _same_source(one: str, other: str) -> bool:
    """AudioSet is AudioSet_SL."""
    one, other = one.lower(), other.lower()
    return one.startswith(other) or other.startswith(one)
