"""The list beside a manifest of what is not in it, and why."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meanaudio.checkpoint import write_text


@dataclass(frozen=True)
class LeftOut:
    """A row that gives no clip, and why. where: `file:line`, or the manifest it was in."""

    where: str
    id: str
    split: str
    reason: str
    detail: str


def left_out_path(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.stem}.left-out.tsv")


def write_left_out(manifest: Path, entries: Sequence[LeftOut]) -> None:
    """Write the list; also where nothing was left out, so that no older list stays."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow([f.name for f in dataclasses.fields(LeftOut)])
    writer.writerows(dataclasses.astuple(entry) for entry in entries)
    write_text(left_out_path(manifest), text.getvalue())
