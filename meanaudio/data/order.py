"""In which order training sees items: pure functions of (seed, position), so that a run can begin anywhere.

Position p is row p % batch_size of batch p // batch_size, over all processes together; a rank takes its rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # positions over which a mixture is balanced


class Order(Protocol):
    def take(self, first: int, number: int) -> list[int]:
        """Indices of the items at positions first, …, first + number - 1."""
        ...


class Epochs:
    """Every item of `count` once an epoch, shuffled anew each time; epochs follow without a seam."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._kept: tuple[int, Tensor] | None = None  # the last epoch that was asked for, and its order

    def _shuffled(self, epoch: int) -> Tensor:
        kept = self._kept
        if kept is None or kept[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._kept = kept = (epoch, torch.randperm(self.count, generator=generator))
        return kept[1]

    def take(self, first: int, number: int) -> list[int]:
        order: list[int] = []
        while len(order) < number:
            epoch, start = divmod(first + len(order), self.count)
            order += self._shuffled(epoch)[start : start + number - len(order)].tolist()
        return order


def epoch_order(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of batch number `step` of one data set."""
    return Epochs(count, seed).take(step * batch_size, batch_size)


class Mixed:
    """Several sets in one order: set k has `shares[k]` of the positions, to within a few of them at any place.

    Each set goes through its own epochs at its own pace. counts: items of each set; shares: above 0, together 1.
    Indices count through the sets one after another. Within a block of positions the sets' turns are shuffled, so that no rank of a batch
    always has the same set.
    """

    def __init__(self, counts: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self.shares, self.seed = shares, seed
        self.offsets = [sum(counts[:k]) for k in range(len(counts))]
        self.epochs = [Epochs(count, seed * 1009 + k) for k, count in enumerate(counts)]

    def take(self, first: int, number: int) -> list[int]:
        order: list[int] = []
        while len(order) < number:
            block, start = divmod(first + len(order), BLOCK)
            order += self._block(block, start, min(BLOCK, start + number - len(order)))
        return order

    def _block(self, block: int, start: int, stop: int) -> list[int]:
        """Indices at places start, …, stop - 1 of a block."""
        done = _turns_before(self.shares, block * BLOCK)
        turns = np.random.default_rng((self.seed, block)).permutation(_turns(self.shares, done, BLOCK))
        indices = np.empty(stop - start, dtype=np.int64)
        for k, (offset, epochs) in enumerate(zip(self.offsets, self.epochs, strict=True)):
            first = done[k] + int((turns[:start] == k).sum())
            here = turns[start:stop] == k
            indices[here] = np.array(epochs.take(first, int(here.sum())), dtype=np.int64) + offset
        return indices.tolist()


def _turns(shares: Sequence[float], done: Sequence[int], number: int) -> list[int]:
    """Whose turn it is, `number` times, after each set had `done` turns: turn j of a set is due at (j + 1/2) / its share."""
    counts, turns = list(done), []
    for _ in range(number):
        k = min(range(len(shares)), key=lambda k: (counts[k] + 0.5) / shares[k])
        counts[k] += 1
        turns.append(k)
    return turns


def _turns_before(shares: Sequence[float], position: int) -> list[int]:
    """How many of the first `position` turns were each set's."""
    done = [int(max(0, position - len(shares)) * share) for share in shares]  # all of these lie before it
    for k in _turns(shares, done, position - sum(done)):
        done[k] += 1
    return done
