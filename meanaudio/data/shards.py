"""Prepared features on disk: safetensors shards, an index that describes them, and a reader. docs/prepare.md states the format.

A folder holds shard-NNNNN.safetensors, null_text.safetensors and, written last, index.json. A shard of n items has
mean, std [n, L, C]; pooled [n, P]; tokens [sum of token counts, D] with token_counts [n] (only real tokens are stored);
latent_sum, latent_square_sum [C]. Without stored text the last three of the first line are not there.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from meanaudio.checkpoint import load_weights, read_json, write_beside, write_json
from meanaudio.config import TextConfig
from meanaudio.data.dataset import Dataset, LatentStatistics
from meanaudio.data.extract import encode_text
from meanaudio.data.folder import open_folder
from meanaudio.errors import InputError
from meanaudio.text import TextEncoder
from meanaudio.types import Gaussian, LatentBatch, TextFeatures

INDEX = "index.json"
NULL_TEXT_FILE = "null_text.safetensors"  # features of ""; in a converted checkpoint too
TENSORS = ("mean", "std", "pooled", "tokens", "token_counts")
OPEN_SHARDS = 1024  # shards a reader keeps mapped: two maps each, of the 65530 that Linux allows a process


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


# ---------------------------------------------------------------- writing


def write_shard(
    path: Path,
    latents: Gaussian,
    text: TextFeatures | None,
    ids: Sequence[str],
    captions: Sequence[str],
    made_by: str,
    left_out: Sequence[dict[str, str]] = (),
) -> None:
    """Write one shard in half precision. `made_by` names all that its bytes depend on, so that a relaunch knows what to keep.

    left_out: id and reason of each item that should be here and is not. Raises InputError if the disk refuses; nothing is left then.
    """
    tensors = {"mean": latents.mean.half().contiguous(), "std": latents.std.half().contiguous()}
    total, square = _sums(tensors["mean"], tensors["std"])
    tensors |= {"latent_sum": total, "latent_square_sum": square}
    if text is not None:
        tensors |= {
            "pooled": text.pooled.half().contiguous(),
            "tokens": text.sequence[text.mask].half().contiguous(),
            "token_counts": text.mask.sum(1).int().contiguous(),
        }
    # One entry, because safetensors writes several in an order that changes from call to call.
    notes = {"notes": json.dumps({"ids": [*ids], "captions": [*captions], "made_by": made_by, "left_out": [*left_out]})}
    _save(path, tensors, notes)


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Not by save_file, whose own temporary file would stay behind when the process is killed."""
    data = save(tensors, metadata)
    try:
        write_beside(path, lambda p: p.write_bytes(data))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _sums(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [C] of z and z^2 over all latents drawn from the posteriors: E[z] = mean, E[z^2] = mean^2 + std^2.

    By numpy in float64: torch would split the sum over its threads, and the last bits would depend on how many there are.
    """
    m, s = mean.double().flatten(0, 1).numpy(), std.double().flatten(0, 1).numpy()
    return torch.from_numpy(m.sum(0)), torch.from_numpy((m**2 + s**2).sum(0))


def shard_notes(path: Path) -> dict[str, Any] | None:
    """ids, captions, made_by and left_out of a shard; None if the file is missing or damaged (it is then written anew)."""
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
        return {key: notes[key] for key in ("ids", "captions", "made_by", "left_out")}
    except Exception:  # whatever is wrong with it, the answer is the same: it is not a shard of ours
        return None


def write_null_text(folder: Path, text: TextFeatures) -> None:
    tensors = {"sequence": text.sequence, "pooled": text.pooled, "mask": text.mask}
    _save(folder / NULL_TEXT_FILE, {key: x.contiguous() for key, x in tensors.items()})


def read_null_text(folder: Path) -> TextFeatures:
    """One row of stored features of "". Raises InputError if the file is missing or damaged."""
    path = folder / NULL_TEXT_FILE
    state = load_weights(path)
    try:
        return TextFeatures(state["sequence"], state["pooled"], state["mask"])
    except KeyError as error:
        raise InputError(f"{path}: no {error} in it") from None


def finish_index(folder: Path, shards: int, items: int, facts: dict[str, Any]) -> None:
    """Write index.json: the folder is complete from here on. items: how many the shards should hold, those left out included.

    The shards' sums are added in their order, so that the statistics are the same whoever made which shard.
    """
    sizes, left_out = [], []
    total = square = torch.zeros((), dtype=torch.float64)
    for number in range(shards):
        path = shard_path(folder, number)
        notes = shard_notes(path)
        if notes is None:
            raise InputError(f"{path}: missing or damaged; run meanaudio prepare again")
        with safe_open(path, "pt") as file:
            total, square = total + file.get_tensor("latent_sum"), square + file.get_tensor("latent_square_sum")
            latents = file.get_slice("mean").get_shape()[1]
        sizes.append(len(notes["ids"]))
        left_out += notes["left_out"]
    if sum(sizes) + len(left_out) != items:
        raise InputError(f"{folder}: {items} items should be here, {sum(sizes)} are and {len(left_out)} were left out")
    if not sum(sizes):
        raise InputError(f"{folder}: no item could be made; the first: {left_out[0]['reason']}")
    statistics = LatentStatistics.of_sums(total, square, sum(sizes) * latents)
    values = {
        "shards": shards,
        "items": sum(sizes),
        **facts,
        "latent_mean": statistics.mean.tolist(),
        "latent_std": statistics.std.tolist(),
        "left_out": left_out,
        "sizes": sizes,
        "bytes": [shard_path(folder, number).stat().st_size for number in range(shards)],
    }
    write_json(folder / INDEX, values)


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Shard:
    """An open shard. tensors are memory-mapped: only what is used is read. offsets: where each item's tokens begin, and their end."""

    ids: list[str]
    captions: list[str]
    tensors: dict[str, Tensor]
    offsets: list[int]


class ShardDataset(Dataset):
    """Random access to the items of a folder or URL. Opening reads the index alone; a shard is opened when an item of it is read.

    encoder: encodes captions when they are read, in place of the stored features; `text` is its config. cache: see RemoteFolder.
    Raises InputError that names the shard for one that is missing, cut, damaged or made from other inputs than the index says.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        encoder: TextEncoder | None = None,
        text: TextConfig | None = None,
        cache: str | Path | None = None,
        open_shards: int = OPEN_SHARDS,
    ) -> None:
        self.folder, self.encoder, self.open_shards = open_folder(folder, INDEX, cache), encoder, open_shards
        self.name = self.folder.name
        files = self.folder.sizes()
        if INDEX not in files:
            raise InputError(f"{self.name}: no {INDEX}; make the shards first: meanaudio prepare MANIFEST -o {self.name}")
        self.index = read_json(self.folder.file(INDEX))
        try:
            sizes, lengths = list(map(int, self.index["sizes"])), list(map(int, self.index["bytes"]))
            self._statistics = LatentStatistics(torch.tensor(self.index["latent_mean"]), torch.tensor(self.index["latent_std"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.name}/{INDEX}: not as this version writes it ({error!r}); run meanaudio prepare again") from None
        if encoder is not None:
            self.index |= {"text": None if text is None else text.model_dump(), "text_fingerprint": encoder.fingerprint}
        elif self.index.get("text", {}) is None:
            raise InputError(f"{self.name}: was prepared without text features; set encode_text: true")
        for number, length in enumerate(lengths):
            if (found := files.get(shard_path(Path(), number).name)) != length:
                raise self._broken(number, "is missing" if found is None else f"has {found} bytes instead of {length}")
        self.starts = [0, *accumulate(sizes)]
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = Lock()

    def _broken(self, number: int, what: str) -> InputError:
        return InputError(f"{self.name}/{shard_path(Path(), number).name}: {what}; run meanaudio prepare again")

    def __len__(self) -> int:
        return self.starts[-1]

    @cached_property
    def ids(self) -> list[str]:
        return [name for number in range(len(self.starts) - 1) for name in self._shard(number).ids]

    @cached_property
    def captions(self) -> list[str]:
        return [caption for number in range(len(self.starts) - 1) for caption in self._shard(number).captions]

    @property
    def statistics(self) -> LatentStatistics:
        return self._statistics

    @property
    def null_text(self) -> TextFeatures:
        return read_null_text(self.folder.file(NULL_TEXT_FILE).parent) if self.encoder is None else encode_text(self.encoder, [""])

    def _shard(self, number: int) -> _Shard:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        shard = self._read(number)
        with self._lock:
            self._open[number] = shard
            while len(self._open) > self.open_shards:
                self._open.popitem(last=False)
        return shard

    def _read(self, number: int) -> _Shard:
        path, size = self.folder.file(shard_path(Path(), number).name), self.starts[number + 1] - self.starts[number]
        try:
            with safe_open(path, "pt") as file:
                notes = json.loads(file.metadata()["notes"])
                tensors = {key: file.get_tensor(key) for key in (("mean", "std") if self.encoder else TENSORS)}
            lengths = {len(notes["ids"]), len(notes["captions"]), *(len(x) for key, x in tensors.items() if key != "tokens")}
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise self._broken(number, f"is damaged ({error!r})") from None
        if lengths != {size}:
            raise self._broken(number, f"holds {sorted(lengths)} items instead of {size}")
        if notes.get("made_by") != self.index.get("made_by", notes.get("made_by")):
            raise self._broken(number, f"was made from other inputs than {INDEX} says")
        offsets = [0, *accumulate(tensors["token_counts"].tolist())] if "tokens" in tensors else []
        if offsets and (offsets[-1] != len(tensors["tokens"]) or min(tensors["token_counts"].tolist(), default=1) < 1):
            raise self._broken(number, "has more or fewer tokens than it counts")
        return _Shard(notes["ids"], notes["captions"], tensors, offsets)

    def batch(self, indices: Sequence[int]) -> LatentBatch:
        """Items as one float32 batch; text padded to its longest caption. Raises InputError for a NaN, naming shard and item."""
        numbers = [bisect_right(self.starts, i) - 1 for i in indices]
        places = [(self._shard(number), i - self.starts[number]) for number, i in zip(numbers, indices, strict=True)]
        mean, std = (torch.stack([shard.tensors[key][row] for shard, row in places]).float() for key in ("mean", "std"))
        if self.encoder is None:
            tokens = [shard.tensors["tokens"][shard.offsets[row] : shard.offsets[row + 1]].float() for shard, row in places]
            sequence = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
            mask = torch.arange(sequence.shape[1])[None] < torch.tensor([len(x) for x in tokens])[:, None]
            text = TextFeatures(sequence, torch.stack([shard.tensors["pooled"][row] for shard, row in places]).float(), mask)
        else:
            text = encode_text(self.encoder, [shard.captions[row] for shard, row in places])
        batch = LatentBatch(mean, std, text, [shard.ids[row] for shard, row in places])
        for what, x in (("latents", mean), ("latents", std), ("text features", text.sequence), ("text features", text.pooled)):
            if not torch.isfinite(x.sum()):  # a sum over all shows a NaN at a fraction of the cost of looking at each
                row = int((~torch.isfinite(x).flatten(1).all(1)).nonzero()[0])
                raise self._broken(numbers[row], f"holds NaN or infinite {what} of {batch.ids[row]!r}")
        return batch
