"""What training knows of a set of items, wherever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from meanaudio.data.order import Epochs, Order
from meanaudio.types import LatentBatch, TextFeatures


@dataclass(frozen=True)
class LatentStatistics:
    """Per-channel mean and standard deviation [C] over all latents drawn from the posteriors."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of_sums(total: Tensor, square: Tensor, rows: int | float) -> LatentStatistics:
        """From float64 sums [C] of z and z^2 over `rows` latents."""
        mean = total / rows
        return LatentStatistics(mean.float(), (square / rows - mean**2).clamp_min(1e-12).sqrt().float())


class Dataset(ABC):
    """Items by number. index: facts about the set, such as codec_hash, text and seconds. name: what errors call it."""

    name: str
    index: Mapping[str, Any]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> LatentBatch:
        """Items as one float32 batch, on the CPU unless the set says otherwise; text padded to the longest caption."""

    @property
    @abstractmethod
    def ids(self) -> list[str]: ...

    @property
    @abstractmethod
    def captions(self) -> list[str]: ...

    @property
    @abstractmethod
    def statistics(self) -> LatentStatistics: ...

    @property
    @abstractmethod
    def null_text(self) -> TextFeatures: ...

    def order(self, seed: int) -> Order:
        """The order in which training goes through the items."""
        return Epochs(len(self), seed)
