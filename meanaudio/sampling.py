"""From noise to latents: noise that belongs to the clip, time grids, and one loop for both kinds of field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanaudio.errors import InputError
from meanaudio.types import Field

MAX_STEPS = 1000


def per_sample_noise(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal [len(seeds), *shape]; row k depends on seeds[k] alone: the same alone, in any batch, on any device."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def uniform_times(steps: int) -> Tensor:
    """[steps + 1] times from 1 (noise) to 0 (data)."""
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps = {steps}: must be from 1 to {MAX_STEPS}")
    return torch.linspace(1, 0, steps + 1)


@torch.inference_mode()
def integrate(field: Field, noise: Tensor, times: Tensor, *, mean: bool) -> Tensor:
    """Run dz/dt backwards over `times`: mean=True jumps by the mean velocity over [r, t], mean=False takes Euler steps on v(z, t)."""
    z = noise
    for t, r in zip(times[:-1].to(noise.device), times[1:].to(noise.device), strict=True):
        start, end = t.expand(len(z)), r.expand(len(z))
        z = z - (t - r) * field(z, start, end if mean else start)
    return z
