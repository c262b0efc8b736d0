"""Training objectives. Each has the signature objective(net, x, text, null, *, progress, generator) -> Loss.

net: a Network. x [B, L, C]: normalised clean latents. text, null: features of the captions and of "" (one row).
progress in [0, 1] drives the schedules; every draw comes from `generator` (on the CPU, whatever the device).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meanaudio.config import ObjectiveConfig
from meanaudio.objectives.flow_matching import flow_matching
from meanaudio.objectives.mean_flow import mean_flow
from meanaudio.types import Loss

Objective = Callable[..., Loss]

OBJECTIVES: dict[str, Objective] = {"flow_matching": flow_matching, "mean_flow": mean_flow}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that `config` names, with its settings bound."""
    return partial(OBJECTIVES[config.kind], config=config)
