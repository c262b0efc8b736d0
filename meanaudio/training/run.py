"""A training run, or the preparation of its shards, from a config."""

from __future__ import annotations

from pathlib import Path

from meanaudio.codec.codec import Codec, load_vae
from meanaudio.config import TrainConfig
from meanaudio.data.prepare import prepare
from meanaudio.distributed import Environment, process_group
from meanaudio.errors import InputError
from meanaudio.pipeline import resolve_device
from meanaudio.text import make_encoder
from meanaudio.training.codec import VAETask, VocoderTask
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.loop import Loop
from meanaudio.training.tagger import TaggerTask

TASKS = {"vae": VAETask, "vocoder": VocoderTask, "generator": GeneratorTask, "tagger": TaggerTask}


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
    if config.task != "generator" and (loop.accumulate > 1 or loop.compile):
        raise InputError(f"loop.accumulate and loop.compile are for the generator, not for task {config.task!r}")
    where = resolve_device(device)
    if where.type == "cuda" and where.index is None and here.size > 1:
        where = resolve_device(f"cuda:{here.local_rank}")
    with process_group(where, loop.rank_timeout):
        task = TASKS[config.task](config, where)
        Loop(task, config, Path(folder)).run(until=until, progress_bar=progress_bar, allow_changes=allow_changes)


def prepare_for(
    config: TrainConfig, manifest: Path, out: Path, *, split: str, scenes: int, seed: int, device: str | None, progress_bar: bool
) -> int:
    """Shards that a run of `config` can read: its codec, text encoder, window length and scene weights."""
    if config.codec_from is None:
        raise InputError("the config's codec_from must name a folder with a trained VAE")
    folder = Path(config.codec_from)
    where = resolve_device(device)
    vae, codec_config = load_vae(folder)
    codec = Codec(codec_config, vae)
    return prepare(
        manifest,
        out,
        codec=codec.to(where),
        codec_folder=folder,
        encoder=make_encoder(config.text.encoder, max_tokens=config.text.max_tokens, device=str(where)),
        text=config.text,
        seconds=config.seconds,
        split=split,
        scenes=scenes,
        scene_config=config.scenes,
        seed=seed,
        progress_bar=progress_bar,
    )
