"""Interval splitting (SplitMeanFlow, Guo et al., arXiv 2507.16884): a mean velocity is made of the mean velocities of two parts.

(t - r) u(z_t, t, r) = (t - s) u(z_t, t, s) + (s - r) u(z_s, s, r) for every s between r and t, with z_s = z_t - (t - s) u(z_t, t, s). The
right-hand side, by the network itself without a graph, is the target; rows with r = t hold it to the (guided) velocity. Two evaluations
of the interval rows without a graph, no derivative, and no guidance pass for them. s is drawn uniformly.
"""

from __future__ import annotations

from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import expand
from meanaudio.objectives.two_times import Interval, TwoTimeDraws, regress
from meanaudio.types import Loss, Network, TextFeatures


def split_target(rows: Interval) -> Tensor:
    """The mean velocity over [r, t] made of those over [s, t] and [r, s], s = t - split (t - r)."""
    s = rows.t - rows.split * (rows.t - rows.r)
    first = rows.u(rows.z, rows.t, s)
    second = rows.u(rows.z - expand(rows.t - s, rows.z) * first, s, rows.r)
    return first.lerp(second, expand(1 - rows.split, rows.z))


def interval_splitting(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: TwoTimeDraws, *, progress: float, config: ObjectiveConfig
) -> Loss:
    """Adaptively weighted squared error between u(z, t, r) and its two parts."""
    return regress(net, x, text, null, draws, progress=progress, config=config, target=split_target, guide_intervals=False)
