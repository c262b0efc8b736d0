"""A training run, or the preparation of its shards, from a config."""

from __future__ import annotations

from pathlib import Path

from meanaudio.config import TrainConfig
from meanaudio.data.prepare import Prepared, prepare
from meanaudio.data.sources import Encoders
from meanaudio.data.worker import Worker
from meanaudio.pipeline import resolve_device
from meanaudio.training.codec import VAETask, VocoderTask
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.loop import Loop

TASKS = {"vae": VAETask, "vocoder": VocoderTask, "generator": GeneratorTask}


def train(config: TrainConfig, folder: Path, *, device: str | None = None, until: int | None = None, progress_bar: bool = True) -> None:
    """Run the task that `config` names in `folder`, resuming what is there."""
    task = TASKS[config.task](config, resolve_device(device))
    Loop(task, config, Path(folder)).run(until=until, progress_bar=progress_bar)


def prepare_for(
    config: TrainConfig,
    manifest: Path,
    out: Path,
    *,
    split: str = "train",
    scenes: int = 0,
    seed: int = 0,
    shard_size: int = 256,
    batch_size: int = 16,
    threads: int = 4,
    worker: Worker | None = None,
    max_left_out: float = 0.01,
    device: str | None = None,
    progress_bar: bool = True,
) -> Prepared:
    """Shards that a run of `config` can read: its codec, text encoder, windows and scene weights. See `prepare`."""
    encoders = Encoders(config, resolve_device(device))
    return prepare(
        manifest,
        out,
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
