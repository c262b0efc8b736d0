"""The straight path between data (t = 0) and noise (t = 1), and how times on it are drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meanaudio.config import ScheduleConfig, TimeConfig

SIGMOID_SLOPE, SIGMOID_SNAP = 25.0, 0.005  # AlphaFlow's (arXiv 2510.20771): steepness, and how near an end the ramp snaps to it


def expand(t: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] so that it multiplies `like`."""
    return t.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - t) x + t noise, for x, noise [B, ...] and t [B]."""
    t = expand(t, x)
    return (1 - t) * x + t * noise


def velocity(x: Tensor, noise: Tensor) -> Tensor:
    """The path's instantaneous velocity dz/dt = noise - x, the same at every t."""
    return noise - x


def path_deviation(t: Tensor, std: Tensor) -> Tensor:
    """The standard deviation of z_t where x has mean 0 and deviation `std`. t and std broadcast."""
    return (t**2 + (1 - t) ** 2 * std**2).sqrt()


def normal_velocity(z: Tensor, t: Tensor, r: Tensor, std: Tensor) -> Tensor:
    """The exact mean velocity over [r, t] where x is normal with mean 0 and deviation `std`; at r = t the velocity. All broadcast.

    There z_r = z_t s(r) / s(t), with s the path's deviation; so u = (z_t - z_r) / (t - r), here with t - r cancelled. At r = t it is the
    skip connection of Karras et al. (arXiv 2206.00364, section 5) on this path.
    """
    at_t, at_r = path_deviation(t, std), path_deviation(r, std)
    return z * ((t + r) - std**2 * (2 - t - r)) / (at_t * (at_t + at_r))


def sample_times(
    batch: int, config: TimeConfig, interval_fraction: float, generator: torch.Generator, progress: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw (t, r), each [B], r <= t: two logit-normal draws, t the larger.

    A share 1 - interval_fraction of the rows gets r = t (MeanAudio's mix-up). The number of rows is exact, not random: the share is
    rounded up or down at random so that its mean is right also in small batches. Rows are shuffled implicitly: rows are independent.
    `endpoint_fraction`, scheduled by `progress`, of the interval rows become (t, r) = (1, 0), the jump that one-step sampling takes.
    """
    draws = torch.sigmoid(torch.randn(2, batch, generator=generator) * config.std + config.mean)
    t, r = draws.amax(0), draws.amin(0)
    rows = batch * interval_fraction
    intervals = math.floor(rows) + int(torch.rand((), generator=generator) < rows - math.floor(rows))
    r[intervals:] = t[intervals:]
    ends = torch.rand(batch, generator=generator) < schedule(config.endpoint_fraction, progress)
    ends[intervals:] = False
    return torch.where(ends, 1.0, t), torch.where(ends, 0.0, r)


def schedule(config: ScheduleConfig, progress: float) -> float:
    """The schedule's value at `progress` in [0, 1]."""
    if progress >= config.end:
        return config.stop
    if progress <= config.begin:
        return config.start
    share = (progress - config.begin) / (config.end - config.begin)
    if config.shape == "cosine":
        ramp = 0.5 * (1 - math.cos(math.pi * share))
    else:
        ramp = 1 / (1 + math.exp(-SIGMOID_SLOPE * (share - 0.5)))
        ramp = 0.0 if ramp < SIGMOID_SNAP else 1.0 if ramp > 1 - SIGMOID_SNAP else ramp
    return config.start + (config.stop - config.start) * ramp
