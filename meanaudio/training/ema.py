"""Power-function averages of weights (Karras et al., arXiv 2312.02696, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meanaudio.training.parallel import local


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
    """Averages of a network's trained parameters, weighted by (step)^gamma: early weights fade by themselves. Shards stay shards.

    After step n the weights of step k have the share (k / n)^(gamma + 1) - ((k - 1) / n)^(gamma + 1). sigma_rel 0: the last weights.
    """

    def __init__(self, network: nn.Module, sigma_rel: float) -> None:
        self.sigma_rel = sigma_rel
        self.exponent = gamma_of(sigma_rel) + 1 if sigma_rel > 0 else None
        self.averages: dict[str, Tensor] = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step `step` (1-based)."""
        keep = (1 - 1 / step) ** self.exponent if self.exponent is not None else 0.0
        weights = [local(p.detach()) for p in network.parameters() if p.requires_grad]
        torch._foreach_lerp_([local(average) for average in self.averages.values()], weights, 1 - keep)
