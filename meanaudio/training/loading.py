"""How fast batches come from the disk, beside one npz file a clip; and how long training waits for them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meanaudio.checkpoint import file_hash, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, make_vae
from meanaudio.config import TrainConfig
from meanaudio.data.order import Epochs
from meanaudio.data.shards import ShardDataset, finish_index, shard_path, write_null_text, write_shard
from meanaudio.errors import InputError
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.loop import Loop
from meanaudio.types import Gaussian, TextFeatures

SHARD, READ = 256, 32  # items of a shard; items of a timed read
TOKENS = (8, 30)  # of a caption, drawn evenly
NPZ = "npz, a file a clip"

Read = Callable[[Sequence[int]], object]


@dataclass(frozen=True)
class LoadingReport:
    """rates: items a second by way of storing, with and without the page cache. sizes: bytes an item. The rest: seconds a step."""

    shapes: str
    rates: dict[str, dict[str, float]]
    sizes: dict[str, float]
    batch_size: int
    read: float
    step: float
    waited: float

    def to_text(self) -> str:
        lines = [f"{self.shapes}; random batches of {READ}, one thread, all ways in turns (medians)"]
        for cache, rates in self.rates.items():
            for way, rate in rates.items():
                lines.append(
                    f"  {cache:<20}{way:<24}{rate:8.0f} items/s {rate / rates[NPZ]:6.2f} x npz {self.sizes[way] / 1e3:8.1f} kB an item"
                )
        if self.step:
            lines += [
                f"training, batch {self.batch_size}: {self.step:.3f} s a step, waiting for data {1e3 * self.waited:.3f} ms of it "
                f"({self.waited / self.step:.3%})",
                f"  a batch is read in {1e3 * self.read:.1f} ms: one thread keeps up with {1 / self.read:.0f} steps a second",
            ]
        return "\n".join(lines)


def measure_loading(config: TrainConfig, folder: Path, *, items: int = 1024, rounds: int = 20, steps: int = 10) -> LoadingReport:
    """Make `items` random items of the config's shapes in `folder`, as shards and as npz files; read them in turns, then train on them.

    steps: of training, after one that is not timed; 0 measures reading only. npz: as the release stores, in float32 with padding [code].
    """
    if items < READ:
        raise InputError(f"items = {items}: must be {READ} or more")
    config = random_set(config, folder, items)
    shards, npz = folder / "shards" / "train", folder / "npz"
    _write_npz(npz, ShardDataset(shards), config.text.max_tokens)
    ways: dict[str, Callable[[], Read]] = {
        "shards": lambda: ShardDataset(shards).batch,
        "shards, none known": lambda: ShardDataset(shards, known_shards=0).batch,
        NPZ: lambda: lambda indices: _read_npz(npz, indices),
    }
    rates = {"in the page cache": _rates(ways, items, rounds, cold=None), "page cache emptied": _rates(ways, items, rounds, cold=folder)}
    sizes = {way: _bytes(npz if way == NPZ else shards) / items for way in ways}
    num_latents, text = config.codec.audio_spec().window_latents(config.seconds), config.text.max_tokens
    shapes = f"latents [{num_latents}, {config.network.latent_dim}], text up to [{text}, {config.network.sequence_dim}]"
    return LoadingReport(shapes, rates, sizes, config.loop.batch_size, *_train(config, folder, steps))


def _train(config: TrainConfig, folder: Path, steps: int) -> tuple[float, float, float]:
    """Seconds to read a batch when nobody else is at work, of a training step, and of waiting for data in it."""
    if not steps:
        return 0.0, 0.0, 0.0
    task = GeneratorTask(config)
    loop = Loop(task, config, folder / "run")
    began = time.perf_counter()
    for step in range(5):
        task.prepare_batch(step)
    read = (time.perf_counter() - began) / 5
    task.step(0, 0.0, loop.update)
    began, before = time.perf_counter(), task.batches.waited
    for step in range(1, steps + 1):
        task.step(step, step / config.loop.steps, loop.update)
    return read, (time.perf_counter() - began) / steps, (task.batches.waited - before) / steps


def _rates(ways: dict[str, Callable[[], Read]], items: int, rounds: int, *, cold: Path | None) -> dict[str, float]:
    """Median items a second of each way. cold: the folder whose files are dropped from the page cache before each read."""
    reads = {way: make() for way, make in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    order = Epochs(items, 0)
    for number in range(rounds + 1):
        for place, (way, make) in enumerate(ways.items()):
            indices = order.take((number * len(ways) + place) * READ, READ)
            if cold is not None:
                reads[way] = make()  # what is mapped cannot be dropped
                _drop(cold)
            began = time.perf_counter()
            reads[way](indices)
            if number:  # the first round opens files
                seconds[way].append(time.perf_counter() - began)
    return {way: READ / statistics.median(taken) for way, taken in seconds.items()}


def _drop(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# ---------------------------------------------------------------- random data


def random_set(config: TrainConfig, folder: Path, items: int) -> TrainConfig:
    """Write `folder`/shards/{train,val}, random items of the config's shapes, and a codec with random weights; the config that reads them.

    It starts from nothing and hides padding: neither a checkpoint nor a text encoder is needed.
    """
    codec, generator = folder / "codec", torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        save_weights(codec / VAE_FILE, make_vae(config.codec).state_dict())
    write_json(codec / "config.json", {"codec": config.codec.model_dump(mode="json")})
    facts = {"codec_hash": file_hash(codec / VAE_FILE), "text": config.text.model_dump(), "seconds": config.seconds}
    for split, count in (("train", items), ("val", READ)):
        out = folder / "shards" / split
        sizes = [min(SHARD, count - start) for start in range(0, count, SHARD)]
        for number, size in enumerate(sizes):
            shape = (size, config.codec.audio_spec().window_latents(config.seconds), config.network.latent_dim)
            latents = Gaussian(torch.randn(shape, generator=generator), torch.rand(shape, generator=generator))
            ids = [f"{split}-{number}-{i}" for i in range(size)]
            captions = [f"{name}: something like a sentence that says what is heard" for name in ids]
            write_shard(shard_path(out, number), latents, _random_text(config, size, generator), ids, captions, "random")
        write_null_text(out, _random_text(config, 1, generator))
        finish_index(out, len(sizes), count, facts)
    os.sync()
    changes = {
        "data": str(folder / "shards"),
        "codec_from": str(codec),
        "init_from": None,
        "init_add": None,
        "mixture": (),
        "encode_text": False,
        "loading": config.loading.model_copy(update={"resident": False}),  # it is reading that is measured
    }
    return config.model_copy(update={**changes, "network": config.network.model_copy(update={"mask_text": True})})


def _random_text(config: TrainConfig, count: int, generator: torch.Generator) -> TextFeatures:
    low, high = (min(tokens, config.text.max_tokens) for tokens in TOKENS)
    lengths = torch.randint(low, high + 1, (count,), generator=generator)
    mask = torch.arange(high)[None] < lengths[:, None]
    sequence = torch.randn(count, high, config.network.sequence_dim, generator=generator) * mask[..., None]
    return TextFeatures(sequence, torch.randn(count, config.network.pooled_dim, generator=generator), mask)


def _write_npz(folder: Path, data: ShardDataset, max_tokens: int) -> None:
    folder.mkdir()
    for i in range(len(data)):
        item = data.batch([i])
        arrays = (item.mean, item.std, item.text.pad_to(max_tokens).sequence, item.text.pooled)
        mean, std, text_features, text_features_c = (x[0].numpy() for x in arrays)
        np.savez(folder / f"{i}.npz", mean=mean, std=std, text_features=text_features, text_features_c=text_features_c)
    os.sync()


def _read_npz(folder: Path, indices: Sequence[int]) -> list[Tensor]:
    """The four arrays of each clip, stacked to a batch."""
    items = []
    for i in indices:
        with np.load(folder / f"{i}.npz") as file:
            items.append([torch.from_numpy(file[key]) for key in ("mean", "std", "text_features", "text_features_c")])
    return [torch.stack(column) for column in zip(*items, strict=True)]
