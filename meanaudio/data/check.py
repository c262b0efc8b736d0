"""Read every clip of a manifest and say what is in it and what is wrong."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from meanaudio.data.left_out import LeftOut, write_left_out
from meanaudio.data.manifest import Clip, read_manifest, write_manifest
from meanaudio.data.parallel import map_files
from meanaudio.errors import InputError

SILENCE = 1e-3  # a peak below this is no sound
MIN_SECONDS = 0.1
CLIPPED_LEVEL, CLIPPED_SHARE = 0.999, 0.001
BLOCK_FRAMES = 1 << 18  # read at a time, so that a file of hours needs no more memory than one of seconds
FATAL = ("missing", "unreadable", "empty", "not finite", "past its end", "silent")


@dataclass(frozen=True)
class Inspection:
    """What a stretch of a file holds. rate: Hz, 0 if it cannot be read. content: hash of its samples. faults: (kind, detail)."""

    rate: int = 0
    channels: int = 0
    seconds: float = 0.0
    content: str = ""
    faults: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Report:
    """What is in a manifest. problems: lines by kind, one a stretch of sound; those of FATAL would stop training, the rest are warnings.

    unusable: (kind, detail) of each clip with a fatal problem, by its id.
    """

    path: Path
    clips: int
    files: int
    captions: int
    splits: dict[str, tuple[int, float]]  # clips, and hours of different sound
    rates: dict[int, int]  # files by sample rate
    channels: dict[int, int]
    lengths: tuple[float, float, float]  # seconds of the shortest, the median and the longest stretch
    problems: dict[str, list[str]] = field(default_factory=dict)
    unusable: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.unusable

    @property
    def hours(self) -> float:
        return sum(hours for _, hours in self.splits.values())

    def to_text(self, most: int | None = 20) -> str:
        """Several lines for a reader; at most `most` entries a kind of problem (None: all)."""
        stretch = f"{self.clips} clips of {self.files} files, {self.hours:.3f} h, {self.captions} different captions"
        lines = [f"{self.path}: {stretch}, {self.clips / max(self.files, 1):.2f} clips a file"]
        lines += [f"  {split}: {clips} clips, {hours:.3f} h" for split, (clips, hours) in self.splits.items()]
        lines.append("  rates: " + ", ".join(f"{rate} Hz ({n})" for rate, n in sorted(self.rates.items())))
        lines.append("  channels: " + ", ".join(f"{channels} ({n})" for channels, n in sorted(self.channels.items())))
        lines.append("  seconds: {:.3f} the shortest, {:.3f} the median, {:.3f} the longest".format(*self.lengths))
        for kind, entries in self.problems.items():
            lines.append(f"  {kind} ({len(entries)}):")
            lines += [f"    {entry}" for entry in entries[:most]]
            if most is not None and len(entries) > most:
                lines.append(f"    … and {len(entries) - most} more")
        return "\n".join([*lines, "  no problems" if not self.problems else f"  {'usable' if self.ok else 'NOT usable'}"])


def check_manifest(
    path: str | Path,
    columns: Mapping[str, str | None] | None = None,
    *,
    out: Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Decode every clip of a manifest, on `workers` threads, and report what is in it. Rows that cannot be read at all raise InputError.

    out: write a manifest of the usable clips there, and the list of the others beside it.
    """
    clips = read_manifest(path, columns)
    stretches: dict[tuple, Clip] = {}  # several captions of one stretch are read once
    for clip in clips:
        stretches.setdefault(_stretch(clip), clip)
    seen = map_files(inspect, list(stretches.values()), workers=workers, progress=progress, description="check")
    report = _report(Path(path), clips, dict(zip(stretches, seen, strict=True)))
    if out is not None:
        usable = [clip for clip in clips if clip.id not in report.unusable]
        if not usable:
            raise InputError(f"{path}: no clip is usable; the first: {clips[0].audio}: {' '.join(report.unusable[clips[0].id])}")
        others = [
            LeftOut(str(path), c.id, c.split, fault[0], f"{c.audio}{fault[1]}") for c in clips if (fault := report.unusable.get(c.id))
        ]
        write_left_out(out, others)
        write_manifest(out, usable)
    return report


def _stretch(clip: Clip) -> tuple:
    return clip.audio, clip.start, clip.duration


def _report(path: Path, clips: Sequence[Clip], found: Mapping[tuple, Inspection]) -> Report:
    problems: dict[str, list[str]] = defaultdict(list)
    unusable: dict[str, tuple[str, str]] = {}
    by_content: dict[str, Clip] = {}  # the first clip that holds it
    by_file: dict[Path, Inspection] = {}
    hours: dict[str, dict[tuple, float]] = defaultdict(dict)
    for clip in clips:
        stretch = _stretch(clip)
        seen = found[stretch]
        if fatal := next((fault for fault in seen.faults if fault[0] in FATAL), None):
            unusable[clip.id] = fatal
        if stretch in hours[clip.split]:  # another caption of it
            continue
        hours[clip.split][stretch] = seen.seconds / 3600
        for kind, detail in seen.faults:
            problems[kind].append(f"{clip.id}: {clip.audio}{detail}")
        if seen.content and (first := by_content.setdefault(seen.content, clip)) is not clip:
            if first.split == clip.split:
                problems["duplicated"].append(f"{clip.id}: {clip.audio} holds the same as {first.id}")
            else:
                problems["in two splits"].append(f"{clip.id} ({clip.split}): {clip.audio} holds the same as {first.id} ({first.split})")
        if seen.rate or clip.audio not in by_file:
            by_file[clip.audio] = seen
    readable = [seen for seen in by_file.values() if seen.rate]
    lengths = sorted(seen.seconds for seen in found.values() if seen.seconds) or [0.0]
    counts = Counter(clip.split for clip in clips)
    return Report(
        path,
        clips=len(clips),
        files=len(by_file),
        captions=len({clip.caption for clip in clips}),
        splits={split: (count, sum(hours[split].values())) for split, count in counts.items()},
        rates=dict(Counter(seen.rate for seen in readable)),
        channels=dict(Counter(seen.channels for seen in readable)),
        lengths=(lengths[0], statistics.median(lengths), lengths[-1]),
        problems=dict(problems),
        unusable=unusable,
    )


def inspect(clip: Clip) -> Inspection:
    """Decode a clip to its end and say what is in it; never raises for a file that is bad."""
    if not clip.audio.is_file():
        return Inspection(faults=(("missing", ""),))
    try:
        with soundfile.SoundFile(clip.audio) as file:
            return _inspect(file, clip)
    except (soundfile.LibsndfileError, RuntimeError, EOFError, OSError) as error:
        return Inspection(faults=(("unreadable", f": {error}"),))


def _inspect(file: soundfile.SoundFile, clip: Clip) -> Inspection:
    rate, channels, length = file.samplerate, file.channels, file.frames
    first = round(clip.start * rate)
    frames = length - first if clip.duration is None else round(clip.duration * rate)
    if length == 0:
        return Inspection(rate, channels, faults=(("empty", ": holds no samples"),))
    if first >= length or first + frames > length + 2:  # a frame of rounding at either end is no fault
        ends = f": ends at {length / rate:.3f} s, the clip at {(first + frames) / rate:.3f} s"
        return Inspection(rate, channels, faults=(("past its end", ends),))
    frames = min(frames, length - first)
    file.seek(first)
    digest = hashlib.sha256(f"{rate} {channels}".encode())
    done, peak, clipped, finite = 0, 0.0, 0, True
    while done < frames:
        block = file.read(min(BLOCK_FRAMES, frames - done), dtype="float32", always_2d=True)
        if not len(block):
            break
        done += len(block)
        digest.update(block)
        level = np.abs(block)
        peak = max(peak, float(level.max()))
        clipped += int((level >= CLIPPED_LEVEL).sum())
        finite = finite and bool(np.isfinite(level).all())
    if done == 0:
        return Inspection(rate, channels, faults=(("unreadable", ": nothing in it can be decoded"),))
    seconds, share = done / rate, clipped / max(done * channels, 1)
    faults = []
    if not finite:
        faults.append(("not finite", ": holds NaN or infinite samples"))
    elif peak < SILENCE:
        faults.append(("silent", f": its peak is below {SILENCE}"))
    elif share > CLIPPED_SHARE:
        faults.append(("clipped", f": {share:.1%} of its samples are at full scale"))
    if done < frames:
        faults.append(("truncated", f": ends at {(first + done) / rate:.3f} s, its header says {length / rate:.3f} s"))
    elif missing := _missing_bytes(clip.audio):
        faults.append(("truncated", f": {missing} bytes fewer than its header says"))
    if seconds < MIN_SECONDS:
        faults.append(("too short", f": {seconds:.3f} s"))
    return Inspection(rate, channels, seconds, digest.hexdigest(), tuple(faults))


def _missing_bytes(path: Path) -> int:
    """How many bytes a wav file lacks: its reader makes do with what is there and says nothing."""
    with path.open("rb") as file:
        head = file.read(8)
        size = int.from_bytes(head[4:], "little") + 8
        lacks = size - os.fstat(file.fileno()).st_size
    streamed = size >= 0xFFFFFFFF  # written to a pipe: the size was not known
    return max(lacks, 0) if head.startswith(b"RIFF") and not streamed else 0
