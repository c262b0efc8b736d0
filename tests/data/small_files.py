"""Small files that the tests of manifests and imports write."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import soundfile

from meanaudio.data.importer import import_tables
from meanaudio.data.manifest import read_manifest

AUDIOCAPS_IDS = ["-BUWGM7qeUM", "_9mgOkzm-xg", "3rna9zo5ZOs", "1a2XWJ8NA_Q"]
AUDIOCAPS_HEADER = "audiocap_id,youtube_id,start_time,caption\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def tone(path: Path, seconds=0.5, rate=8000, level=0.5, channels=1, frequency=440) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def audiocaps(folder, name="train", rows=None):
    """A csv of one row an id: captions "caption 0", …, starts 30, 40, …"""
    rows = rows or [(i, name_, 30 + 10 * i, f"caption {i}") for i, name_ in enumerate(AUDIOCAPS_IDS)]
    return write(folder / f"{name}.csv", AUDIOCAPS_HEADER + "".join(",".join(map(str, row)) + "\n" for row in rows))


def imported(folder, layout, *tables, audio="audio", **options):
    """(summary, clips, lines of what was left out) of an import into `folder`/out."""
    out = folder / "out" / "manifest.jsonl"
    summary = import_tables(layout, list(tables), out, folder / audio, **options)
    with (out.parent / "manifest.left-out.tsv").open(encoding="utf-8", newline="") as file:
        left = list(csv.DictReader(file, delimiter="\t"))
    assert summary.left_out == {reason: sum(row["reason"] == reason for row in left) for reason in {row["reason"] for row in left}}
    assert json.loads((out.parent / "manifest.import.json").read_text(encoding="utf-8"))["clips"] == summary.clips
    return summary, read_manifest(out), left
