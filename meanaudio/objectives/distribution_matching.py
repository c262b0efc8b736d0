"""Distribution matching distillation (Yin et al., arXiv 2311.18828; DMD2, Yin et al., arXiv 2405.14867): one step to a teacher's outputs.

The student's jump x = noise - u(noise, 1, 0) need not end where any sampler of the teacher's would from the same noise; its outputs as a
whole are to be distributed as the teacher's. Noise is laid on x up to a time t. There the teacher, guided at the scale omega / (1 - kappa),
estimates what is clean, and so does the critic, a second network that follows the student by flow matching on its outputs. The gradient
in x of the Kullback-Leibler divergence between both is the difference of the two estimates, and per row it is divided by the mean distance
between x and the teacher's (paper). The critic makes `critic_steps` updates for one of the student's (DMD2's two time scales, which make
the regression onto pairs of noise and output needless), all on the outputs that the student is then judged by (ours: it makes them once).

A share of the rows (`rehearsal`, ours) regresses besides what the student said when the run began, over shorter steps and at r = t, so
that more steps remain possible; there, and only there, text is dropped. One student pass; two of the teacher, one of the critic and, for
rehearsing rows, one of the student at first without a graph. Each of the critic's updates is one pass of it, and all together one of the
student without a graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import expand, interpolate
from meanaudio.objectives.flow_matching import draw_instants
from meanaudio.objectives.guidance_distillation import guided_teacher
from meanaudio.objectives.one_step import jump, rehearsing_rows
from meanaudio.types import Draws, Loss, Network, TextFeatures

MOST_STEPS = 8  # rehearsed: 2, 4 and 8
LEAST_DISTANCE = 1e-3  # of an output from the teacher's estimate, where it divides


@dataclass(frozen=True)
class MatchingDraws(Draws):
    """noise: what the student jumps from. t, r, keep: of the rows that rehearse, `rehearsing` [B].

    again [B, K + 1, L, C], place [B, K + 1]: noise laid on outputs, and the times up to which, for K updates of the critic and, last, for
    the student's.
    """

    rehearsing: Tensor
    again: Tensor
    place: Tensor


def draw_matching(shape: Sequence[int], *, progress: float, generator: torch.Generator, config: ObjectiveConfig) -> MatchingDraws:
    """t and r on grids of 2, 4 and 8 steps or r = t."""
    base = draw_instants(shape, progress=progress, generator=generator, config=config)
    rows, times = shape[0], config.matching.critic_steps + 1
    rehearsing = rehearsing_rows(rows, config.matching.rehearsal)
    kind = torch.randint(0, round(math.log2(MOST_STEPS)) + 1, (rows,), generator=generator)
    place = torch.floor(torch.rand(rows, generator=generator) * 2**kind)
    t, r = (torch.where(kind == 0, base.t, edge / 2**kind) for edge in (place + 1, place))
    again = torch.randn((rows, times, *shape[1:]), generator=generator)
    instants = [draw_instants((rows, 0), progress=progress, generator=generator, config=config).t for _ in range(times)]
    return MatchingDraws(base.noise, t, r, base.keep, rehearsing, again, torch.stack(instants, 1))


@torch.no_grad()
def outputs(net: Network, text: TextFeatures, draws: MatchingDraws) -> Tensor:
    """What the student makes [B, L, C] of the drawn noise."""
    return jump(net, draws.noise, net.condition(text))


def laid_on(draws: MatchingDraws, number: int) -> Draws:
    """Noise and times of one comparison, as flow matching on `outputs` draws them for the critic's update `number`; -1: the student's."""
    t = draws.place[:, number]
    return Draws(draws.again[:, number], t, t, torch.ones_like(draws.keep))


@torch.no_grad()
def estimates(
    made: Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, config: ObjectiveConfig, teacher: Network, critic: Network
) -> tuple[Tensor, Tensor]:
    """What the guided teacher and the critic take to be clean [B, L, C], once noise is laid on `made`."""
    t = draws.t
    z = interpolate(made, draws.noise, t)
    v = guided_teacher(teacher, z, t, text, null, torch.full_like(t, config.guidance_scale), draws.keep)
    return z - expand(t, z) * v, z - expand(t, z) * critic(z, t, t, critic.condition(text)).to(z.dtype)


def distribution_matching(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: MatchingDraws, *, progress: float, config: ObjectiveConfig,
    teacher: Network, critic: Network, before: Network,
) -> Loss:  # fmt: skip
    """A loss whose gradient in the outputs is that of the divergence; rehearsing rows add their squared error to `before`.

    before: the student at first. error: mean squared difference of the two estimates.
    """
    noise, rows = draws.noise.to(x), draws.rehearsing.nonzero()[:, 0]
    kept, t, r = text[rows].where(draws.keep[rows], null), draws.t[rows], draws.r[rows]
    z = interpolate(x[rows], noise[rows], t)
    starts, ends = torch.ones_like(draws.t), torch.zeros_like(draws.r)
    condition = net.condition(TextFeatures.cat([text, kept]))
    u = net(torch.cat([noise, z]), torch.cat([starts, t]), torch.cat([ends, r]), condition).to(x.dtype)
    made, told = noise - u[: len(x)], u[len(x) :]

    # The gradient of the divergence in `made`, and a square that has this gradient
    last = laid_on(draws, -1)
    theirs, ours = estimates(made.detach(), text, null, last, config, teacher, critic)
    distance = (made.detach() - theirs).abs().flatten(1).mean(1).clamp_min(LEAST_DISTANCE)
    gradient = (ours - theirs) / expand(distance, made)
    per_sample = 0.5 * (made - (made.detach() - gradient)).square().flatten(1).mean(1)
    logs = {"error": (ours - theirs).square().mean().item(), "distance": distance.mean().item()}

    if len(rows):
        with torch.no_grad():
            wanted = before(z, t, r, before.condition(kept)).to(x.dtype)
        forgotten = (told - wanted).square().flatten(1).mean(1)
        per_sample = per_sample.index_add(0, rows, forgotten)
        logs["forgotten"] = forgotten.mean().item()
    return Loss(per_sample, last.t, {"loss": per_sample.mean().item(), **logs})
