"""Training objectives: each a pair of functions, one that draws all that is random in a batch and one that computes the loss of it.

Drawing apart from computing lets several processes draw the same whole batch and take their own rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanaudio.config import DISTILLED, REHEARSING, REWARDED, WITH_CRITIC, ObjectiveConfig
from meanaudio.objectives.alpha_flow import alpha_flow
from meanaudio.objectives.distribution_matching import distribution_matching, draw_matching
from meanaudio.objectives.finite_difference import finite_difference
from meanaudio.objectives.flow_matching import draw_instants, flow_matching
from meanaudio.objectives.guidance_distillation import draw_guided_instants, guidance_distillation
from meanaudio.objectives.implicit_maximum_likelihood import draw_noises, implicit_maximum_likelihood
from meanaudio.objectives.improved_mean_flow import improved_mean_flow
from meanaudio.objectives.interval_splitting import interval_splitting
from meanaudio.objectives.mean_flow import draw_intervals, mean_flow
from meanaudio.objectives.mean_flow_distillation import mean_flow_distillation
from meanaudio.objectives.progressive_distillation import draw_steps, progressive_distillation
from meanaudio.objectives.reward import draw_requests, reward
from meanaudio.objectives.two_times import draw_two_times
from meanaudio.types import Draws, Judge, Loss, Network, Recall, TextFeatures

# kind: draw(shape, progress=, generator=, config=) -> Draws, and loss(net, x, text, null, draws, progress=, config=) -> Loss;
# the loss of a distillation takes teacher= too, one with a critic critic= and before=, a reward's judge= and before=, one that rehearses
# recall= and before=.
OBJECTIVES: dict[str, tuple[Callable[..., Draws], Callable[..., Loss]]] = {
    "flow_matching": (draw_instants, flow_matching),
    "mean_flow": (draw_intervals, mean_flow),
    "improved_mean_flow": (draw_two_times, improved_mean_flow),
    "alpha_flow": (draw_two_times, alpha_flow),
    "interval_splitting": (draw_two_times, interval_splitting),
    "finite_difference": (draw_two_times, finite_difference),
    "guidance_distillation": (draw_guided_instants, guidance_distillation),
    "mean_flow_distillation": (draw_intervals, mean_flow_distillation),
    "progressive_distillation": (draw_steps, progressive_distillation),
    "distribution_matching": (draw_matching, distribution_matching),
    "reward": (draw_requests, reward),
    "implicit_maximum_likelihood": (draw_noises, implicit_maximum_likelihood),
}


@dataclass(frozen=True)
class Objective:
    """The objective that `config` names. progress in [0, 1] drives its schedules. teacher: the network a distillation learns from.

    critic: the network that follows the student of a distribution matching. judge: of a reward. recall: of a rehearsal, known prompts.
    before: with any of these, the network as it was when the run began.
    """

    config: ObjectiveConfig
    teacher: Network | None = None
    critic: Network | None = None
    before: Network | None = None
    judge: Judge | None = None
    recall: Recall | None = None

    def draw(self, shape: Sequence[int], *, progress: float, generator: torch.Generator) -> Draws:
        """What is random for latents of `shape` [B, L, C]; on the CPU, from a CPU generator."""
        return OBJECTIVES[self.config.kind][0](shape, progress=progress, generator=generator, config=self.config)

    def loss(self, net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, *, progress: float) -> Loss:
        """x [B, L, C]: normalised clean latents. text, null: features of the captions and of "" (one row). All on one device."""
        more: dict[str, Any] = {"teacher": self.teacher} if self.config.kind in DISTILLED else {}
        more |= {"critic": self.critic, "before": self.before} if self.config.kind in WITH_CRITIC else {}
        more |= {"judge": self.judge, "before": self.before} if self.config.kind in REWARDED else {}
        more |= {"before": self.before, "recall": self.recall} if self.config.kind in REHEARSING else {}
        return OBJECTIVES[self.config.kind][1](net, x, text, null, draws, progress=progress, config=self.config, **more)

    def __call__(
        self, net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, *, progress: float, generator: torch.Generator
    ) -> Loss:
        """Draw and compute."""
        draws = self.draw(x.shape, progress=progress, generator=generator).to(x.device)
        return self.loss(net, x, text, null, draws, progress=progress)
