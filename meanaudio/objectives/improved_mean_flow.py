"""Improved MeanFlow (Geng et al., arXiv 2512.02012): a loss on the velocity, with the network's own velocity as the tangent.

V = u + (t - r) sg JVP(u; (u(z, t, t), 1, 0)) is regressed onto v_g. MeanFlow differentiates along the drawn noise - x, whose spread the
derivative multiplies; here the tangent is what the network believes the velocity at z to be (the boundary u(z, t, t); the paper's
auxiliary head for it is not built). The paper also makes guidance scale and limits inputs: `scale` in the config.
"""

from __future__ import annotations

from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import expand
from meanaudio.objectives.mean_flow import total_derivative
from meanaudio.objectives.two_times import Interval, TwoTimeDraws, regress
from meanaudio.types import Loss, Network, TextFeatures


def boundary_target(rows: Interval) -> Tensor:
    """v_g - (t - r) JVP(u; (u(z, t, t), 1, 0)): u regressed onto it is V regressed onto v_g."""
    derivative = total_derivative(rows.net, rows.z, rows.t, rows.r, rows.own, rows.text)
    return rows.v - expand(rows.t - rows.r, rows.z) * derivative


def improved_mean_flow(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: TwoTimeDraws, *, progress: float, config: ObjectiveConfig
) -> Loss:
    """Adaptively weighted squared error between V and v_g."""
    return regress(net, x, text, null, draws, progress=progress, config=config, target=boundary_target, own=True)
