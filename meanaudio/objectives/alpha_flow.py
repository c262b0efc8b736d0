"""AlphaFlow (Zhang et al., arXiv 2510.20771): from flow matching along the trajectory to MeanFlow as `alpha` falls from 1 to 0.

With s = t - alpha (t - r) the target is alpha v_g + (1 - alpha) sg u(z - (t - s) v_g, s, r), weighted by 1 / alpha: one more evaluation of
the interval rows without a graph and no derivative while alpha > 0. At alpha = 1 it is v_g, at alpha -> 0 the gradient is MeanFlow's, and
at alpha = 0 the target is MeanFlow's. The adaptive weight is measured on the error divided by alpha, so that the limit is MeanFlow's loss
whatever `adaptive_epsilon` is (the paper's is measured on the error itself).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import expand, schedule
from meanaudio.objectives.mean_flow import total_derivative
from meanaudio.objectives.two_times import Interval, TwoTimeDraws, regress
from meanaudio.types import Loss, Network, TextFeatures


def alpha_target(rows: Interval, alpha: float) -> Tensor:
    """The target [M, L, C] at `alpha` in [0, 1]."""
    if alpha == 0:
        derivative = total_derivative(rows.net, rows.z, rows.t, rows.r, rows.v, rows.text)
        return rows.v - expand(rows.t - rows.r, rows.z) * derivative
    if alpha == 1:
        return rows.v
    jump = alpha * (rows.t - rows.r)
    rest = rows.u(rows.z - expand(jump, rows.z) * rows.v, rows.t - jump, rows.r)
    return alpha * rows.v + (1 - alpha) * rest


def alpha_flow(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: TwoTimeDraws, *, progress: float, config: ObjectiveConfig
) -> Loss:
    """Adaptively weighted squared error against the target at the scheduled alpha."""
    alpha = schedule(config.alpha, progress)
    loss = regress(
        net, x, text, null, draws, progress=progress, config=config, target=partial(alpha_target, alpha=alpha), step=alpha or 1.0
    )
    loss.logs["alpha"] = alpha
    return loss
