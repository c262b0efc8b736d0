"""Training what a study plans. Any number of processes may do it in one folder: each run is claimed by one of them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meanaudio.checkpoint import read_json, write_json
from meanaudio.errors import TrainingDiverged
from meanaudio.study.plan import Run
from meanaudio.training.distill import distill
from meanaudio.training.run import train
from meanaudio.training.state import FACTS, find_training_state

DIVERGED = "diverged.json"  # in a run's folder: why there is no result of it, and never will be
CLAIM = ".claim"


@contextmanager
def claimed(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone now works in `folder`; the system frees it when the process ends, however that is.

    wait: until it does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CLAIM).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def finished(run: Run) -> bool:
    """Whether the run made all its steps."""
    state = find_training_state(run.folder / "1-steps" if run.rounds else run.folder)
    return state is not None and read_json(state / FACTS)["step"] == run.config.loop.steps and run.export.is_dir()


def divergence(run: Run) -> str | None:
    """Why the run, or one before it, came to no end; None if that is not so."""
    file = run.folder / DIVERGED
    if file.is_file():
        return str(read_json(file)["reason"])
    return divergence(run.after) if run.after else None


def train_run(run: Run, *, device: str | None = None, progress_bar: bool = True) -> bool:
    """Train, or go on; a loss that is not finite is written down and ends the run for good. False: a signal stopped it."""
    try:
        if run.rounds:
            distill(run.config, run.folder, device=device, progress_bar=progress_bar)
        else:
            train(run.config, run.folder, device=device, progress_bar=progress_bar)
    except TrainingDiverged as error:
        write_json(run.folder / DIVERGED, {"reason": str(error)})
        return True
    return finished(run)
