"""From a published table and a folder of sounds to a manifest. Whatever cannot be used is counted, listed and said."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from meanaudio.checkpoint import write_json
from meanaudio.data.id_lists import IdList
from meanaudio.data.left_out import LeftOut, left_out_path, write_left_out
from meanaudio.data.manifest import Clip, check_fields, unique_ids, write_manifest
from meanaudio.data.parallel import map_files
from meanaudio.data.published import Layout, Wanted, find_layout, find_tables, read_published
from meanaudio.data.sound_files import SoundFolder, sound_seconds
from meanaudio.errors import InputError

SLACK = 0.5  # seconds that a clip may be longer than the table says: encoders pad
SHORT = 0.1  # seconds that it may be shorter before it is told
FAULTS = ("missing", "unreadable", "empty", "shorter than its start", "no caption")  # the other reasons were asked for


@dataclass
class ImportSummary:
    """What an import made of its tables; written as json beside the manifest. Counts are of rows unless said otherwise.

    patterns: by what their sounds are called. cut: the sound is the clip alone; longer: it is a recording that holds the clip.
    lists: of each list of ids, how many it holds and which are in no table. several: rows with more than one file, of which the first
    was taken. shortened: rows whose sound ends early. unused: sounds that no clip is read from.
    """

    manifest: str
    format: str
    tables: dict[str, int] = field(default_factory=dict)
    clips: int = 0
    files: int = 0
    splits: dict[str, tuple[int, float]] = field(default_factory=dict)  # clips, and hours of different sound
    patterns: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    longer: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    lists: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    several: list[str] = field(default_factory=list)
    shortened: list[str] = field(default_factory=list)
    unused: int = 0

    def to_text(self) -> str:
        """Several lines for a reader."""
        counts = ", ".join(f"{split}: {clips} clips, {hours:.3f} h" for split, (clips, hours) in self.splits.items())
        lines = [f"{self.manifest}: {self.clips} clips of {self.files} files ({counts})"]
        lines += [f"  {rows} rows in {table}" for table, rows in self.tables.items()]
        lines += [f"  {rows} rows found as {pattern}" for pattern, rows in self.patterns.items()]
        if self.cut:
            lines.append(f"  {self.cut} rows have a sound that is the clip alone: its beginning is read, not the table's start")
        if self.longer:
            lines.append(f"  {self.longer} rows have a longer recording: read from the table's start")
        lines += [f"  LEFT OUT: {rows} {reason}" for reason, rows in self.left_out.items()]
        if self.left_out:
            lines.append(f"  each with its reason in {left_out_path(Path(self.manifest))}")
        for path, (size, lost) in self.lists.items():
            named = ", ".join(lost[:10]) + (f" and {len(lost) - 10} more" if len(lost) > 10 else "")
            lines.append(f"  {path}: {size - len(lost)} of {size} ids found" + (f"; in no table: {named}" if lost else ""))
        for entries, what in (
            (self.several, "rows have several files, of which the first is taken"),
            (self.shortened, "rows have a sound that ends before the clip does"),
        ):
            if entries:
                lines.append(f"  {len(entries)} {what}, such as {entries[0]}")
        if self.unused:
            lines.append(f"  {self.unused} sounds of the folder are in no clip")
        return "\n".join(lines)


def summary_path(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.stem}.import.json")


def import_tables(
    format_name: str,
    tables: Sequence[Path],
    out: Path,
    audio: Path | None = None,
    *,
    split: str | None = None,
    ids: Path | None = None,
    test_ids: Path | None = None,
    exclude: Sequence[Path] = (),
    patterns: Sequence[str] = (),
    columns: Mapping[str, str | None] | None = None,
    source: str | None = None,
    clips: bool = False,
    strict: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> ImportSummary:
    """Write the manifest `out` of published tables (see `published.LAYOUTS`) whose sounds lie in `audio`, the first table's folder if None.

    ids: only these rows. test_ids: these rows, and no others, are split "test". exclude: not these rows. clips: sounds are cut already,
    so that a start in the table is not used. Rows whose sound is missing, unreadable, empty or shorter than its start are left out and
    listed beside the manifest; with `strict`, or if no row is left, they raise InputError instead, as wrong tables do, and nothing is
    written.
    """
    layout, columns = find_layout(format_name), dict(columns or {})
    check_fields(columns)
    if out.suffix != ".jsonl":
        raise InputError(f"{out}: manifests are written as .jsonl")
    found_tables = find_tables(layout, list(tables))
    folder = SoundFolder(audio or (found_tables[0] if found_tables[0].is_dir() else found_tables[0].parent))
    summary = ImportSummary(str(out), format_name)
    rows: list[Wanted] = []
    for table in found_tables:
        before = len(rows)
        rows += read_published(table, format_name, columns=columns, patterns=tuple(patterns), split=split, source=source)
        summary.tables[str(table)] = len(rows) - before
        if len(rows) == before:
            raise InputError(f"{table}: has no row")
    _refuse_twins(rows)
    left: list[LeftOut] = []
    rows = _select(rows, summary, left, ids, test_ids, exclude, prefer=layout.columns.get("id"))
    placed = _place(_find(rows, folder, summary, left), layout, summary, left, clips, workers, progress)
    used = {clip.audio for _, clip in placed}
    summary.unused = len(folder) - len(used)
    if format_name == "folder":
        alone = [path for path in folder.sounds() if not path.with_suffix(".txt").is_file()]
        left += [LeftOut(str(path), path.stem, "", "no caption", f"no {path.stem}.txt") for path in alone]
    summary.left_out = dict(Counter(entry.reason for entry in left))
    _refuse_faults(left, strict, placed, summary)
    made = unique_ids(placed, out)
    summary.clips, summary.files, summary.splits = len(made), len(used), _count(made)
    write_left_out(out, left)
    write_json(summary_path(out), dataclasses.asdict(summary))
    write_manifest(out, made)
    return summary


def _refuse_twins(rows: Sequence[Wanted]) -> None:
    taken: dict[str, str] = {}
    for row in rows:
        if row.record.id and (first := taken.setdefault(row.record.id, row.record.where)) != row.record.where:
            raise InputError(f"{row.record.where}: the id {row.record.id!r} was used before, in {first}; ids must differ")


def _select(
    rows: Sequence[Wanted],
    summary: ImportSummary,
    left: list[LeftOut],
    ids: Path | None,
    test_ids: Path | None,
    exclude: Sequence[Path],
    prefer: str | None,
) -> list[Wanted]:
    """Apply the lists of ids. Each row is looked up in all of them, so that they know what was found."""
    only, test = (IdList(path, prefer) if path else None for path in (ids, test_ids))
    excluding = [IdList(path, prefer) for path in exclude]
    kept = []
    for row in rows:
        record = row.record
        asked = (row.names, record.source.rpartition(":")[2])
        excluded = [lst for lst in excluding if lst.holds(*asked)]
        unlisted = None if only is None or only.holds(*asked) else only
        if test is not None and test.holds(*asked):
            record = replace(record, split="test")
        elif test is not None and record.split == "test":
            unlisted = test
        if excluded:
            left.append(LeftOut(record.where, record.id, record.split, "excluded", f"in {excluded[0].path}"))
        elif unlisted:
            left.append(LeftOut(record.where, record.id, record.split, "not listed", f"not in {unlisted.path}"))
        else:
            kept.append(replace(row, record=record))
    for lst in (only, test, *excluding):
        if lst is not None:
            summary.lists[str(lst.path)] = (lst.size, lst.not_found)
    return kept


def _find(rows: Sequence[Wanted], folder: SoundFolder, summary: ImportSummary, left: list[LeftOut]) -> list[tuple[Wanted, str, Path]]:
    """Each row with the pattern and the file that was found."""
    found = []
    patterns: Counter[str] = Counter()
    for row in rows:
        record = row.record
        hints = (record.source.rpartition(":")[2], record.split)
        pattern, files = next(((p, files) for p, name in row.files if (files := folder.find(name, hints))), ("", []))
        if not files:
            names = ", ".join(name for _, name in row.files)
            foreign = any(folder.has_foreign(name) for _, name in row.files)
            detail = (
                f"only of a kind that cannot be read; convert it to wav or flac: {names}" if foreign else f"no {names} in {folder.folder}"
            )
            left.append(LeftOut(record.where, record.id, record.split, "missing", detail))
            continue
        if len(files) > 1:
            summary.several.append(f"{record.where}: {', '.join(map(str, files))}")
        patterns[pattern] += 1
        found.append((row, pattern, files[0]))
    summary.patterns = dict(patterns.most_common())
    return found


def _place(
    found: Sequence[tuple[Wanted, str, Path]],
    layout: Layout,
    summary: ImportSummary,
    left: list[LeftOut],
    clips: bool,
    workers: int | None,
    progress: bool,
) -> list[tuple[str, Clip]]:
    """Decide by the length of each file where its clip lies; (place, clip) for each caption."""
    files = list(dict.fromkeys(path for _, _, path in found))
    lengths = dict(zip(files, map_files(sound_seconds, files, workers=workers, progress=progress, description="lengths"), strict=True))
    placed = []
    for row, pattern, path in found:
        record, length = row.record, lengths[path]
        cut = clips or (layout.seconds is not None and ("{start_" in pattern or _no_longer(length, layout.seconds)))
        start, wanted = (0.0 if cut else record.start), (record.duration if layout.seconds is None or cut else layout.seconds)
        if isinstance(length, str):
            fault = ("unreadable", length)
        elif length == 0:
            fault = ("empty", "holds no samples")
        elif length - start < 1e-3:
            fault = ("shorter than its start", f"ends at {length:.3f} s, the clip starts at {start:.3f} s")
        else:
            duration = round(length - start if wanted is None else min(wanted, length - start), 6)
            if wanted is not None and duration < wanted - SHORT:
                summary.shortened.append(f"{record.where}: {path} ends at {length:.3f} s, the clip at {start + wanted:.3f} s")
            if layout.seconds is not None:
                summary.cut, summary.longer = summary.cut + cut, summary.longer + (not cut)
            record = replace(record, start=start, duration=duration, group=record.group or path.stem)
            placed += [(record.where, clip) for clip in record.clips(path)]
            continue
        left.append(LeftOut(record.where, record.id, record.split, fault[0], f"{path}: {fault[1]}"))
    return placed


def _no_longer(length: float | str, seconds: float) -> bool:
    return isinstance(length, float) and length <= seconds + SLACK


def _refuse_faults(left: Sequence[LeftOut], strict: bool, placed: Sequence, summary: ImportSummary) -> None:
    bad = [entry for entry in left if entry.reason in FAULTS]
    if strict and bad:
        raise InputError(f"{bad[0].where}: {bad[0].reason}: {bad[0].detail} ({len(bad)} such rows)")
    if not placed:
        counts = ", ".join(f"{rows} {reason}" for reason, rows in summary.left_out.items())
        first = f"; {bad[0].where}: {bad[0].reason}: {bad[0].detail}" if bad else ""
        hint = "; say how the sounds are called with --pattern" if any(entry.reason == "missing" for entry in bad) else ""
        raise InputError(f"no row gives a clip ({counts}){first}{hint}")


def _count(clips: Sequence[Clip]) -> dict[str, tuple[int, float]]:
    seconds: dict[str, dict[tuple, float]] = defaultdict(dict)
    for clip in clips:
        seconds[clip.split][clip.audio, clip.start] = clip.duration or 0.0
    counts = Counter(clip.split for clip in clips)
    return {split: (count, round(sum(seconds[split].values()) / 3600, 4)) for split, count in counts.items()}
