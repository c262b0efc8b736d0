"""Stage one of guided distillation (Meng et al., arXiv 2210.03142), on the straight path: the guidance scale becomes an input.

The student v(z, t | text, w) regresses the teacher's v(null) + w (v(text) - v(null)), w drawn in [low, high]. The paper's weight
max(SNR, 1) on the error of the clean latents is max((1 - t)^2, t^2) on that of the velocity, because x = z - t v and SNR = (1 - t)^2 / t^2
(derived here). The paper's w is 1 less than ours: 1 is no guidance. Up to two teacher passes without a graph, one student pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import expand, interpolate
from meanaudio.objectives.flow_matching import draw_instants
from meanaudio.objectives.two_times import AtScale, TwoTimeDraws, guidance_inputs, with_guidance
from meanaudio.types import Loss, Network, TextFeatures


def draw_guided_instants(shape: Sequence[int], *, progress: float, generator: torch.Generator, config: ObjectiveConfig) -> TwoTimeDraws:
    """One time and one scale a row."""
    base = draw_instants(shape, progress=progress, generator=generator, config=config)
    return with_guidance(base, generator, config)


def clean_weight(t: Tensor) -> Tensor:
    """max((1 - t)^2, t^2) [B]: the truncated signal-to-noise weight of the clean latents' error, for the error of a velocity."""
    return torch.maximum(1 - t, t).square()


@torch.no_grad()
def guided_teacher(teacher: Network, z: Tensor, t: Tensor, text: TextFeatures, null: TextFeatures, scale: Tensor, rows: Tensor) -> Tensor:
    """The teacher's velocity [B, L, C] at r = t; in `rows` [B] guided at scale [B], with a second pass where that is not 1."""
    rows = rows & (scale != 1)
    count = int(rows.sum())
    condition = teacher.condition(TextFeatures.cat([text, null.expand(count)]))
    places = torch.cat([torch.arange(len(z), device=z.device), rows.nonzero()[:, 0]])
    computed = teacher(z[places], t[places], t[places], condition).to(z.dtype)
    found = computed[: len(z)]
    guided = found.clone()
    guided[rows] = torch.lerp(computed[len(z) :], found[rows], expand(scale[rows], z))
    return guided


def guidance_distillation(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: TwoTimeDraws, *, progress: float, config: ObjectiveConfig,
    teacher: Network,
) -> Loss:  # fmt: skip
    """Weighted squared error between the student at scale w and the teacher guided at w; rows that lose their text know no guidance."""
    t, kept = draws.t, text.where(draws.keep, null)
    z = interpolate(x, draws.noise.to(x), t)
    target = guided_teacher(teacher, z, t, kept, null, draws.guidance[:, 0], draws.keep)
    predicted = AtScale(net, guidance_inputs(draws.guidance, config))(z, t, t, net.condition(kept)).to(z.dtype)
    error = (predicted - target).square().flatten(1).mean(1)
    per_sample = clean_weight(t) * error
    return Loss(per_sample, t, {"loss": per_sample.mean().item(), "error": error.mean().item()})
