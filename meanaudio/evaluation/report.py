"""What an evaluation found: as JSON with every fact that makes a number, and as tables to read."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from meanaudio.evaluation.clips import Sound, SoundSet, names_hash, relative
from meanaudio.evaluation.features import NUMBERS
from meanaudio.evaluation.hearing import Hearing
from meanaudio.evaluation.signal import FAULTS, Signal

DIRECTION = "KL(reference || output)"
NEAR_DUPLICATE = 0.9999  # least cosine of embeddings
QUIET_DB = -45.0  # an output that came quieter is counted: its noise is raised with it

# what clips.treat does
DONE = {"cut": "cut", "padded": "zero-padded", "excerpt": "a stretch of a longer file", "level": "brought to the level"}

Kind = Literal["references", "outputs", "codec", "floor", "chance"]


@dataclass
class Row:
    """One line of the tables: a set of clips, and what it is compared with. paired: each clip has its own reference.

    By extractor: numbers (keys of features.NUMBERS), clip_numbers (the same of single clips), counts (rows behind the Fréchet distance, of
    either side), alike (pairs of clips whose embeddings all but agree). quiet: outputs below QUIET_DB before they were levelled; None
    where nobody knows.
    """

    made: SoundSet
    kind: Kind
    against: SoundSet | None = None
    paired: bool = True
    signals: dict[str, Signal] = field(default_factory=dict)
    quiet: list[str] | None = None
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    clip_numbers: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    alike: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.made.label

    def faulty(self, fault: str) -> list[str]:
        """Names of clips with one of signal.FAULTS."""
        return [name for name, signal in self.signals.items() if fault in signal.faults]

    def duplicates(self) -> list[list[str]]:
        """Groups of clips that hold exactly the same samples."""
        groups: dict[str, list[str]] = {}
        for name, signal in self.signals.items():
            groups.setdefault(signal.digest, []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def median(self, of: Callable[[Signal], float]) -> float:
        return statistics.median(of(signal) for signal in self.signals.values())

    def to_json(self) -> dict[str, Any]:
        common: dict[str, Any] = {"label": self.label, "kind": self.kind, "clips": len(self.made.sounds), "numbers": self.numbers}
        if self.kind == "chance":
            return common
        digests = "".join(f"{name} {self.signals[name].digest}\n" for name in sorted(self.signals))
        return common | {
            "frechet_rows": {name: list(counts) for name, counts in self.counts.items()},
            "paired": self.paired and self.against is not None,
            "names_sha256": names_hash(sound.name for sound in self.made.sounds),
            "samples_sha256": hashlib.sha256(digests.encode()).hexdigest(),
            "made": self.made.facts,
            "unreadable": [{"name": name, "reason": reason} for name, reason in self.made.failed],
            "signal": {
                **{fault: self.faulty(fault) for fault in FAULTS},
                "quiet": self.quiet,
                "duplicates": self.duplicates(),
                "near_duplicates": {name: [list(pair) for pair in pairs] for name, pairs in self.alike.items()},
                "level_db": self.median(lambda s: s.level_db),
                "bandwidth_hz": self.median(lambda s: s.bandwidth),
            },
        }


@dataclass(frozen=True)
class Report:
    """facts: of the whole evaluation. notes: what must be known before a number is compared with another."""

    facts: dict[str, Any]
    rows: list[Row]
    notes: list[str]

    @property
    def extractors(self) -> list[dict[str, Any]]:
        return self.facts["extractors"]

    def to_json(self) -> dict[str, Any]:
        return {**self.facts, "rows": [row.to_json() for row in self.rows], "notes": self.notes}

    def to_text(self) -> str:
        """Facts, one table an extractor, signal checks, notes."""
        blocks = [self.facts_text()]
        for extractor in self.extractors:
            classes = f", {extractor['classes']} classes" if extractor["classes"] else ""
            head = (
                f"{extractor['name']}: {extractor['dim']} dimensions{classes}, {extractor['sample_rate']} Hz, "
                f"fingerprint {extractor['weights'][:12]}; KL is {DIRECTION}"
            )
            blocks.append(f"{head}\n{as_text(*self.numbers_table(extractor['name']))}")
        blocks.append(as_text(*self.signal_table()))
        blocks += [f"note: {note}" for note in self.notes]
        return "\n\n".join(blocks)

    def facts_text(self) -> str:
        checkpoint, treatment, references = self.facts["checkpoint"], self.facts["treatment"], self.facts["references"]
        lines = [f"meanaudio {self.facts['meanaudio']}" + (f", protocol {self.facts['protocol']}" if self.facts["protocol"] else "")]
        if checkpoint is not None:
            first, last = next((row.made.facts["seeds"] for row in self.rows if "seeds" in row.made.facts), (None, None))
            seeds = "" if first is None else f", seeds {first} to {last}"
            lines.append(f"checkpoint {checkpoint['name']}, sha256 {checkpoint['sha256'][:12]}, {checkpoint['dtype']}{seeds}")
        if references is not None:
            rates = ", ".join(f"{rate} Hz ({n})" for rate, n in references["rates"].items())
            length = references["seconds"]
            splits = f" of split {' and '.join(references['splits'])}" if references["splits"] else ""
            spread = f"{length['least']:.2f} to {length['most']:.2f} s, {length['sum']:.1f} s in all"
            lines.append(f"{references['clips']} references{splits} (names {references['names_sha256'][:12]}): {rates}; {spread}")
            if references["treated"]:
                lines.append("  of them " + ", ".join(f"{n} {DONE[what]}" for what, n in references["treated"].items()))
        for name, stored in (self.facts["stored_references"] or {}).items():
            lines.append(f"stored references for {name}: {stored.get('clips')} clips (names {str(stored.get('names_sha256'))[:12]})")
        length = "as it comes" if treatment["duration"] is None else f"cut or zero-padded to {treatment['duration']:g} s"
        level = "as loud as it comes" if treatment["level_db"] is None else f"brought to {treatment['level_db']:g} dBFS"
        lines.append(f"every clip, output or reference: {length}, {level}; resampled to each extractor's rate")
        lines.append(f"heard {Hearing(**self.facts['hearing']).to_text()}")
        return "\n".join(lines)

    def numbers_table(self, extractor: str) -> tuple[list[str], list[list[str]]]:
        """(heads, cells) of one extractor's numbers."""
        found = {key for row in self.rows for key in row.numbers.get(extractor, {})}
        keys = [key for key in NUMBERS if key in found]
        cells = []
        for row in self.rows:
            count = row.counts.get(extractor, (0, 0))
            rows = f"{count[0]}/{count[1]}" if count[1] else "–"
            numbers = row.numbers.get(extractor, {})
            cells.append([row.label, str(len(row.made.sounds)), rows, *(_number(numbers.get(key)) for key in keys)])
        return ["", "clips", "rows", *(NUMBERS[key][0] for key in keys)], cells

    def signal_table(self) -> tuple[list[str], list[list[str]]]:
        """(heads, cells) of the signal checks: numbers of clips, then medians."""
        first = self.extractors[0]["name"] if self.extractors else ""
        cells = []
        for row in self.rows:
            if row.kind == "chance":
                continue
            counts = [len(row.made.failed), *(len(row.faulty(fault)) for fault in FAULTS)]
            quiet = "–" if row.quiet is None else str(len(row.quiet))
            same = sum(len(names) - 1 for names in row.duplicates())
            levels = (f"{row.median(lambda s: s.level_db):.1f}", f"{row.median(lambda s: s.bandwidth) / 1000:.2f}")
            cells.append([row.label, *map(str, counts), quiet, str(same), str(len(row.alike.get(first, ()))), *levels])
        return ["", "unreadable", *FAULTS, "quiet", "same", "alike", "dBFS", "kHz"], cells

    def clip_rows(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Every clip's own numbers, for clips.jsonl; paths as seen from `folder`."""
        for row in self.rows:
            if row.kind == "chance":
                continue
            for sound in row.made.sounds:
                signal = asdict(row.signals[sound.name])
                numbers = {name: clips[sound.name] for name, clips in row.clip_numbers.items() if clips.get(sound.name)}
                names = {"row": row.label, "name": sound.name, "caption": sound.caption, "audio": relative(sound.path, folder)}
                yield names | {"faults": row.signals[sound.name].faults} | signal | numbers

    def sound(self, row: Row, pair: str) -> Sound | None:
        """The first clip of `row` that belongs to the reference called `pair`."""
        return next((sound for sound in row.made.sounds if sound.pair == pair), None)


def as_text(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in (heads, *cells)) for k in range(len(heads))]
    lines = [
        [cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in (heads, *cells)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
