"""Flow matching (Lipman et al., arXiv 2210.02747) on the straight path: regress v = noise - x at z_t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import interpolate, sample_times, velocity
from meanaudio.types import Draws, Loss, Network, TextFeatures


def draw(
    shape: Sequence[int], *, interval_fraction: float, generator: torch.Generator, config: ObjectiveConfig, progress: float = 0.0
) -> Draws:
    """Noise, times and kept rows; r < t in `interval_fraction` of the rows, text dropped in `text_dropout` of them."""
    noise = torch.randn(tuple(shape), generator=generator)
    t, r = sample_times(shape[0], config.time, interval_fraction, generator, progress)
    return Draws(noise, t, r, torch.rand(shape[0], generator=generator) >= config.text_dropout)


def draw_instants(shape: Sequence[int], *, progress: float, generator: torch.Generator, config: ObjectiveConfig) -> Draws:
    """One time a row: r = t."""
    return draw(shape, interval_fraction=0.0, generator=generator, config=config)


def flow_matching(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, *, progress: float, config: ObjectiveConfig
) -> Loss:
    """Mean squared error of the velocity."""
    noise, t = draws.noise.to(x), draws.t
    predicted = net(interpolate(x, noise, t), t, t, net.condition(text.where(draws.keep, null)))
    per_sample = (predicted.float() - velocity(x, noise)).square().flatten(1).mean(1)
    return Loss(per_sample, t, {"loss": per_sample.mean().item(), "error": per_sample.mean().item()})
