"""Which clips are compared: reading, choosing, pairing, and bringing all of them to one length and level."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from meanaudio.audio import AUDIO_SUFFIXES, file_facts, fit, limit_peak, load_audio, match_level, read_metadata, save_audio
from meanaudio.checkpoint import file_hash, write_text
from meanaudio.data.manifest import MANIFEST_SUFFIXES, Clip, read_manifest
from meanaudio.errors import InputError

T = TypeVar("T")
Key = Callable[[Clip], str]
LISTED = 10  # names shown of a longer list


@dataclass(frozen=True)
class Sound:
    """One clip to be measured. name: unique in its set. pair: name of its reference. path: the file that is listened to."""

    name: str
    path: Path
    caption: str
    pair: str = ""


@dataclass(frozen=True)
class SoundSet:
    """label: its row in tables. failed: (name, reason) of clips that could not be read. facts: how it was made."""

    label: str
    sounds: list[Sound]
    failed: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def without(self, failed: Sequence[tuple[str, str]]) -> SoundSet:
        """Take out what has turned out to be unreadable."""
        names = {name for name, _ in failed}
        return replace(self, sounds=[s for s in self.sounds if s.name not in names], failed=[*self.failed, *failed])


@dataclass(frozen=True)
class Treatment:
    """What is done to every clip of every set alike. duration: seconds, cut or zero-padded at the end; level_db: as in audio.match_level.

    None leaves a clip as it comes.
    """

    duration: float | None = None
    level_db: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        return {"duration": self.duration, "level_db": self.level_db}


def read_clips(path: Path) -> list[Clip]:
    """Clips of a manifest, or of a folder: its manifest.jsonl, otherwise every sound below it, named after its path, without a caption."""
    path = Path(path)
    if not path.is_dir() or (path / "manifest.jsonl").is_file():
        if not path.is_dir() and path.suffix.lower() not in MANIFEST_SUFFIXES:
            raise InputError(f"{path}: neither a folder of sounds nor a manifest ({', '.join(MANIFEST_SUFFIXES)})")
        return read_manifest(path)
    clips = []
    for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file() and not p.name.startswith(".")):
        text = file.with_suffix(".txt")
        caption = " ".join(text.read_text(encoding="utf-8-sig").split()) if text.is_file() else ""
        clips.append(Clip(file.relative_to(path).with_suffix("").as_posix(), file, caption))
    if not clips:
        raise InputError(f"{path}: holds no manifest.jsonl and no sound ({', '.join(AUDIO_SUFFIXES)})")
    _refuse_repeats([clip.id for clip in clips], str(path))
    return clips


def choose(clips: Sequence[Clip], *, splits: Sequence[str] = (), limit: int | None = None, source: object = "") -> list[Clip]:
    """Rows of `splits` (all if none is named), at most `limit`, taken at even distances so that they stand for all."""
    chosen = [clip for clip in clips if not splits or clip.split in splits]
    if not chosen:
        known = ", ".join(f"{split} ({n})" for split, n in Counter(clip.split for clip in clips).items())
        raise InputError(f"{source}: no clip of split {' or '.join(splits)}; there are {known}")
    return evenly(chosen, limit)


def evenly(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` items at even distances."""
    return list(items) if limit is None or limit >= len(items) else [items[k * len(items) // limit] for k in range(limit)]


def one_a_recording(clips: Sequence[Clip]) -> list[Clip]:
    """The first row of every stretch of audio: where a recording has several captions, one stands for it."""
    first: dict[tuple[Path, float, float | None], Clip] = {}
    for clip in clips:
        first.setdefault((clip.audio, clip.start, clip.duration), clip)
    return list(first.values())


def by_key(clips: Sequence[Clip], key: Key, source: object) -> dict[str, Clip]:
    keys = [key(clip) for clip in clips]
    _refuse_repeats(keys, str(source))
    return dict(zip(keys, clips, strict=True))


def matching(wanted: Sequence[str], there: Sequence[str], sources: tuple[object, object], *, both_ways: bool, lenient: bool) -> list[str]:
    """Names of `wanted` that are `there`, in order. sources: where either came from.

    Raises InputError that lists the others, unless `lenient`; `both_ways` asks for the same names on both sides.
    """
    missing = sorted(set(wanted) - set(there))
    extra = sorted(set(there) - set(wanted)) if both_ways else []
    parts = [f"{len(missing)} of {sources[0]} are not in {sources[1]}: {some(missing)}"] if missing else []
    parts += [f"{len(extra)} of {sources[1]} are not in {sources[0]}: {some(extra)}"] if extra else []
    if parts and not lenient:
        raise InputError(f"names do not match: {'; '.join(parts)}. --allow-missing compares what both have, --unpaired needs no names")
    found = set(there)
    kept = [name for name in wanted if name in found]
    if not kept:
        raise InputError(f"no name in common: {'; '.join(parts)}")
    return kept


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _refuse_repeats(names: Sequence[str], source: str) -> None:
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise InputError(f"{source}: several clips are called {some(repeated)}; names must differ")


def stem_of(name: str) -> str:
    """A file name for any id, different for different ids: the id itself where it is harmless."""
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def treat(label: str, clips: Mapping[str, Clip], folder: Path, treatment: Treatment, progress_bar: bool = False) -> SoundSet:
    """Bring every clip to `treatment`: a file that needs nothing is listened to where it lies, the others are written below `folder`.

    Written clips keep their own sample rate, mono. Those that cannot be read are listed in `failed`. facts: rates, lengths, what was done.
    """
    sounds, failed = [], []
    done: Counter[str] = Counter()
    rates: Counter[int] = Counter()
    lengths: list[float] = []
    for name, clip in tqdm(clips.items(), label, disable=not progress_bar, leave=False):
        try:
            rate, seconds = file_facts(clip.audio)
            path, changes, length = _treat_one(clip, rate, seconds, folder / f"{stem_of(name)}.wav", treatment)
        except InputError as error:
            failed.append((name, str(error)))
            continue
        done.update(changes)
        rates[rate] += 1
        lengths.append(length)
        sounds.append(Sound(name, path, clip.caption, name))
    facts = {
        "clips": len(sounds),
        "rates": {str(rate): n for rate, n in sorted(rates.items())},
        "seconds": {"least": min(lengths, default=0.0), "most": max(lengths, default=0.0), "sum": sum(lengths)},
        "treated": dict(done),
    }
    return SoundSet(label, sounds, failed, facts)


def _treat_one(clip: Clip, rate: int, seconds: float, target: Path, treatment: Treatment) -> tuple[Path, list[str], float]:
    """(file to listen to, what was changed, seconds before it was cut or padded)."""
    length = min(seconds - clip.start, clip.duration or float("inf"))
    if length <= 0:
        raise InputError(f"{clip.audio}: start {clip.start} s is past its end ({seconds:.3f} s)")
    wanted = treatment.duration
    changes = []
    if wanted is not None and round(wanted * rate) != round(length * rate):
        changes.append("cut" if wanted < length else "padded")
    if clip.start > 0 or round(length * rate) < round(seconds * rate):
        changes.append("excerpt")
    if treatment.level_db is not None:
        changes.append("level")
    if not changes:
        return clip.audio, [], length
    facts = {"of": file_hash(clip.audio), "start": clip.start, "length": clip.duration, **treatment.facts}
    if not same_metadata(target, facts):
        audio = load_audio(clip.audio, rate, clip.start, clip.duration)
        audio = audio if wanted is None else fit(audio, round(wanted * rate))
        if treatment.level_db is not None:
            audio = match_level(audio[None], treatment.level_db, rate)[0]
        save_audio(target, limit_peak(audio, 1.0), rate, facts)
    return target, changes, length


def same_metadata(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether an earlier run wrote this file with these facts."""
    if not path.is_file():
        return False
    try:
        found = read_metadata(path)
    except (OSError, InputError):
        return False
    plain = json.loads(json.dumps(dict(facts)))
    return all(key in found and found[key] == value for key, value in plain.items())


def other_recordings(references: Mapping[str, Clip], clips: Sequence[Clip], seed: int) -> dict[str, Clip] | None:
    """For every reference another recording of the same caption, from clips that are no references nor of their groups.

    None if some caption has none.
    """
    taken = {(clip.audio, clip.start) for clip in references.values()}
    groups = {clip.group for clip in references.values()} - {""}
    spare: dict[str, list[Clip]] = {}
    for clip in one_a_recording(clips):
        if (clip.audio, clip.start) not in taken and clip.group not in groups:
            spare.setdefault(clip.caption, []).append(clip)
    if not all(clip.caption and clip.caption in spare for clip in references.values()):
        return None
    draw = random.Random(seed)
    for same in spare.values():
        draw.shuffle(same)
    turns = {caption: itertools.cycle(same) for caption, same in spare.items()}  # all of a caption's before one comes twice
    return {name: next(turns[clip.caption]) for name, clip in references.items()}


def halves(sounds: Sequence[Sound], seed: int) -> tuple[list[Sound], list[Sound]]:
    """Two random halves; a middle one too many is left out."""
    order = list(sounds)
    random.Random(seed).shuffle(order)
    half = len(order) // 2
    return order[:half], order[half : 2 * half]


def names_hash(names: Iterable[str]) -> str:
    """sha256 of a list of names in sorted order: says which clips a number is over."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as jsonl."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, with slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()
