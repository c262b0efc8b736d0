"""Conditional implicit maximum likelihood (IMLE, Li & Malik, arXiv 1809.09087): every recording has an output of its caption near it.

Of `config.noises` noises a row, the one whose jump x' = noise - u(noise, 1, 0) lies nearest to the recording x is drawn nearer to it, by
mean squared error over the latents. Regression (one noise) makes each output the mean of all recordings of its caption, which is none of
them; of several noises each recording takes its own, and the others stay free for other recordings, so none is left out. It covers rather
than matches: of one normal number outputs come to have 0.99 of its deviation with 4 noises and 1.46 with 16 [measured]. With few
recordings a caption they come to be known by heart. No teacher and no judge; `noises` passes without a graph (none if there is one
noise), one with.

`config.rehearsal` (ours) holds what is not in the recordings: beside that share of the rows a known prompt is asked for, and the network
is to make of it what it made when the run began (without forgetting, Li and Hoiem, arXiv 1606.09282; here with no data but the prompts).
It counts `config.anchor` times as much as a recording, and costs a row of the pass with a graph and one of a pass without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.objectives.one_step import jump, rehearsing_rows
from meanaudio.types import Draws, Loss, Network, Recall, TextFeatures


@dataclass(frozen=True)
class NoisesDraws(Draws):
    """others [B, N - 1, L, C]: the noises beside `noise`. seeds [B]: of the known prompts beside the rows of `rehearsing` [B]."""

    others: Tensor
    rehearsing: Tensor
    seeds: Tensor


def draw_noises(shape: Sequence[int], *, progress: float, generator: torch.Generator, config: ObjectiveConfig) -> NoisesDraws:
    batch, *each = shape
    noise, ones = torch.randn(tuple(shape), generator=generator), torch.ones(batch)
    keep = torch.rand(batch, generator=generator) >= config.text_dropout
    others = torch.randn((batch, config.noises - 1, *each), generator=generator)
    seeds = torch.randint(2**31, (batch,), generator=generator)
    return NoisesDraws(noise, ones, 0 * ones, keep, others, rehearsing_rows(batch, config.rehearsal), seeds)


def implicit_maximum_likelihood(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: NoisesDraws, *, progress: float, config: ObjectiveConfig,
    before: Network | None = None, recall: Recall | None = None,
) -> Loss:  # fmt: skip
    """Squared distance of each recording to the nearest output; rows that rehearse add that to what `before` makes of a known prompt.

    before: the network as it was at first; recall: known prompts; both where rows rehearse. error, in the log: of recordings; typical: the
    mean distance to all of their outputs; forgotten: of known prompts.
    """
    text, noise, logs = text.where(draws.keep, null), draws.noise.to(x), {}
    if config.noises > 1:
        noises = torch.stack([noise, *draws.others.to(x).unbind(1)])
        with torch.no_grad():
            condition = net.condition(text)
            distances = torch.stack([_distance(jump(net, each, condition), x) for each in noises])
        noise = noises[distances.argmin(0), torch.arange(len(x), device=x.device)]
        logs["typical"] = distances.mean().item()

    rows, known, held, wanted = draws.rehearsing.nonzero()[:, 0], text[:0], noise[:0], noise[:0]
    if len(rows):
        assert before is not None
        assert recall is not None
        known, held = recall(draws.seeds[rows]), draws.noise[rows].to(x)
        with torch.no_grad():
            wanted = jump(before, held, before.condition(known))
    made = jump(net, torch.cat([noise, held]), net.condition(TextFeatures.cat([text, known])))
    per_sample = _distance(made[: len(x)], x)
    logs["error"] = per_sample.mean().item()
    if len(rows):
        forgotten = _distance(made[len(x) :], wanted)
        logs["forgotten"] = forgotten.mean().item()
        per_sample = per_sample.index_add(0, rows, config.anchor * forgotten)
    return Loss(per_sample, draws.t, {"loss": per_sample.mean().item(), **logs})


def _distance(made: Tensor, x: Tensor) -> Tensor:
    """Mean squared, [B]."""
    return (made - x).square().flatten(1).mean(1)
