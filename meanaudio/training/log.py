"""A run's numbers: one JSON object a line in log.jsonl, and tensorboard events where tensorboard is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meanaudio import distributed
from meanaudio.checkpoint import write_text


class RunLog:
    """Appends to folder/log.jsonl. Rows of steps after `from_step`, left by a run that was killed, are dropped first."""

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        self.path = folder / "log.jsonl"
        if self.path.exists():
            rows = [row for row in _all_rows(folder) if row["step"] <= from_step]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_text(self.path, text)
        self.file = self.path.open("a", encoding="utf-8")
        self.board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._append({"step": step, **{k: float(v) for k, v in values.items()}})
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(key, value, step)

    def note(self, step: int, text: str) -> None:
        """A line of words: what somebody who reads the numbers later should know."""
        self._append({"step": step, "note": text})

    def show(self, step: int, samples: Path) -> None:
        """Put the sounds and pictures of a folder into tensorboard."""
        if self.board is None:
            return
        from matplotlib.image import imread
        from soundfile import read

        for path in sorted(samples.glob("*.wav")):
            audio, rate = read(path, dtype="float32")
            self.board.add_audio(f"samples/{path.stem}", audio[None], step, sample_rate=rate)
        for path in sorted(samples.glob("*.png")):
            self.board.add_image(f"samples/{path.stem}", imread(path)[..., :3], step, dataformats="HWC")

    def _append(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


class NoLog(RunLog):
    """The log of the processes that write none."""

    def __init__(self) -> None:
        self.board = None

    def _append(self, row: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def open_log(folder: Path, from_step: int) -> RunLog:
    return RunLog(folder, from_step) if distributed.is_main() else NoLog()


def read_log(folder: Path) -> list[dict[str, float]]:
    """All rows of numbers in a run's log.jsonl; a last line cut off by a kill is left out."""
    return [row for row in _all_rows(folder) if "note" not in row]


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """The rows of words: {"step": 6, "note": "..."}."""
    return [row for row in _all_rows(folder) if "note" in row]


def _all_rows(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def mean_numbers(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each number over those rows that have it."""
    keys = dict.fromkeys(key for row in rows for key in row)
    found = {key: [row[key] for row in rows if key in row] for key in keys}
    return {key: sum(values) / len(values) for key, values in found.items()}
