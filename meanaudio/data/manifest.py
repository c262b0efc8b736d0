"""Lists of captioned clips: read from jsonl, csv, tsv or a folder of `clip.wav` + `clip.txt`, write, check."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from meanaudio.audio import AUDIO_SUFFIXES
from meanaudio.checkpoint import write_text
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
SILENCE = 1e-3
MIN_SECONDS = 0.1
CLIPPED_LEVEL, CLIPPED_SHARE = 0.999, 0.001


@dataclass(frozen=True)
class Clip:
    """A stretch of a sound file and what is heard in it. start, duration: seconds; duration None is to the end of the file."""

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


def read_manifest(path: str | Path, columns: Mapping[str, str | None] | None = None) -> list[Clip]:
    """The clips of a .jsonl, .csv or .tsv file, or of a folder (its manifest.jsonl, otherwise each sound with a .txt beside it).

    `columns` names a field's column where it has none of the names in COLUMNS; None leaves the field out. Several captions of a row
    (a list, or columns caption_1, caption_2, …) give several clips. Relative audio paths start from the manifest's folder and stay in it;
    the suffix may be left off. Raises InputError with file, line and value for the first thing that is wrong.
    """
    path = Path(path)
    columns = dict(columns or {})
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise InputError(f"unknown field {', '.join(unknown)}; a column can be named for {', '.join(COLUMNS)}")
    if path.is_dir():
        inner = path / "manifest.jsonl"
        return read_manifest(inner, columns) if inner.is_file() else _unique(_read_folder(path), path)
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise InputError(f"{path}: a manifest is a folder or ends in {', '.join(MANIFEST_SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"no such manifest: {path}")
    rows = _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)
    return _unique(((where, clip) for where, row in rows for clip in _clips_of(row, where, path.parent, columns)), path)


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
        lines.append(json.dumps(dataclasses.asdict(clip) | {"audio": named.as_posix()}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


Row = tuple[str, dict]


def _read_jsonl(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise InputError(f"{where}: not JSON ({error}): {line.strip()[:80]!r}") from error
                if not isinstance(row, dict):
                    raise InputError(f'{where}: expected an object like {{"audio": …, "caption": …}}, got {line.strip()[:80]!r}')
                yield where, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error


def _read_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", restkey="")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if "" in row and isinstance(row[""], list):
                    raise InputError(f"{where}: {len(row[''])} more cells than the {len(row) - 1} columns; is a comma unquoted?")
                yield where, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    except csv.Error as error:
        raise InputError(f"{path}: not a table ({error})") from error


def _read_folder(folder: Path) -> Iterator[tuple[str, Clip]]:
    sounds = {p.with_suffix(""): p for p in sorted(folder.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file()}
    texts = {p.with_suffix(""): p for p in sorted(folder.rglob("*.txt"))}
    if not sounds:
        raise InputError(f"{folder}: holds no manifest.jsonl and no sound ({', '.join(AUDIO_SUFFIXES)})")
    if alone := sorted(sounds.keys() - texts.keys()):
        raise InputError(f"{sounds[alone[0]]}: has no caption; write it to {alone[0].name}.txt ({len(alone)} such sounds)")
    if alone := sorted(texts.keys() - sounds.keys()):
        raise InputError(f"{texts[alone[0]]}: a caption without its sound; add the sound or move the text away ({len(alone)} such texts)")
    for stem, sound in sounds.items():
        try:
            captions = [line for line in texts[stem].read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"{texts[stem]}: not UTF-8 text ({error})") from error
        row = {"audio": str(sound.absolute()), "caption": captions}
        yield from ((str(texts[stem]), clip) for clip in _clips_of(row, str(texts[stem]), folder, {}))


def _clips_of(row: dict, where: str, folder: Path, columns: Mapping[str, str | None]) -> Iterator[Clip]:
    """The clips of one row: one a caption."""
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
        if name not in found:
            names = ", ".join(COLUMNS[name])
            raise InputError(f"{where}: no column for {name}; it may be called {names}, but there are {', '.join(map(str, row)) or 'none'}")
    audio = _audio_path(found["audio"], where, folder)
    captions = found["caption"] if isinstance(found["caption"], list) else [found["caption"]]
    if not captions:
        raise InputError(f"{where}: no caption; give a sentence that says what is heard")
    plain = {name: _text(found.get(name), where, name) for name in ("licence", "source", "kind", "group")}
    base = _text(found.get("id"), where, "id")
    for number, caption in enumerate(captions, 1):
        if not isinstance(caption, str) or not caption.strip():
            raise InputError(f"{where}: the caption is {caption!r}; give a sentence that says what is heard")
        yield Clip(
            id=f"{base}-{number}" if base and len(captions) > 1 else base,
            audio=audio,
            caption=" ".join(caption.split()),
            start=_number(found.get("start"), where, "start", 0.0) or 0.0,
            duration=_number(found.get("duration"), where, "duration", None),
            split=_text(found.get("split"), where, "split") or "train",
            **plain,
        )


def _text(value: object, where: str, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: {name} is {value!r}; it must be text")
    return str(value).strip()


def _number(value: object, where: str, name: str, default: float | None) -> float | None:
    if value is None or value == "":
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (name == "duration" and number == 0):
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


def _unique(found: Iterable[tuple[str, Clip]], path: Path) -> list[Clip]:
    """Check that ids differ, and name the clips that have none after their files."""
    pairs = list(found)
    if not pairs:
        raise InputError(f"{path}: has no row")
    taken: dict[str, str] = {}
    for where, clip in pairs:
        if clip.id and clip.id in taken:
            raise InputError(f"{where}: the id {clip.id!r} was used before, in {taken[clip.id]}; ids must differ")
        taken[clip.id] = where
    out = []
    for where, clip in pairs:
        name, number = clip.id or clip.audio.stem, 1
        while not clip.id and name in taken:
            number += 1
            name = f"{clip.audio.stem}-{number}"
        taken[name] = where
        out.append(dataclasses.replace(clip, id=name))
    return out


FATAL = ("missing", "unreadable", "not finite", "past its end", "silent")


@dataclass(frozen=True)
class Report:
    """What is in a manifest. problems: lines by kind; `ok` is False where one would stop training (FATAL), the rest are warnings."""

    path: Path
    clips: int
    files: int
    captions: int
    splits: dict[str, tuple[int, float]]  # clips and hours
    rates: dict[int, int]  # files by sample rate
    channels: dict[int, int]
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not any(self.problems.get(kind) for kind in FATAL)

    @property
    def hours(self) -> float:
        return sum(hours for _, hours in self.splits.values())

    def to_text(self) -> str:
        """Several lines for a reader."""
        stretch = f"{self.clips} clips of {self.files} files, {self.hours:.3f} h, {self.captions} different captions"
        lines = [f"{self.path}: {stretch}, {self.clips / max(self.files, 1):.2f} clips a file"]
        lines += [f"  {split}: {clips} clips, {hours:.3f} h" for split, (clips, hours) in self.splits.items()]
        lines.append("  rates: " + ", ".join(f"{rate} Hz ({n})" for rate, n in sorted(self.rates.items())))
        lines.append("  channels: " + ", ".join(f"{channels} ({n})" for channels, n in sorted(self.channels.items())))
        for kind, entries in self.problems.items():
            lines += [f"  {kind} ({len(entries)}):", *(f"    {entry}" for entry in entries)]
        return "\n".join([*lines, "  no problems" if not self.problems else f"  {'usable' if self.ok else 'NOT usable'}"])


def check_manifest(path: str | Path, columns: Mapping[str, str | None] | None = None) -> Report:
    """Read every clip of a manifest and report what is in it. Rows that cannot be read at all raise InputError."""
    clips = read_manifest(path, columns)
    problems: dict[str, list[str]] = defaultdict(list)
    rates: Counter[int] = Counter()
    channels: Counter[int] = Counter()
    splits: dict[str, tuple[int, float]] = {}
    contents: dict[str, str] = {}  # first clip by hash of what it holds
    seconds: dict[tuple, float] = {}  # by stretch: several captions of one are read once
    files: set[Path] = set()
    for clip in clips:
        stretch = (clip.audio, clip.start, clip.duration)
        if stretch not in seconds:
            audio, rate, faults = _inspect(clip)
            seconds[stretch] = len(audio) / rate if rate else 0.0
            for kind, detail in faults:
                problems[kind].append(f"{clip.id}: {clip.audio}{detail}")
            if rate and clip.audio not in files:
                rates[rate] += 1
                channels[audio.shape[1]] += 1
            if len(audio):
                first = contents.setdefault(hashlib.sha256(audio.tobytes()).hexdigest(), clip.id)
                if first != clip.id:
                    problems["duplicated"].append(f"{clip.id}: {clip.audio} holds the same as {first}")
            files.add(clip.audio)
        count, hours = splits.get(clip.split, (0, 0.0))
        splits[clip.split] = (count + 1, hours + seconds[stretch] / 3600)
    captions = len({clip.caption for clip in clips})
    return Report(Path(path), len(clips), len(files), captions, splits, dict(rates), dict(channels), dict(problems))


def _inspect(clip: Clip) -> tuple[np.ndarray, int, list[tuple[str, str]]]:
    """A clip's samples [N, channels] at the file's own rate (0 if it cannot be read), and what is wrong as (kind, detail)."""
    nothing = np.zeros((0, 1), dtype=np.float32)
    if not clip.audio.is_file():
        return nothing, 0, [("missing", "")]
    try:
        with soundfile.SoundFile(clip.audio) as file:
            rate, length = file.samplerate, file.frames
            first = round(clip.start * rate)
            frames = length - first if clip.duration is None else round(clip.duration * rate)
            # half a frame of rounding at either end is no fault
            if first >= length or first + frames > length + 2:
                return nothing, rate, [("past its end", f": ends at {length / rate:.3f} s, the clip at {(first + frames) / rate:.3f} s")]
            file.seek(first)
            audio = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, EOFError) as error:
        return nothing, 0, [("unreadable", f": {error}")]
    if not np.isfinite(audio).all():
        return audio, rate, [("not finite", ": holds NaN or infinite samples")]
    faults = []
    level = np.abs(audio)
    if len(audio) < MIN_SECONDS * rate:
        faults.append(("too short", f": {len(audio) / rate:.3f} s"))
    if level.size == 0 or level.max() < SILENCE:
        faults.append(("silent", f": its peak is below {SILENCE}"))
    elif (share := float((level >= CLIPPED_LEVEL).mean())) > CLIPPED_SHARE:
        faults.append(("clipped", f": {share:.1%} of its samples are at full scale"))
    return audio, rate, faults
