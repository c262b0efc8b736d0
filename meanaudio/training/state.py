"""A run's training state on disk: safetensors shards and a JSON of facts. Any number of processes writes it, any other number reads it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from meanaudio import distributed
from meanaudio.checkpoint import some, write_json
from meanaudio.config import TrainConfig, parse
from meanaudio.errors import InputError

STATE, OLDER, UNFINISHED = "state", ".state.older", ".state.part"  # folders of a run
FACTS = "facts.json"  # in a state
FILE_BYTES = 1 << 30


def save_training_state(run: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write run/state/: `tensors` as safetensors, of a sharded one (DTensor) every process its shard, and `facts` as JSON.

    All processes call it; they must share the folder. The state before stays until this one is whole. Raises OSError, on every
    process, if one could not write; then the state before is as it was.
    """
    part, whole = run / UNFINISHED, run / STATE
    if distributed.is_main():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    distributed.barrier()
    try:
        writer = HuggingFaceStorageWriter(str(part), fqn_to_index_mapping=_file_numbers(tensors), save_distributed=True)
        with _one_process_is_meant():
            dcp.save(dict(tensors), storage_writer=writer, no_dist=not distributed.joined())
    except CheckpointException as error:
        if distributed.is_main():
            shutil.rmtree(part, ignore_errors=True)
        reasons = "; ".join(f"rank {rank}: {one}" for rank, (one, _) in error.failures.items())
        kept = "the state before it is untouched" if whole.is_dir() else "there is none before it"
        raise OSError(f"{whole}: a training state could not be written, {kept} ({reasons})") from None
    if distributed.is_main():
        write_json(part / FACTS, facts)
        if whole.is_dir():
            shutil.rmtree(run / OLDER, ignore_errors=True)
            whole.rename(run / OLDER)
        part.rename(whole)
        shutil.rmtree(run / OLDER, ignore_errors=True)


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """torch warns of it, though it is told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file, from 1, each tensor goes to: a file is put together in memory, so none gets much more than FILE_BYTES."""
    numbers, total = {}, 0
    for key, tensor in tensors.items():
        numbers[key] = 1 + total // FILE_BYTES
        total += tensor.nbytes
    return numbers


def find_training_state(run: Path) -> Path | None:
    """The folder of the newest whole state of a run, or None. A kill between two renames leaves it under the older name."""
    return next((run / name for name in (STATE, OLDER) if (run / name / FACTS).is_file()), None)


def load_training_state(state: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place from a state's folder; written by how many processes, and sharded how, does not matter.

    All processes call it. Raises InputError if the state is damaged or holds other tensors.
    """
    try:
        reader = HuggingFaceStorageReader(str(state))
        stored = {k: tuple(v.size) for k, v in reader.read_metadata().state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
        differ = sorted(k for k in stored.keys() | tensors.keys() if k not in tensors or stored.get(k) != tuple(tensors[k].shape))
        if not differ:
            with _one_process_is_meant():
                dcp.load(dict(tensors), storage_reader=reader, no_dist=not distributed.joined())
    except (SafetensorError, OSError, KeyError, CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{state}: not a readable training state ({type(error).__name__}: {reason})") from None
    if differ:
        raise InputError(f"{state}: holds other tensors than this run's: {some(differ)}")


# How often to log, sample and save, who listens, how batches come and work is spread changes what is computed by rounding at most.
FREE = {
    *("loop.log_every", "loop.sample_every", "loop.save_every", "loop.parallel", "loop.accumulate", "loop.compile"),
    *("loop.checkpoint_activations", "loop.best", "loop.keep_bytes", "loop.rank_timeout", "optim.ema_snapshots"),
    *("loading.ahead", "loading.readers", "loading.threads", "loading.cache", "loading.resident"),
    *("evaluation.extractor", "evaluation.clips"),
}


def changes(earlier: dict[str, Any], config: TrainConfig, source: str) -> list[str]:
    """What `config` computes otherwise than the config of a state, as lines "key: before -> now"."""
    before = _flatten(parse(TrainConfig, earlier, source).model_dump(mode="json"))  # parsing fills in keys newer than the state
    now = _flatten(config.model_dump(mode="json"))
    keys = sorted((before.keys() | now.keys()) - FREE)
    return [f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
