"""What tasks share that listen to a generator's shards: the two splits, batches of noisy latents, the network's beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from meanaudio.config import TrainConfig
from meanaudio.data.order import epoch_order
from meanaudio.data.shards import ShardDataset
from meanaudio.data.sources import check_codec
from meanaudio.errors import InputError
from meanaudio.models.listener import Listener
from meanaudio.training.channels import latent_scale
from meanaudio.types import LatentBatch

CHUNK = 256  # held-out items at a time

L = TypeVar("L", bound=Listener)


def open_splits(config: TrainConfig) -> tuple[ShardDataset, ShardDataset]:
    """Shards train/ and val/ of `config.data`. Raises InputError if they, or with `latent_gain` codec_from, have different codecs."""
    train, held_out = (ShardDataset(Path(config.data) / name) for name in ("train", "val"))
    if train.index["codec_hash"] != held_out.index["codec_hash"]:
        raise InputError(f"{config.data}: train and val were made with different codecs")
    if config.latent_gain:
        check_codec(train, Path(config.codec_from or ""))
    return train, held_out


def begin(make: Callable[[], L], config: TrainConfig, shards: ShardDataset) -> L:
    """A network that normalises latents of the shards as `config.latent_gain` says. Its first weights are drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        network = make()
    network.mean.copy_(shards.statistics.mean)
    network.std.copy_(latent_scale(config, shards))
    return network


def draw_rows(config: TrainConfig, count: int, step: int) -> list[int]:
    """Which of `count` rows are in batch number `step`."""
    return epoch_order(count, config.loop.batch_size, step, config.loop.seed)


def noisy_batch(
    config: TrainConfig, shards: ShardDataset, indices: Sequence[int], step: int, *, noise: float, std: Tensor
) -> tuple[LatentBatch, Tensor]:
    """Items, and latents [B, L, C] drawn from their posteriors with normal noise of up to `noise` times std [C] on them.

    Outputs of a generator are rougher than recordings; a pure function of (seed, step).
    """
    batch = shards.batch(indices)
    generator = torch.Generator().manual_seed(config.loop.seed_of(step))
    latents = batch.sample(generator)
    level = noise * torch.rand(len(latents), 1, 1, generator=generator)
    return batch, latents + level * std * torch.randn(latents.shape, generator=generator)
