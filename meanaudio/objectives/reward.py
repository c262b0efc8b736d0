"""A reward's gradient through one step (DRaFT, Clark et al., arXiv 2309.17400; AlignProp, Prabhudesai et al., arXiv 2310.03739).

The network's jump x = noise - u(noise, 1, 0) goes on through a judge who can be differentiated: the loss is how little of what was asked is
heard in x. Both papers go back through the last steps of a sampler or through all of them; where one step is the whole sampler, the
gradient is exact and costs one pass of the network. A judge can be pleased in ways that nobody else would hear, so the mean squared
distance to what the network made of the same noise when the run began is added, weighed by `anchor`. One pass of the network with a graph,
one without; one of the judge. What to ask for is the judge's too: neither recordings nor their captions are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.objectives.one_step import jump
from meanaudio.types import Draws, Judge, Loss, Network, TextFeatures


@dataclass(frozen=True)
class RewardDraws(Draws):
    """seeds [B, 2]: a row's own, of what is asked and how it is heard, and the whole batch's."""

    seeds: Tensor


def draw_requests(shape: Sequence[int], *, progress: float, generator: torch.Generator, config: ObjectiveConfig) -> RewardDraws:
    noise, ones = torch.randn(tuple(shape), generator=generator), torch.ones(shape[0])
    own, common = (torch.randint(2**31, (count,), generator=generator) for count in (shape[0], 1))
    return RewardDraws(noise, ones, 0 * ones, ones.bool(), torch.stack([own, common.expand_as(own)], 1))


def reward(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: RewardDraws, *, progress: float, config: ObjectiveConfig,
    before: Network, judge: Judge,
) -> Loss:  # fmt: skip
    """before: the network as it was at first. x, text, null: not looked at.

    error, in the log: the judge's part of the loss; `held_out/error` is all of it, as of every objective.
    """
    noise = draws.noise.to(x)
    wanted, asked = judge.ask(draws.seeds)

    made = jump(net, noise, net.condition(wanted))
    with torch.no_grad():
        at_first = jump(before, noise, before.condition(wanted))
    judged = judge(made, asked, draws.seeds)
    moved = (made - at_first).square().flatten(1).mean(1)
    per_sample = judged + config.anchor * moved
    return Loss(per_sample, draws.t, {"loss": per_sample.mean().item(), "error": judged.mean().item(), "moved": moved.mean().item()})
