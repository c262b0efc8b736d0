"""Prepared features on disk: safetensors shards, an index that describes them, and a reader. docs/prepare.md states the format.

A folder holds shard-NNNNN.safetensors, null_text.safetensors, captions.json and, written last, index.json. `items` of a shard has its n
items one after the other, each as one stretch of float16: mean [L, C], std [L, C], pooled [P], tokens [real ones, D]. `ids` and `captions`
are bytes of UTF-8, one after the other too. item_ends, id_ends, caption_ends [n] say where each ends. latent_sum, latent_square_sum [C] are
float64. One stretch an item, because a random read from a disk or a network costs by the piece. Without stored text P and D are 0.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence, Sized
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from meanaudio.checkpoint import load_weights, read_json, write_beside, write_json
from meanaudio.config import TextConfig
from meanaudio.data.dataset import Dataset, LatentStatistics
from meanaudio.data.extract import encode_text
from meanaudio.data.folder import open_folder
from meanaudio.data.shard_file import ShardFile
from meanaudio.errors import InputError
from meanaudio.text import TextEncoder
from meanaudio.types import Gaussian, LatentBatch, TextFeatures

INDEX = "index.json"
CAPTIONS = "captions.json"  # caption -> its number of clips, of all that the items were made of
NULL_TEXT_FILE = "null_text.safetensors"  # features of ""; in a converted checkpoint too
SHAPES = ("latent_shape", "pooled_dim", "sequence_dim")
KNOWN_SHARDS = 8192  # whose headers a reader keeps: 24 bytes an item


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
    mean, std = latents.mean.half(), latents.std.half()
    parts = [mean.flatten(1), std.flatten(1)] if text is None else [mean.flatten(1), std.flatten(1), text.pooled.half()]
    items = [torch.cat(row) for row in zip(*parts, strict=True)]
    if text is not None:
        items = [torch.cat([item, text.sequence[i][text.mask[i]].half().flatten()]) for i, item in enumerate(items)]
    encoded = {"ids": [name.encode() for name in ids], "captions": [caption.encode() for caption in captions]}
    total, square = _sums(mean, std)
    tensors = {
        "items": torch.cat([mean.new_zeros(0), *items]),
        "item_ends": _ends(items),
        "latent_sum": total,
        "latent_square_sum": square,
    }
    for key, strings in encoded.items():
        tensors |= {key: torch.from_numpy(np.frombuffer(b"".join(strings), dtype=np.uint8).copy()), f"{key[:-1]}_ends": _ends(strings)}
    widths = (0, 0) if text is None else (text.pooled.shape[1], text.sequence.shape[2])
    shapes = {"latent_shape": [*mean.shape[1:]], "pooled_dim": widths[0], "sequence_dim": widths[1]}
    # One entry, because safetensors writes several in an order that changes from call to call.
    _save(path, tensors, {"notes": json.dumps({"made_by": made_by, "left_out": [*left_out], **shapes})})


def _ends(pieces: Sequence[Sized]) -> Tensor:
    return torch.tensor([*accumulate(map(len, pieces))], dtype=torch.int64)


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
    """made_by, left_out, shapes and ids of a shard; None if the file is missing or damaged (it is then written anew)."""
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
            data, ends = file.get_tensor("ids").numpy().tobytes(), file.get_tensor("id_ends").tolist()
        ids = [data[begin:end].decode() for begin, end in pairwise([0, *ends])]
        return {key: notes[key] for key in ("made_by", "left_out", *SHAPES)} | {"ids": ids}
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
    shapes: dict[str, Any] = {}
    for number in range(shards):
        path = shard_path(folder, number)
        notes = shard_notes(path)
        if notes is None or shapes not in ({}, {key: notes[key] for key in SHAPES}):
            raise InputError(f"{path}: missing, damaged, or of other shapes than those before it; run meanaudio prepare again")
        shapes = {key: notes[key] for key in SHAPES}
        with safe_open(path, "pt") as file:
            total, square = total + file.get_tensor("latent_sum"), square + file.get_tensor("latent_square_sum")
        sizes.append(len(notes["ids"]))
        left_out += notes["left_out"]
    if sum(sizes) + len(left_out) != items:
        raise InputError(f"{folder}: {items} items should be here, {sum(sizes)} are and {len(left_out)} were left out")
    if not sum(sizes):
        raise InputError(f"{folder}: no item could be made; the first: {left_out[0]['reason']}")
    statistics = LatentStatistics.of_sums(total, square, sum(sizes) * shapes["latent_shape"][0])
    values = {
        "shards": shards,
        "items": sum(sizes),
        **facts,
        **shapes,
        "latent_mean": statistics.mean.tolist(),
        "latent_std": statistics.std.tolist(),
        "left_out": left_out,
        "sizes": sizes,
        "bytes": [shard_path(folder, number).stat().st_size for number in range(shards)],
    }
    write_json(folder / INDEX, values)


# ---------------------------------------------------------------- reading


class ShardDataset(Dataset):
    """Random access to the items of a folder or URL. Opening reads the index alone, and a shard's header when an item of it is read first.

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
        known_shards: int = KNOWN_SHARDS,
    ) -> None:
        self.folder, self.encoder, self.known_shards = open_folder(folder, INDEX, cache), encoder, known_shards
        self.name = self.folder.name
        files = self.folder.sizes()
        if INDEX not in files:
            raise InputError(f"{self.name}: no {INDEX}; make the shards first: meanaudio prepare MANIFEST -o {self.name}")
        self.index = read_json(self.folder.file(INDEX))
        try:
            sizes, lengths = list(map(int, self.index["sizes"])), list(map(int, self.index["bytes"]))
            self._statistics = LatentStatistics(torch.tensor(self.index["latent_mean"]), torch.tensor(self.index["latent_std"]))
            self.latent_shape, self.pooled_dim, self.sequence_dim = (self.index[key] for key in SHAPES)
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
        self._known: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = Lock()

    def _broken(self, number: int, what: str) -> InputError:
        return InputError(f"{self.name}/{shard_path(Path(), number).name}: {what}; run meanaudio prepare again")

    def __len__(self) -> int:
        return self.starts[-1]

    @cached_property
    def ids(self) -> list[str]:
        return [_text(name) for (name,) in self._pieces(range(len(self)), ("id",))]

    @cached_property
    def captions(self) -> list[str]:
        return [_text(caption) for (caption,) in self._pieces(range(len(self)), ("caption",))]

    @property
    def clip_captions(self) -> dict[str, int]:
        """Captions of the clips that the items were made of, with their numbers of clips. Raises InputError if they were not kept."""
        if CAPTIONS not in self.folder.sizes():
            raise InputError(f"{self.name}: no {CAPTIONS}, made by an earlier version; run meanaudio prepare again, which keeps the shards")
        return read_json(self.folder.file(CAPTIONS))

    @property
    def statistics(self) -> LatentStatistics:
        return self._statistics

    @property
    def null_text(self) -> TextFeatures:
        return read_null_text(self.folder.file(NULL_TEXT_FILE).parent) if self.encoder is None else encode_text(self.encoder, [""])

    def _shard(self, number: int) -> ShardFile:
        with self._lock:
            if number in self._known:
                self._known.move_to_end(number)
                return self._known[number]
        shard = self._open(number)
        with self._lock:
            self._known[number] = shard
            while len(self._known) > self.known_shards:
                self._known.popitem(last=False)
        return shard

    def _open(self, number: int) -> ShardFile:
        path, size = self.folder.file(shard_path(Path(), number).name), self.starts[number + 1] - self.starts[number]
        try:
            shard = ShardFile(path)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise self._broken(number, f"is damaged ({error!r})") from None
        if shard.made_by != self.index.get("made_by", shard.made_by):
            raise self._broken(number, f"was made from other inputs than {INDEX} says")
        if {len(ends) for ends in shard.ends.values()} != {size}:
            raise self._broken(number, f"holds {len(shard.ends['item'])} items, {INDEX} says {size}")
        text = np.diff(shard.ends["item"], prepend=0) - 2 * math.prod(self.latent_shape) - self.pooled_dim
        if not ((text > 0) & (text % self.sequence_dim == 0) if self.sequence_dim else text == 0).all():
            raise self._broken(number, f"holds items of other shapes than {INDEX} says")
        return shard

    def _pieces(self, indices: Sequence[int], names: Sequence[str]) -> list[list[bytearray]]:
        """For each index the pieces called `names`; all are announced before the first is read."""
        rows: dict[int, list[int]] = {}  # of the batch, by shard
        for row, i in enumerate(indices):
            rows.setdefault(self._number(i), []).append(row)
        wanted = {number: [indices[row] - self.starts[number] for row in mine] for number, mine in rows.items()}
        for number, places in wanted.items():
            self._shard(number).announce(places, names)
        pieces: list[list[bytearray]] = [[]] * len(indices)
        for number, places in wanted.items():
            try:
                found = self._shard(number).read(places, names)
            except (OSError, ValueError) as error:
                raise self._broken(number, f"cannot be read any more ({error})") from None
            for row, piece in zip(rows[number], found, strict=True):
                pieces[row] = piece
        return pieces

    def _number(self, i: int) -> int:
        return bisect_right(self.starts, i) - 1

    def batch(self, indices: Sequence[int]) -> LatentBatch:
        """Items as one float32 batch; text padded to its longest caption. Raises InputError for a NaN, naming shard and item."""
        pieces = self._pieces(indices, ("item", "id", "caption") if self.encoder else ("item", "id"))
        items = [torch.frombuffer(item, dtype=torch.float16) for item, *_ in pieces]
        size = math.prod(self.latent_shape)
        latents = torch.stack([item[: 2 * size] for item in items]).float().unflatten(1, (2, *self.latent_shape))
        if self.encoder is None:
            pooled = torch.stack([item[2 * size : 2 * size + self.pooled_dim] for item in items]).float()
            tokens = [item[2 * size + self.pooled_dim :].float().unflatten(0, (-1, self.sequence_dim)) for item in items]
            sequence = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
            mask = torch.arange(sequence.shape[1])[None] < torch.tensor([len(x) for x in tokens])[:, None]
            text = TextFeatures(sequence, pooled, mask)
        else:
            text = encode_text(self.encoder, [_text(caption) for _, _, caption in pieces])
        ids = [_text(name) for _, name, *_ in pieces]
        for what, x in (("latents", latents), ("text features", text.sequence), ("text features", text.pooled)):
            if not torch.isfinite(x.sum()):  # a sum over all shows a NaN at a fraction of the cost of looking at each
                row = int((~torch.isfinite(x).flatten(1).all(1)).nonzero()[0])
                raise self._broken(self._number(indices[row]), f"holds NaN or infinite {what} of {ids[row]!r}")
        return LatentBatch(latents[:, 0], latents[:, 1], text, ids)


def _text(piece: bytearray) -> str:
    return piece.decode(errors="replace")
