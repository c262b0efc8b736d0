"""A run's numbers: one JSON object a line in log.jsonl, and tensorboard events where tensorboard is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meanaudio.checkpoint import write_text


class RunLog:
    """Appends to folder/log.jsonl. Rows of steps after `from_step`, left by a run that was killed, are dropped first."""

    def __init__(self, folder: Path, from_step: int = 0) -> None:
        self.path = folder / "log.jsonl"
        if self.path.exists():
            rows = [row for row in read_log(folder) if row["step"] <= from_step]
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
        self.file.write(json.dumps({"step": step, **{k: float(v) for k, v in values.items()}}) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(key, value, step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def read_log(folder: Path) -> list[dict[str, float]]:
    """All whole rows of a run's log.jsonl; a last line cut off by a kill is left out."""
    rows = []
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
