"""MeanFlow with a finite difference in place of the derivative (Transition Models, Wang et al., arXiv 2509.04394).

du/dt is [u(z + e v_g, t + e, r) - u(z - e v_g, t - e, r)] / 2e: two evaluations of the interval rows without a graph, in float32 (half
precision would drown the difference) but with the fast attention that forward-mode differentiation lacks. Where t + e would pass 1 or
t - e would fall below r the difference is taken to that end; the paper has no word on it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import expand
from meanaudio.objectives.two_times import Interval, TwoTimeDraws, regress
from meanaudio.types import Loss, Network, TextFeatures


@torch.no_grad()
def difference(rows: Interval, step: float) -> Tensor:
    """du/dt [M, L, C] along v_g, in float32."""
    ahead, behind = (rows.t + step).clamp(max=1), torch.maximum(rows.t - step, rows.r)
    with torch.autocast(rows.z.device.type, enabled=False):
        condition = rows.net.condition(rows.text)
        after, before = (rows.net(rows.z + expand(s - rows.t, rows.z) * rows.v, s, rows.r, condition) for s in (ahead, behind))
    return (after - before) / expand(ahead - behind, rows.z)


def difference_target(rows: Interval, step: float) -> Tensor:
    return rows.v - expand(rows.t - rows.r, rows.z) * difference(rows, step)


def finite_difference(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: TwoTimeDraws, *, progress: float, config: ObjectiveConfig
) -> Loss:
    """Adaptively weighted squared error between u(z, t, r) and v_g - (t - r) du/dt."""
    target = partial(difference_target, step=config.difference)
    return regress(net, x, text, null, draws, progress=progress, config=config, target=target)
