"""From noise to latents and back: noise that belongs to the clip, time grids, and loops for both kinds of field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from meanaudio.errors import InputError
from meanaudio.types import Field

MAX_STEPS = 1000


def per_sample_noises(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Standard normals [len(seeds), *shape], one after another; row k depends on seeds[k] alone: the same in any batch, on any device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        yield torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators]).to(device)


def per_sample_noise(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """The first of `per_sample_noises`."""
    return next(per_sample_noises(shape, seeds, device))


def uniform_times(steps: int, start: float = 1.0) -> Tensor:
    """[steps + 1] times from `start`, 1 being noise, to 0 (data)."""
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps = {steps}: must be from 1 to {MAX_STEPS}")
    return torch.linspace(start, 0, steps + 1)


@torch.inference_mode()
def integrate(field: Field, noise: Tensor, times: Tensor, *, mean: bool) -> Tensor:
    """Run dz/dt backwards over `times`: mean=True jumps by the mean velocity over [r, t], mean=False takes Euler steps on v(z, t)."""
    z = noise
    for t, r in zip(times[:-1].to(noise.device), times[1:].to(noise.device), strict=True):
        start, end = t.expand(len(z)), r.expand(len(z))
        z = z - (t - r) * field(z, start, end if mean else start)
    return z


@torch.inference_mode()
def integrate_stochastic(field: Field, noises: Iterator[Tensor], times: Tensor, *, mean: bool) -> Tensor:
    """As `integrate` with as many evaluations, but each step goes twice as far and noise is added on the way back to its end.

    From t two steps down to k, then up to the s between them: z_s = A z_k + B noise with A = (1 - s) / (1 - k), B^2 = s^2 - A^2 k^2, which
    keeps mean and variance of z_s; the last step is plain. The rule of Meng et al. (arXiv 2210.03142), on the straight path (derived
    here). noises: the first is the starting point.
    """
    z = next(noises)
    times = times.to(z.device)
    for t, s, k in zip(times[:-2], times[1:-1], times[2:], strict=True):
        far = integrate(field, z, torch.stack([t, k]), mean=mean)
        keep = (1 - s) / (1 - k)
        z = keep * far + (s**2 - (keep * k) ** 2).clamp_min(0).sqrt() * next(noises)
    return integrate(field, z, times[-2:], mean=mean)


@torch.inference_mode()
def invert(field: Field, latents: Tensor, times: Tensor, *, mean: bool, iterations: int = 1) -> Tensor:
    """From latents at times[-1] up to times[0], against `integrate`: the point that it would have come from.

    A step down is z_r = z_t - (t - r) u(z_t, t, r); its start is the fixed point of z = z_r + (t - r) u(z, t, r), approached from z_r. One
    iteration is the usual deterministic encoding of diffusion models (Song et al., arXiv 2010.02502); more come nearer to the exact
    inverse as long as a step is short enough to be a contraction. iterations: evaluations a step.
    """
    if not 1 <= iterations <= MAX_STEPS:
        raise InputError(f"iterations = {iterations}: must be from 1 to {MAX_STEPS}")
    z, up = latents, times.flip(0).to(latents.device)
    for r, t in zip(up[:-1], up[1:], strict=True):
        start, end = t.expand(len(z)), r.expand(len(z))
        below = z
        for _ in range(iterations):
            z = below + (t - r) * field(z, start, end if mean else start)
    return z
