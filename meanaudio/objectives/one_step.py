"""The jump from noise to sound, all that some objectives look at, and rows that rehearse what a network made before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meanaudio.types import Network

EVENLY = 2**0.5 - 1  # its multiples fill [0, 1) evenly, and so do every second, third, fourth, eighth, … of them


def jump(net: Network, noise: Tensor, condition: Any) -> Tensor:
    """What a network makes of noise [B, L, C] in one step, noise - u(noise, t = 1, r = 0)."""
    ones = torch.ones(len(noise), device=noise.device)
    return noise - net(noise, ones, 0 * ones, condition).to(noise.dtype)


def rehearsing_rows(batch: int, share: float) -> Tensor:
    """[B] True for a share of the rows, at least one: the same in every batch, spread so that parts of it have alike many."""
    count = max(1, round(batch * share)) if share > 0 else 0
    rows = torch.zeros(batch, dtype=torch.bool)
    rows[(torch.arange(1, batch + 1) * EVENLY % 1).argsort()[:count]] = True
    return rows
