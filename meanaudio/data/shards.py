"""Prepared features on disk: safetensors shards, an index that describes them, and a reader.

A folder holds shard-NNNNN.safetensors, null_text.safetensors and, written last, index.json. A shard of n items has
mean, std [n, L, C]; pooled [n, P]; tokens [sum of token counts, D] with token_counts [n] (only real tokens are stored).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from meanaudio.checkpoint import load_weights, read_json, write_beside, write_json
from meanaudio.errors import InputError
from meanaudio.types import Gaussian, LatentBatch, TextFeatures

INDEX = "index.json"
NULL_TEXT_FILE = "null_text.safetensors"  # features of ""; in a converted checkpoint too


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def write_shard(path: Path, latents: Gaussian, text: TextFeatures, ids: list[str], captions: list[str], made_by: str) -> None:
    """Write one shard in half precision. `made_by` names all that its bytes depend on, so that a relaunch knows what to keep."""
    tensors = {
        "mean": latents.mean.half().contiguous(),
        "std": latents.std.half().contiguous(),
        "pooled": text.pooled.half().contiguous(),
        "tokens": text.sequence[text.mask].half().contiguous(),
        "token_counts": text.mask.sum(1).int().contiguous(),
    }
    # One entry, because safetensors writes several in an order that changes from call to call.
    notes = {"notes": json.dumps({"ids": ids, "captions": captions, "made_by": made_by})}
    write_beside(path, lambda p: save_file(tensors, p, metadata=notes))


def shard_notes(path: Path) -> dict[str, Any] | None:
    """ids, captions and made_by of a shard; None if the file is missing or damaged (it is then written anew)."""
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
        return {key: notes[key] for key in ("ids", "captions", "made_by")}
    except Exception:  # whatever is wrong with it, the answer is the same: it is not a shard of ours
        return None


def write_null_text(folder: Path, text: TextFeatures) -> None:
    tensors = {"sequence": text.sequence.contiguous(), "pooled": text.pooled.contiguous(), "mask": text.mask.contiguous()}
    write_beside(folder / NULL_TEXT_FILE, lambda p: save_file(tensors, p))


def read_null_text(folder: Path) -> TextFeatures:
    """One row of stored features of "". Raises InputError if the file is missing or damaged."""
    path = folder / NULL_TEXT_FILE
    state = load_weights(path)
    try:
        return TextFeatures(state["sequence"], state["pooled"], state["mask"])
    except KeyError as error:
        raise InputError(f"{path}: no {error} in it") from None


@dataclass(frozen=True)
class LatentStatistics:
    """Per-channel mean and standard deviation [C] over all latents drawn from the posteriors."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of_shards(folder: Path, count: int) -> LatentStatistics:
        """One pass in float64; E[z] = E[mean], E[z^2] = E[mean^2 + std^2]."""
        total = square = torch.zeros((), dtype=torch.float64)
        rows = 0
        for number in range(count):
            shard = load_file(shard_path(folder, number))
            mean, std = shard["mean"].double().flatten(0, 1), shard["std"].double().flatten(0, 1)
            total, square, rows = total + mean.sum(0), square + (mean**2 + std**2).sum(0), rows + len(mean)
        mean = total / rows
        return LatentStatistics(mean.float(), (square / rows - mean**2).clamp_min(1e-12).sqrt().float())


class ShardDataset:
    """Random access to prepared items; tensors stay memory-mapped until they are read."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise InputError(f"{self.folder}: no {INDEX}; make the shards first: meanaudio prepare MANIFEST -o {self.folder}")
        self.index = read_json(self.folder / INDEX)
        self.items: list[tuple[int, int]] = []
        self.ids: list[str] = []
        self.captions: list[str] = []
        self.shards, self.offsets = [], []
        for number in range(self.index["shards"]):
            path = shard_path(self.folder, number)
            notes = shard_notes(path)
            if notes is None:
                raise InputError(f"{path}: missing or damaged; run meanaudio prepare again")
            shard = load_file(path)
            if not torch.isfinite(shard["mean"]).all() or not torch.isfinite(shard["std"]).all():
                raise InputError(f"{path}: holds NaN or infinite latents")
            self.shards.append(shard)
            self.offsets.append(torch.cat([torch.zeros(1, dtype=torch.long), shard["token_counts"].long().cumsum(0)]).tolist())
            self.items += [(number, i) for i in range(len(notes["ids"]))]
            self.ids += notes["ids"]
            self.captions += notes["captions"]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def statistics(self) -> LatentStatistics:
        return LatentStatistics(torch.tensor(self.index["latent_mean"]), torch.tensor(self.index["latent_std"]))

    @property
    def null_text(self) -> TextFeatures:
        return read_null_text(self.folder)

    def batch(self, indices: list[int]) -> LatentBatch:
        """Items as one float32 batch; text padded to its longest caption."""
        places = [self.items[i] for i in indices]
        tokens = []
        for number, i in places:
            start, stop = self.offsets[number][i], self.offsets[number][i + 1]
            tokens.append(self.shards[number]["tokens"][start:stop].float())
        sequence = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        counts = torch.tensor([len(x) for x in tokens])
        mask = torch.arange(sequence.shape[1])[None] < counts[:, None]
        mean, std, pooled = (torch.stack([self.shards[n][k][i] for n, i in places]).float() for k in ("mean", "std", "pooled"))
        return LatentBatch(mean, std, TextFeatures(sequence, pooled, mask), [self.ids[i] for i in indices])


def epoch_order(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of batch number `step`: a pure function of its arguments. Every item comes once an epoch, epochs follow without a seam."""
    first = step * batch_size
    order: list[int] = []
    epoch = first // count
    while len(order) < batch_size:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        shuffled = torch.randperm(count, generator=generator).tolist()
        start = max(0, first - epoch * count)
        order += shuffled[start : start + batch_size - len(order)]
        epoch += 1
    return order


def finish_index(folder: Path, shards: int, items: int, facts: dict[str, Any]) -> None:
    """Write index.json: the folder is complete from here on."""
    statistics = LatentStatistics.of_shards(folder, shards)
    values = {"shards": shards, "items": items, **facts, "latent_mean": statistics.mean.tolist(), "latent_std": statistics.std.tolist()}
    write_json(folder / INDEX, values)
