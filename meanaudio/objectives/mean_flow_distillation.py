"""MeanFlow's equation for the velocities of a teacher: mean velocities of a network that is trained already.

This is the Eulerian distillation of Align Your Flow (Sabour et al., arXiv 2506.14603) with MeanFlow's weights. The identity
u(z, t, r) = v - (t - r) du/dt holds for the velocity at z, of which the drawn noise - x is an estimate without bias, but with a spread that
the derivative multiplies. A teacher states the velocity itself, guided at the scale omega / (1 - kappa), and is not surpassed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import interpolate, schedule
from meanaudio.objectives.guidance_distillation import guided_teacher
from meanaudio.objectives.mean_flow import regress_mean_velocity
from meanaudio.types import Draws, Loss, Network, TextFeatures


def mean_flow_distillation(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, *, progress: float, config: ObjectiveConfig,
    teacher: Network,
) -> Loss:  # fmt: skip
    """Adaptively weighted squared error between u(z, t, r) and v - (t - r) du/dt; v is the teacher's, guided where a row keeps its text."""
    t, r, kept = draws.t, draws.r, text.where(draws.keep, null)
    z = interpolate(x, draws.noise.to(x), t)
    scale = 1 + schedule(config.guidance, progress) * (config.guidance_scale - 1)
    v = guided_teacher(teacher, z, t, kept, null, torch.full_like(t, scale), draws.keep)
    u = net(z, t, r, net.condition(kept)).float()
    return regress_mean_velocity(net, u, z, v, t, r, kept, config)
