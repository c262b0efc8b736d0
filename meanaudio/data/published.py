"""Layouts in which captioned sounds are published: which columns a table has, and what its sounds are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from meanaudio.data.manifest import Record, read_lines, read_record
from meanaudio.data.sound_files import without_suffix
from meanaudio.data.tables import read_rows
from meanaudio.errors import InputError

WAVCAPS_SOURCES = {"as": "AudioSet_SL", "bbc": "BBC_Sound_Effects", "fsd": "FreeSound", "sb": "SoundBible"}
SPLIT_WORDS = {
    "train": ("train", "training", "development"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "evaluation", "eval"),
}


@dataclass(frozen=True)
class Layout:
    """How one data set names things.

    tables: which files of a folder are its tables. columns: the column of a field, None for none, as in `read_manifest`.
    patterns: what a row's sound is called, best first, without suffix; {name} stands for a column. seconds: the length of its clips, where
    the table gives their start in a longer recording. source: what its clips say they come from. docs/data.md describes each.
    """

    tables: str
    columns: Mapping[str, str | None]
    patterns: tuple[str, ...]
    seconds: float | None = None
    source: str = ""


LAYOUTS = {
    "audiocaps": Layout(  # 1 and 2: csv of audiocap_id, youtube_id, start_time, caption
        "*.csv",
        {"id": "audiocap_id", "audio": None, "caption": "caption", "start": "start_time", "duration": None, "group": "youtube_id"},
        ("{youtube_id}_{start_time}", "{youtube_id}", "Y{youtube_id}_{start_time}", "Y{youtube_id}"),
        seconds=10.0,
        source="audiocaps",
    ),
    "meanaudio": Layout(  # the release: tsv of id, caption
        "*.tsv",
        {"id": "id", "audio": None, "caption": "caption"},
        ("{id}", "{youtube_id}"),
    ),
    "clotho": Layout(  # csv of file_name, caption_1 … caption_5
        "*captions*.csv",
        {"id": "file_name", "audio": None, "start": None, "duration": None, "source": None},
        ("{file_name}",),
        source="clotho",
    ),
    "wavcaps": Layout(  # one json a source, of id, caption, duration
        "**/*_final.json",
        {"id": "id", "audio": None, "caption": "caption", "duration": None, "source": None},
        ("{id}", "{youtube_id}"),
    ),
    "table": Layout("", {}, ("{audio}",)),
    "folder": Layout("", {}, ("{audio}",)),
}


@dataclass(frozen=True)
class Wanted:
    """A row and what its sound may be called: (pattern, name), best first. names: what lists of ids may call the row."""

    record: Record
    files: tuple[tuple[str, str], ...]
    names: frozenset[str]


def find_layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise InputError(f"unknown format {name!r}; known are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def find_tables(layout: Layout, paths: list[Path]) -> list[Path]:
    """The tables themselves: those in a folder for a folder."""
    tables = []
    for path in paths:
        inside = sorted(p for p in path.glob(layout.tables) if p.is_file()) if path.is_dir() and layout.tables else [path]
        if not inside:
            raise InputError(f"{path}: holds no {layout.tables}")
        tables += inside
    return tables


def read_published(
    table: Path,
    layout_name: str,
    *,
    columns: Mapping[str, str | None],
    patterns: tuple[str, ...],
    split: str | None,
    source: str | None,
) -> Iterator[Wanted]:
    """The rows of a published table. Raises InputError with file and line for columns and values that are wrong.

    What is given wins over the layout's own; split otherwise comes from a column or from the table's name (`split_of`).
    """
    layout = find_layout(layout_name)
    merged = {**layout.columns, **columns}
    if columns.get("audio") is not None:
        patterns = patterns or ("{audio}",)
    if layout_name == "wavcaps":
        source = source or _wavcaps_source(table)
    own_split = split_of(table)
    for where, row in _folder_rows(table) if layout_name == "folder" else read_rows(table):
        record = read_record(row, where, merged)
        record = replace(record, split=split or record.split or own_split, source=source or record.source or layout.source)
        if layout_name in ("wavcaps", "clotho"):
            record = replace(record, id=without_suffix(record.id))
        values = _values(row, record, layout.seconds if merged.get("start") else None)
        given = [(p, _fill(p, values, where)) for p in patterns]
        usual = [(p, _fill(p, values, where)) for p in layout.patterns if _columns_of(p) <= values.keys()]
        if not given and not usual:
            raise InputError(f"{where}: nothing to name the sound by; {' or '.join(layout.patterns)} was expected")
        names = {without_suffix(Path(name).name) for _, name in [*given, *usual]} | {record.id, values.get("youtube_id", "")} - {""}
        if layout_name == "wavcaps":  # each source counts for itself
            record = replace(record, id=f"{source}-{record.id}", source=f"wavcaps:{source}")
        yield Wanted(record, tuple(given or usual), frozenset(names))


def split_of(table: Path) -> str:
    """train, val or test, where exactly one of them can be read from a file's name; otherwise train."""
    words = set(re.findall(r"[a-z]+", table.stem.lower()))
    found = [split for split, known in SPLIT_WORDS.items() if words & set(known)]
    return found[0] if len(found) == 1 else "train"


def youtube_id_of(name: str) -> str:
    """The eleven letters of a name like Y--0w1YA1Hm4, or nothing."""
    found = re.fullmatch(r"Y([\w-]{11})", name, re.ASCII)
    return found[1] if found else ""


def _wavcaps_source(table: Path) -> str:
    source = WAVCAPS_SOURCES.get(table.stem.split("_")[0])
    source = source or next((p.name for p in table.absolute().parents if p.name in WAVCAPS_SOURCES.values()), None)
    if source is None:
        raise InputError(f"{table}: which source of WavCaps is it? Give --source, one of {', '.join(WAVCAPS_SOURCES.values())}")
    return source


def _folder_rows(folder: Path) -> Iterator[tuple[str, dict]]:
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    for text in sorted(folder.rglob("*.txt")):
        yield str(text), {"audio": text.relative_to(folder).with_suffix("").as_posix(), "caption": read_lines(text)}


def _values(row: dict, record: Record, seconds: float | None) -> dict[str, str]:
    """What patterns can name: the row's columns, and times (of clips of `seconds`) and ids that follow from them."""
    values = {k: str(v).strip() for k, v in row.items() if isinstance(k, str) and isinstance(v, str | int | float) and str(v).strip()}
    if isinstance(record.audio, str) and record.audio.strip():
        values["audio"] = record.audio.strip()
    if name := without_suffix(values.get("id", record.id)):
        values["id"] = name
        if youtube_id := youtube_id_of(name):
            values.setdefault("youtube_id", youtube_id)
    if seconds is not None:
        end = record.start + seconds
        values |= {"start_time": f"{record.start:.10g}", "end_time": f"{end:.10g}"}
        values |= {"start_ms": str(round(1000 * record.start)), "end_ms": str(round(1000 * end))}
    return values


def _columns_of(pattern: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", pattern))


def _fill(pattern: str, values: Mapping[str, str], where: str) -> str:
    if lacking := sorted(_columns_of(pattern) - values.keys()):
        raise InputError(f"{where}: nothing to put for {{{lacking[0]}}} in the pattern {pattern!r}; there are {', '.join(values)}")
    filled = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], pattern)
    return filled.removesuffix(".*")
