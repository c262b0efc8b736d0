"""Stage two of guided distillation (Meng et al., arXiv 2210.03142; Salimans & Ho, arXiv 2202.00512): half as many steps a round.

A student step over [t - D, t], D = 1 / N, learns where two teacher steps of D / 2 lead, z' = z - D/2 v(z, t) and then
z'' = z' - D/2 v(z', t - D/2). On the straight path the target (z - z'') / D is the mean velocity over [t - D, t] (derived here), so one
network u(z, t, r) serves every N, and the student of a round is the teacher of the next. In the first round the teacher is a
flow-matching network, whose steps are Euler's. A share of the rows (`rehearsal`, ours) regresses the teacher's own shorter steps and its
velocity at r = t, so that they are not forgotten. The weight is that of stage one. Two teacher passes without a graph, one student pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from meanaudio.config import HalvingConfig, ObjectiveConfig
from meanaudio.flow import expand, interpolate
from meanaudio.objectives.flow_matching import draw_instants
from meanaudio.objectives.guidance_distillation import clean_weight
from meanaudio.objectives.two_times import AtScale, TwoTimeDraws, guidance_inputs, with_guidance
from meanaudio.types import Draws, Loss, Network, TextFeatures


def draw_steps(shape: Sequence[int], *, progress: float, generator: torch.Generator, config: ObjectiveConfig) -> TwoTimeDraws:
    """t on the grid of N steps and r one step below it; in the rehearsing rows the grid of an earlier round, or r = t."""
    base, halving = draw_instants(shape, progress=progress, generator=generator, config=config), config.halving
    rehearsing = torch.rand(len(base), generator=generator) < halving.rehearsal
    # Kind 0 is r = t, kind k > 0 the round before this one by k: N doubled k times.
    rounds = round(math.log2(halving.first / halving.steps))
    kind = torch.randint(0, rounds + 1, (len(base),), generator=generator)
    steps = halving.steps * 2.0 ** torch.where(rehearsing, kind, 0)
    place = torch.floor(torch.rand(len(base), generator=generator) * steps)
    instant = rehearsing & (kind == 0)
    t = torch.where(instant, base.t, (place + 1) / steps)
    r = torch.where(instant, base.t, place / steps)
    return with_guidance(Draws(base.noise, t, r, base.keep), generator, config)


@torch.no_grad()
def teacher_steps(
    teacher: Network, z: Tensor, t: Tensor, r: Tensor, text: TextFeatures, scale: Tensor | None, halving: HalvingConfig
) -> Tensor:
    """Mean velocity [B, L, C] over [r, t] by two teacher steps where the interval is of this round, by the teacher's own one elsewhere."""
    new = (t - r) * halving.steps > 0.75
    euler = halving.steps == halving.first  # the teacher of the first round knows velocities only
    condition = teacher.condition(text)
    middle = torch.where(new, (t + r) / 2, r)
    first = AtScale(teacher, scale)(z, t, t if euler else middle, condition).to(z.dtype)
    if not new.any():
        return first
    z2 = (z - expand(t - middle, z) * first)[new]
    scale = None if scale is None else scale[new]
    second = AtScale(teacher, scale)(z2, middle[new], middle[new] if euler else r[new], teacher.condition(text[new])).to(z.dtype)
    target = first.clone()
    target[new] = (first[new] + second) / 2
    return target


def progressive_distillation(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: TwoTimeDraws, *, progress: float, config: ObjectiveConfig,
    teacher: Network,
) -> Loss:  # fmt: skip
    """Weighted squared error between the student's mean velocity and where the teacher's steps lead."""
    t, r, kept = draws.t, draws.r, text.where(draws.keep, null)
    z, scale = interpolate(x, draws.noise.to(x), t), guidance_inputs(draws.guidance, config)
    target = teacher_steps(teacher, z, t, r, kept, scale, config.halving)
    predicted = AtScale(net, scale)(z, t, r, net.condition(kept)).to(z.dtype)
    error = (predicted - target).square().flatten(1).mean(1)
    per_sample = clean_weight(t) * error
    return Loss(per_sample, t, {"loss": per_sample.mean().item(), "error": error.mean().item()})
