"""Training objectives: each a pair of functions, one that draws all that is random in a batch and one that computes the loss of it.

Drawing apart from computing lets several processes draw the same whole batch and take their own rows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.objectives.flow_matching import draw_instants, flow_matching
from meanaudio.objectives.mean_flow import draw_intervals, mean_flow
from meanaudio.types import Draws, Loss, Network, TextFeatures

# kind: draw(shape, progress=, generator=, config=) -> Draws, and loss(net, x, text, null, draws, progress=, config=) -> Loss
OBJECTIVES = {"flow_matching": (draw_instants, flow_matching), "mean_flow": (draw_intervals, mean_flow)}


@dataclass(frozen=True)
class Objective:
    """The objective that `config` names. progress in [0, 1] drives its schedules."""

    config: ObjectiveConfig

    def draw(self, shape: Sequence[int], *, progress: float, generator: torch.Generator) -> Draws:
        """What is random for latents of `shape` [B, L, C]; on the CPU, from a CPU generator."""
        return OBJECTIVES[self.config.kind][0](shape, progress=progress, generator=generator, config=self.config)

    def loss(self, net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, *, progress: float) -> Loss:
        """x [B, L, C]: normalised clean latents. text, null: features of the captions and of "" (one row). All on one device."""
        return OBJECTIVES[self.config.kind][1](net, x, text, null, draws, progress=progress, config=self.config)

    def __call__(
        self, net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, *, progress: float, generator: torch.Generator
    ) -> Loss:
        """Draw and compute."""
        draws = self.draw(x.shape, progress=progress, generator=generator).to(x.device)
        return self.loss(net, x, text, null, draws, progress=progress)


def make_objective(config: ObjectiveConfig) -> Objective:
    return Objective(config)
