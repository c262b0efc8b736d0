"""The training loss on held-out clips, under the same noise and times at every visit: a number that can be compared along a run."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from meanaudio import distributed
from meanaudio.objectives import Objective
from meanaudio.types import LatentBatch, TextFeatures

SEED = 30_000
BINS = 5  # of equal width over the times [0, 1]
CHUNK = 32  # rows at a time


def held_out_loss(
    network: nn.Module, objective: Objective, batch: LatentBatch, null: TextFeatures, mean: Tensor, std: Tensor, count: int
) -> dict[str, float]:
    """`error` of the objective and `error_t_0.2_0.4`, ... by the time t of the row; bins into which no time falls are left out.

    Without the adaptive weighting and the dropout of text, and with the schedules at their end: the same question from the first step to
    the last. What else the objective's loss is made of stays in it: other weights, as of distillation, and parts beside the error.
    batch: this rank's rows of `count` held-out ones (distributed.my_rows). mean, std [C] normalise latents. All ranks call it.
    """
    objective = replace(objective, config=objective.config.model_copy(update={"adaptive_power": 0.0, "text_dropout": 0.0}))
    rows = list(distributed.my_rows(count))
    shape = (count, *batch.mean.shape[1:])
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(shape, generator=generator)[rows]
    draws = objective.draw(shape, progress=1.0, generator=generator)[rows].to(mean.device)
    x = ((batch.mean + batch.std * noise).to(mean.device) - mean) / std
    errors = [torch.empty(0)]
    for i in range(0, len(rows), CHUNK):
        part = slice(i, i + CHUNK)
        loss = objective.loss(network, x[part], batch.text[part].to(mean.device), null, draws[part], progress=1.0)  # type: ignore[arg-type]
        errors.append(loss.per_sample.float().cpu())
    error, t = distributed.gather_rows(torch.cat(errors), count), distributed.gather_rows(draws.t.cpu(), count)
    numbers = {"error": error.mean().item()}
    bins = (t * BINS).long().clamp_max(BINS - 1)
    for i in bins.unique().tolist():
        numbers[f"error_t_{i / BINS:.1f}_{(i + 1) / BINS:.1f}"] = error[bins == i].mean().item()
    return numbers
