"""Flow matching (Lipman et al., arXiv 2210.02747) on the straight path: regress v = noise - x at z_t."""

from __future__ import annotations

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import interpolate, sample_times, velocity
from meanaudio.types import Loss, Network, TextFeatures


def keep_text(batch: int, dropout: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """[B] True where a row keeps its caption, False where it is trained as unconditional."""
    return (torch.rand(batch, generator=generator) >= dropout).to(device)


def flow_matching(
    net: Network,
    x: Tensor,
    text: TextFeatures,
    null: TextFeatures,
    *,
    progress: float,
    generator: torch.Generator,
    config: ObjectiveConfig,
) -> Loss:
    """Mean squared error of the velocity, one time a row, text dropped in `text_dropout` of the rows."""
    noise = torch.randn(x.shape, generator=generator).to(x)
    t, _ = sample_times(len(x), config.time, 0.0, generator)
    t = t.to(x.device)
    kept = text.where(keep_text(len(x), config.text_dropout, generator, x.device), null)
    predicted = net(interpolate(x, noise, t), t, t, net.condition(kept))
    per_sample = (predicted.float() - velocity(x, noise)).square().flatten(1).mean(1)
    return Loss(per_sample, t, {"loss": per_sample.mean().item(), "error": per_sample.mean().item()})
