"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from meanaudio.data.dataset import Dataset, LatentStatistics
from meanaudio.data.order import Mixed, Order
from meanaudio.errors import InputError
from meanaudio.types import LatentBatch, TextFeatures

# What sets must have in common to be mixed, and what errors call it.
COMMON = {"codec_hash": "codec", "text": "text encoder", "text_fingerprint": "weights of the text encoder", "seconds": "window length"}


class Mixture(Dataset):
    """Several sets; indices count through them one after another. shares: of the rows of training, above 0 and together 1.

    Raises InputError where the sets differ in what they must have in common, which is then what `index` says.
    """

    def __init__(self, sets: Sequence[Dataset], shares: Sequence[float]) -> None:
        self.sets, self.shares = sets, shares
        self.name = " + ".join(data.name for data in sets)
        self.index = sets[0].index
        self.starts = [sum(map(len, sets[:k])) for k in range(len(sets))]
        for other in sets[1:]:
            for key, called in COMMON.items():
                if (found := other.index.get(key)) != (wanted := self.index.get(key)):
                    raise InputError(f"{other.name}: another {called} than {sets[0].name} has: {key} {found!r} instead of {wanted!r}")

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def batch(self, indices: Sequence[int]) -> LatentBatch:
        rows: list[int] = []
        parts: list[LatentBatch] = []
        for start, data in zip(self.starts, self.sets, strict=True):
            mine = [row for row, i in enumerate(indices) if start <= i < start + len(data)]
            if mine:
                rows += mine
                parts.append(data.batch([indices[row] - start for row in mine]))
        order = torch.tensor(rows).argsort()
        ids = [name for part in parts for name in part.ids]
        return LatentBatch(
            torch.cat([part.mean for part in parts])[order],
            torch.cat([part.std for part in parts])[order],
            TextFeatures.cat([part.text for part in parts])[order],
            [ids[place] for place in order.tolist()],
        )

    @property
    def ids(self) -> list[str]:
        return [name for data in self.sets for name in data.ids]

    @property
    def captions(self) -> list[str]:
        return [caption for data in self.sets for caption in data.captions]

    @property
    def statistics(self) -> LatentStatistics:
        """Those of what training sees: each set's with its share."""
        total = square = torch.zeros((), dtype=torch.float64)
        for share, data in zip(self.shares, self.sets, strict=True):
            mean, std = data.statistics.mean.double(), data.statistics.std.double()
            total, square = total + share * mean, square + share * (mean**2 + std**2)
        return LatentStatistics.of_sums(total, square, 1.0)

    @property
    def null_text(self) -> TextFeatures:
        return self.sets[0].null_text

    def order(self, seed: int) -> Order:
        return Mixed([len(data) for data in self.sets], self.shares, seed)
