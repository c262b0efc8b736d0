"""A generator run small enough to be made many times in a test, and what is compared of two of them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fakes import LATENT_DIM, TINY_CODEC, fill, normals, random_text, tiny_network
from torch import Tensor

from meanaudio.checkpoint import file_hash, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, make_vae
from meanaudio.config import LoopConfig, ObjectiveConfig, OptimConfig, TextConfig, TrainConfig, constant
from meanaudio.data.shards import finish_index, shard_path, write_null_text, write_shard
from meanaudio.training.log import read_log
from meanaudio.training.state import FACTS, STATE, HuggingFaceStorageReader, load_training_state
from meanaudio.types import Gaussian, TextFeatures


def write_vae(folder: Path) -> None:
    """A codec's folder without a vocoder."""
    save_weights(folder / VAE_FILE, fill(make_vae(TINY_CODEC)).state_dict())
    write_json(folder / "config.json", {"codec": TINY_CODEC.model_dump(mode="json")})


def tiny_run(folder: Path, **loop: Any) -> TrainConfig:
    """10 steps on synthetic shards made in `folder`; `loop` changes LoopConfig. The codec has no vocoder, so no sound is written."""
    codec = folder / "codec"
    write_vae(codec)
    facts = {"codec_hash": file_hash(codec / VAE_FILE), "text": TextConfig().model_dump(), "seconds": 1.024}
    for name, count, seed in (("train", 11, 0), ("val", 4, 1)):
        shards = folder / "shards" / name
        latents = Gaussian(normals(count, 16, LATENT_DIM, seed=seed), normals(count, 16, LATENT_DIM, seed=seed + 5).abs() * 0.1)
        ids = [f"{name}{i}" for i in range(count)]
        write_shard(shard_path(shards, 0), latents, random_text([2 + i % 4 for i in range(count)], seed=seed), ids, ids, "test")
        write_null_text(shards, random_text([1], seed=7))
        finish_index(shards, 1, count, facts)
    return TrainConfig(
        data=str(folder / "shards"),
        codec_from=str(codec),
        seconds=1.024,
        codec=TINY_CODEC,
        network=tiny_network(),
        objective=ObjectiveConfig(interval_fraction=constant(0.5)),
        optim=OptimConfig(lr=3e-3, warmup=3),
        loop=LoopConfig(**{"steps": 10, "batch_size": 4, "log_every": 2, "sample_every": 5, "save_every": 4, **loop}),
    )


def write_kinds(folder: Path, kinds: Sequence[str], count: int, seed: int, text: TextFeatures, null: TextFeatures, stored: dict) -> None:
    """One shard of items whose captions are `kinds` in turn; their latents hold the kind in one channel, in part of the time."""
    mean = 0.3 * normals(count, 16, LATENT_DIM, seed=seed)
    for i in range(count):
        mean[i, 4:9, i % len(kinds)] += 2
    captions, ids = [kinds[i % len(kinds)] for i in range(count)], [f"{folder.name}{i}" for i in range(count)]
    write_shard(shard_path(folder, 0), Gaussian(mean, torch.full_like(mean, 0.1)), text, ids, captions, "test")
    write_null_text(folder, null)
    finish_index(folder, 1, count, {"codec_hash": "c" * 64, "text": stored, "seconds": 1.0})


def with_loop(config: TrainConfig, **changes: Any) -> TrainConfig:
    return config.model_copy(update={"loop": config.loop.model_copy(update=changes)})


def step_of(run: Path) -> int:
    """The step of a run's training state."""
    return read_json(run / STATE / FACTS)["step"]


def state_of(run: Path) -> dict[str, Tensor]:
    """All tensors of a run's training state, put together from the shards of as many processes as wrote it."""
    found = HuggingFaceStorageReader(str(run / STATE)).read_metadata().state_dict_metadata
    tensors = {key: torch.empty(value.size, dtype=value.properties.dtype) for key, value in found.items()}
    load_training_state(run / STATE, tensors)
    return tensors


def rows(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in read_log(run)]


def assert_same_run(a: Path, b: Path) -> None:
    """Bit for bit: weights, averages, optimisers, counters, log rows, snapshots and exports."""
    assert read_json(a / STATE / FACTS) == read_json(b / STATE / FACTS)
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    assert {key.split("/")[0] for key in first} == {"network", "optimizer", "average"}
    assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []
    assert rows(a) == rows(b)
    for pattern in ("export/*.safetensors", "best/*", "snapshots/*"):
        names = sorted(path.relative_to(a) for path in a.glob(pattern))
        assert names == sorted(path.relative_to(b) for path in b.glob(pattern))
        assert names
        assert [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()] == []


# ---------------------------------------------------------------- several processes

# Children start with the package, and what torch imports late, imported.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["meanaudio.training.run", "torch._dynamo", "torch.utils.tensorboard"])


def start(target: Callable[..., Any], *args: Any, ranks: int | None = None) -> list[Process]:
    """`target` in one process, or in `ranks` processes with torchrun's environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks or 1):
        environment = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(Process(target, args, {key: str(value) for key, value in environment.items()} if ranks else {}))
    return started


class Process:
    """A child that runs target(*args). `outcome` is what it returned, the exception it raised, or its exit code if it did neither."""

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str]) -> None:
        self.receiver, sender = _processes.Pipe(duplex=False)
        self.process = _processes.Process(target=_child, args=(sender, target, args, environment), daemon=True)
        self.process.start()
        sender.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def outcome(self, timeout: float = 120) -> Any:
        end = time.monotonic() + timeout
        try:
            found = self.receiver.recv() if self.receiver.poll(timeout) else None
        except EOFError:
            found = None
        self.process.join(max(0.1, end - time.monotonic()))
        if self.process.is_alive():
            self.kill()
            raise AssertionError(f"the process did not end within {timeout} s")
        return self.process.exitcode if found is None else found[0]


def _child(sender: Any, target: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        result = target(*args)
    except Exception as error:
        result = type(error)(*error.args)  # without its causes, which may not pickle
    sender.send((result,))


def outcomes(processes: list[Process]) -> list[Any]:
    return [process.outcome() for process in processes]


def run(config: TrainConfig, folder: Path, until: int | None = None) -> None:
    """`meanaudio train` on the CPU."""
    from meanaudio.training.run import train

    train(config, folder, device="cpu", until=until, progress_bar=False)
