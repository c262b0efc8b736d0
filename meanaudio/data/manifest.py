"""Lists of captioned clips: read from jsonl, csv, tsv or a folder of `clip.wav` + `clip.txt`, and written as jsonl."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meanaudio.audio import AUDIO_SUFFIXES
from meanaudio.checkpoint import write_text
from meanaudio.data.tables import read_rows
from meanaudio.errors import InputError

# the names a field may have in a file, best first
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "clip_id", "audiocap_id"),
    "audio": ("audio", "audio_path", "audio_filepath", "location", "path", "file_name", "filename", "file", "wav"),
    "caption": ("caption", "captions", "text", "description"),
    "start": ("start", "start_time", "offset"),
    "duration": ("duration", "seconds"),
    "split": ("split", "subset"),
    "licence": ("licence", "license"),
    "source": ("source",),
    "kind": ("kind",),
    "group": ("group",),
}
MANIFEST_SUFFIXES = (".jsonl", ".csv", ".tsv")
SHOWN = 10  # faults of a folder that are named


@dataclass(frozen=True)
class Clip:
    """A stretch of a sound file and what is heard in it. start, duration: seconds; duration None is to the end of the file.

    group: clips that share it are takes or captions of one recording.
    """

    id: str
    audio: Path
    caption: str
    start: float = 0.0
    duration: float | None = None
    split: str = "train"
    licence: str = ""
    source: str = ""
    kind: str = ""
    group: str = ""


@dataclass(frozen=True)
class Record:
    """What a row of a table says, before its sound is looked for.

    where: `file:line`. Fields without a column are empty; audio is as written.
    """

    where: str
    captions: tuple[str, ...]
    id: str = ""
    audio: object = None
    start: float = 0.0
    duration: float | None = None
    split: str = ""
    licence: str = ""
    source: str = ""
    kind: str = ""
    group: str = ""

    def clips(self, audio: Path) -> Iterator[Clip]:
        """One clip a caption."""
        plain = {name: getattr(self, name) for name in ("start", "duration", "licence", "source", "kind", "group")}
        for number, caption in enumerate(self.captions, 1):
            name = f"{self.id}-{number}" if self.id and len(self.captions) > 1 else self.id
            yield Clip(name, audio, caption, split=self.split or "train", **plain)


def read_manifest(path: str | Path, columns: Mapping[str, str | None] | None = None) -> list[Clip]:
    """The clips of a .jsonl, .csv or .tsv file, or of a folder (its manifest.jsonl, otherwise each sound with a .txt beside it).

    `columns` names a field's column where it has none of the names in COLUMNS; None leaves the field out. Several captions of a row
    (a list, or columns caption_1, caption_2, …) give several clips. Relative audio paths start from the manifest's folder and stay in it;
    the suffix may be left off. Raises InputError with file, line and value for the first thing that is wrong.
    """
    path = Path(path)
    columns = dict(columns or {})
    check_fields(columns)
    if path.is_dir():
        inner = path / "manifest.jsonl"
        return read_manifest(inner, columns) if inner.is_file() else unique_ids(_read_folder(path), path)
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise InputError(f"{path}: a manifest is a folder or ends in {', '.join(MANIFEST_SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"no such manifest: {path}")
    records = (read_record(row, where, columns) for where, row in read_rows(path))
    return unique_ids(((r.where, clip) for r in records for clip in r.clips(_audio_path(r.audio, r.where, path.parent))), path)


def write_manifest(path: str | Path, clips: Sequence[Clip]) -> None:
    """Write a .jsonl manifest; audio inside its folder is named relative to it, so that the folder can be moved."""
    path = Path(path)
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: manifests are written as .jsonl")
    folder = Path(os.path.abspath(path.parent))
    lines = []
    for clip in clips:
        audio = Path(os.path.abspath(clip.audio))
        named = audio.relative_to(folder) if audio.is_relative_to(folder) else audio
        lines.append(json.dumps(vars(clip) | {"audio": named.as_posix()}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def check_fields(columns: Mapping[str, str | None]) -> None:
    """Raise InputError if a column is named for something that is no field."""
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise InputError(f"unknown field {', '.join(unknown)}; a column can be named for {', '.join(COLUMNS)}")


def read_record(row: dict, where: str, columns: Mapping[str, str | None]) -> Record:
    """The fields of a row. Raises InputError for a column or caption that is missing and a value that is wrong.

    `columns` is as for `read_manifest`; where it leaves audio out (None), a row needs none.
    """
    found: dict[str, object] = {}
    for name, guesses in COLUMNS.items():
        wanted = (columns[name],) if name in columns else guesses
        column = next((c for c in wanted if c is not None and c in row), None)
        if column is None and columns.get(name) is not None:
            raise InputError(f"{where}: no column {columns[name]!r} for {name}; there are {', '.join(map(str, row))}")
        if column is not None:
            found[name] = row[column]
    if "caption" not in found and "caption" not in columns:
        several = [row[c] for c in row if isinstance(c, str) and re.fullmatch(r"captions?_?\d+", c)]
        if several:
            found["caption"] = [c for c in several if c not in (None, "")]
    for name in ("audio", "caption"):
        if name not in found and (name == "caption" or name not in columns):
            names = ", ".join(COLUMNS[name])
            there = ", ".join(map(str, row)) or "none"
            hint = "; meanaudio data import reads published tables" if name == "audio" else ""
            raise InputError(f"{where}: no column for {name}; it may be called {names}, but there are {there}{hint}")
    return Record(
        where,
        _captions(found["caption"], where),
        audio=found.get("audio"),
        start=_number(found.get("start"), where, "start", 0.0) or 0.0,
        duration=_number(found.get("duration"), where, "duration", None),
        **{name: _text(found.get(name), where, name) for name in ("id", "split", "licence", "source", "kind", "group")},
    )


def unique_ids(found: Iterable[tuple[str, Clip]], path: Path) -> list[Clip]:
    """Check that ids differ, and name the clips that have none after their files."""
    pairs = list(found)
    if not pairs:
        raise InputError(f"{path}: has no row")
    taken: dict[str, str] = {}
    for where, clip in pairs:
        if clip.id and clip.id in taken:
            raise InputError(f"{where}: the id {clip.id!r} was used before, in {taken[clip.id]}; ids must differ")
        taken[clip.id] = where
    numbers: dict[str, int] = {}  # the last number given, by stem
    out = []
    for where, clip in pairs:
        name, stem = clip.id or clip.audio.stem, clip.audio.stem
        while not clip.id and name in taken:
            numbers[stem] = numbers.get(stem, 1) + 1
            name = f"{stem}-{numbers[stem]}"
        taken[name] = where
        out.append(dataclasses.replace(clip, id=name))
    return out


def _read_folder(folder: Path) -> Iterator[tuple[str, Clip]]:
    sounds = {p.with_suffix(""): p for p in sorted(folder.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file()}
    texts = {p.with_suffix(""): p for p in sorted(folder.rglob("*.txt"))}
    if not sounds:
        raise InputError(f"{folder}: holds no manifest.jsonl and no sound ({', '.join(AUDIO_SUFFIXES)})")
    untold = [f"{sounds[stem]} has no caption {stem.name}.txt" for stem in sorted(sounds.keys() - texts.keys())]
    unheard = [f"{texts[stem]} has no sound" for stem in sorted(texts.keys() - sounds.keys())]
    if faults := untold + unheard:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError(f"{folder}: every sound needs a text of its name, and every text a sound: {'; '.join(faults[:SHOWN])}{more}")
    for stem, sound in sounds.items():
        record = Record(str(texts[stem]), _captions(read_lines(texts[stem]), str(texts[stem])))
        yield from ((record.where, clip) for clip in record.clips(sound.absolute()))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises InputError if it is no UTF-8 text."""
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error


def _captions(value: object, where: str) -> tuple[str, ...]:
    captions = value if isinstance(value, list) else [value]
    if not captions:
        raise InputError(f"{where}: no caption; give a sentence that says what is heard")
    clean = []
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise InputError(f"{where}: the caption is {caption!r}; give a sentence that says what is heard")
        clean.append(" ".join(_unicode(caption, where, "the caption").split()))
    return tuple(clean)


def _text(value: object, where: str, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: {name} is {value!r}; it must be text")
    return _unicode(str(value).strip(), where, name)


def _unicode(text: str, where: str, name: str) -> str:
    """JSON can hold half a character, which no file can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {name} {text[:80]!r} is not valid Unicode ({error.reason})") from error
    return text


def _number(value: object, where: str, name: str, default: float | None) -> float | None:
    if value is None or value == "":
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < 1e9 or (name == "duration" and number == 0):
        least = "above 0" if name == "duration" else "0 or more"
        raise InputError(f"{where}: {name} is {value!r}; it must be a number of seconds, {least}")
    return number


def _audio_path(value: object, where: str, folder: Path) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(f"{where}: audio is {value!r}; it must be the path of a sound file")
    path = Path(value.strip())
    if not path.is_absolute():
        if os.path.normpath(path).split(os.sep)[0] == "..":
            raise InputError(f"{where}: audio {value!r} leaves the manifest's folder; use a path inside {folder} or an absolute one")
        path = folder / path
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        path = next((p for p in (path.with_name(path.name + s) for s in AUDIO_SUFFIXES) if p.is_file()), path)
    return path
