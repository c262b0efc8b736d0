"""A reward's gradient through one step (DRaFT, Clark et al., arXiv 2309.17400; AlignProp, Prabhudesai et al., arXiv 2310.03739).

The network's jump x = noise - u(noise, 1, 0) goes on through a judge who can be differentiated: the loss is how little x fits its caption
among others, a cross entropy. Both papers go back through the last steps of a sampler or through all of them; where one step is the whole
sampler, the gradient is exact and costs one pass of the network. A judge can be pleased in ways that nobody else would hear, so the mean
squared distance to what the network made of the same noise when the run began is added, weighed by `anchor`. One pass of the network with a
graph, one without; one of the judge. No recording is looked at, and no text is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.types import Draws, Judge, Loss, Network, TextFeatures


def reward(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, *, progress: float, config: ObjectiveConfig,
    before: Network, judge: Judge,
) -> Loss:  # fmt: skip
    """before: the network as it was at first. error: the judge's, without what holds the network back."""
    noise = draws.noise.to(x)
    t, r = torch.ones_like(draws.t), torch.zeros_like(draws.t)

    def output(network: Network) -> Tensor:
        return noise - network(noise, t, r, network.condition(text)).to(x.dtype)

    made = output(net)
    with torch.no_grad():
        at_first = output(before)
    judged = judge(made, text)
    moved = (made - at_first).square().flatten(1).mean(1)
    per_sample = judged + config.anchor * moved
    return Loss(per_sample, t, {"loss": per_sample.mean().item(), "error": judged.mean().item(), "moved": moved.mean().item()})
