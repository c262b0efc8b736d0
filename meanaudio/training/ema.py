"""Power-function averages of weights (Karras et al., arXiv 2312.02696, section 3.1)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma whose profile t^gamma has relative standard deviation `sigma_rel` (0 < sigma_rel < 0.29).

    Root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), by bisection: it falls monotonically in gamma.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        if (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > sigma_rel**2:
            low = gamma
        else:
            high = gamma
    return gamma


class PowerEMA:
    """Keeps `network`, an average of the weights it is shown, weighted by (step)^gamma: early weights fade by themselves."""

    def __init__(self, source: nn.Module, sigma_rel: float) -> None:
        self.network = copy.deepcopy(source).eval().requires_grad_(False)
        self.exponent = gamma_of(sigma_rel) + 1 if sigma_rel > 0 else None

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step `step` (1-based)."""
        keep = (1 - 1 / step) ** self.exponent if self.exponent is not None else 0.0
        averages: list[Tensor] = list(self.network.parameters())
        weights = [p.detach() for p in source.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - keep)
        for average, buffer in zip(self.network.buffers(), source.buffers(), strict=True):
            average.copy_(buffer)
