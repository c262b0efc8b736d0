"""A training run, or the preparation of its shards, from a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from meanaudio.config import TrainConfig
from meanaudio.data.items import read_split
from meanaudio.data.prepare import Prepared, prepare
from meanaudio.data.sources import Encoders
from meanaudio.data.worker import Worker
from meanaudio.distributed import Environment, process_group
from meanaudio.errors import InputError
from meanaudio.memory import keep_freed_memory
from meanaudio.pipeline import resolve_device
from meanaudio.precision import DTYPES, warn_if_slow
from meanaudio.training.codec import VAETask, VocoderTask
from meanaudio.training.decoder import DecoderTask
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.judge import JudgeTask
from meanaudio.training.loop import Loop, Task
from meanaudio.training.scorer import ScorerTask
from meanaudio.training.tagger import TaggerTask

TASKS: dict[str, Callable[[TrainConfig, torch.device], Task]] = {
    "vae": VAETask,
    "vocoder": VocoderTask,
    "decoder": DecoderTask,
    "generator": GeneratorTask,
    "tagger": TaggerTask,
    "scorer": ScorerTask,
    "judge": JudgeTask,
}


def train(
    config: TrainConfig,
    folder: Path,
    *,
    device: str | None = None,
    until: int | None = None,
    progress_bar: bool = True,
    allow_changes: bool = False,
) -> None:
    """Run the task that `config` names in `folder`, resuming what is there; under torchrun as one of several processes.

    Without `device` a process takes the GPU of its number on the machine. Raises InputError, TrainingDiverged or RankLost.
    """
    here, loop = Environment.read(), config.loop
    if here.size > 1 and (config.task != "generator" or loop.parallel == "none"):
        told = f"task {config.task!r}, loop.parallel {loop.parallel!r}"
        raise InputError(f"{here.size} processes: {told}; only the generator is trained on several, by ddp or fsdp")
    if config.task != "generator" and (loop.accumulate > 1 or loop.compile or loop.checkpoint_activations or config.loading.resident):
        told = "loop.accumulate, compile and checkpoint_activations and loading.resident"
        raise InputError(f"{told} are for the generator, not for task {config.task!r}")
    where = own_device(device)
    warn_if_slow(DTYPES[loop.precision], where)
    if where.type == "cpu":
        keep_freed_memory()
    with process_group(where, loop.rank_timeout):
        # No name for the task: what holds the group, such as a DDP module, must be gone when the group is left.
        Loop(TASKS[config.task](config, where), config, Path(folder)).run(
            until=until, progress_bar=progress_bar, allow_changes=allow_changes
        )


def own_device(device: str | None) -> torch.device:
    """As `resolve_device`, but of several processes on a machine each takes the GPU of its number."""
    where, here = resolve_device(device), Environment.read()
    if where.type == "cuda" and where.index is None and here.size > 1:
        where = resolve_device(f"cuda:{here.local_rank}")
    return where


def prepare_for(
    config: TrainConfig,
    manifest: Path,
    out: Path,
    *,
    splits: Sequence[str] = ("train",),
    scenes: int = 0,
    seed: int = 0,
    shard_size: int = 256,
    batch_size: int = 16,
    threads: int = 4,
    worker: Worker | None = None,
    max_left_out: float = 0.01,
    device: str | None = None,
    progress_bar: bool = True,
) -> Iterator[Prepared]:
    """Shards that a run of `config` can read: its codec, text encoder, windows and scene weights. See `prepare`.

    One split goes to `out` itself, several to folders of their names in it, one after the other.
    """
    encoders = Encoders(config, own_device(device))
    if twice := sorted({split for split in splits if splits.count(split) > 1}):
        raise InputError(f"split {twice[0]!r} is asked for twice")
    for split in splits:
        read_split(manifest, split)  # none of them may turn out to be missing after hours on the one before it
    for split in splits:
        yield prepare(
            manifest,
            out if len(splits) == 1 else out / split,
            codec=encoders.codec,
            codec_folder=encoders.folder,
            encoder=None if config.encode_text else encoders.text,
            text=config.text,
            seconds=config.seconds,
            split=split,
            windows=config.windows,
            scenes=scenes,
            scene_config=config.scenes,
            seed=seed,
            shard_size=shard_size,
            batch_size=batch_size,
            threads=threads,
            worker=worker,
            max_left_out=max_left_out,
            progress_bar=progress_bar,
        )
