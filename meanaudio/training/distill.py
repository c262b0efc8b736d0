"""Progressive distillation as a chain of runs: the network of one round teaches the next, which takes half as many steps."""

from __future__ import annotations

from pathlib import Path

from meanaudio import distributed
from meanaudio.checkpoint import read_json
from meanaudio.config import TrainConfig
from meanaudio.distributed import process_group
from meanaudio.errors import InputError
from meanaudio.training.run import own_device, train
from meanaudio.training.state import FACTS, find_training_state


def distill(config: TrainConfig, folder: Path, *, device: str | None = None, progress_bar: bool = True) -> Path | None:
    """Rounds of N = halving.first, N / 2, ... 1 steps in folder/N-steps, each a run as `config` says; returns the last one's export.

    The first round's teacher is the config's; the averaged network of a finished round is teacher and start of the next. Finished rounds
    are left as they are, an interrupted one goes on. None: a signal stopped a round; call again to go on.
    """
    if config.objective.kind != "progressive_distillation":
        raise InputError(f"distill wants objective.kind progressive_distillation, not {config.objective.kind}; for one run use train")
    steps, export = config.objective.halving.first, None
    with process_group(own_device(device), config.loop.rank_timeout):
        while steps >= 1:
            run = folder / f"{steps}-steps"
            train(round_of(config, steps, export), run, device=device, progress_bar=progress_bar)
            distributed.barrier()  # the export is whole
            state = find_training_state(run)
            if state is None or read_json(state / FACTS)["step"] < config.loop.steps:
                return None
            steps, export = steps // 2, run / "export"
    return export


def round_of(config: TrainConfig, steps: int, teacher: Path | None) -> TrainConfig:
    """The config of the round that ends with `steps` steps. teacher: the round before it, None for the first."""
    halving = config.objective.halving.model_copy(update={"steps": steps})
    more = {} if teacher is None else {"teacher": str(teacher)}
    objective = config.objective.model_copy(update={"halving": halving, **more})
    return config.model_copy(update={"objective": objective} | ({} if teacher is None else {"init_from": str(teacher)}))
