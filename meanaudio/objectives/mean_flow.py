"""MeanFlow with guidance folded into the target (Geng et al., arXiv 2505.13447; MeanAudio, arXiv 2508.06098).

The mean velocity obeys u(z_t, t, r) = v - (t - r) du/dt along the path; the network regresses the right-hand side. With schedules on
`interval_fraction` and `guidance` the same objective is the curriculum from instantaneous to mean velocities in one run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import expand, interpolate, schedule, velocity
from meanaudio.objectives.flow_matching import draw
from meanaudio.objectives.forward_mode import jacobian_vector_product
from meanaudio.types import Draws, Loss, Network, TextFeatures


@torch.no_grad()
def guided_velocity(
    net: Network,
    z: Tensor,
    t: Tensor,
    v: Tensor,
    predicted: Tensor,
    text: TextFeatures,
    null: TextFeatures,
    *,
    rows: Tensor,
    known: Tensor,
    config: ObjectiveConfig,
) -> Tensor:
    """v_g = omega v + kappa u(z, t, t | text) + (1 - omega - kappa) u(z, t, t | null) in `rows` [B] bool; v elsewhere. [B, L, C].

    predicted [B, L, C] already is u(z, t, t | text) in the rows `known` [B]; only the others are computed, together with the null text,
    as one batch without a graph.
    """
    missing = rows & ~known
    many, count = int(missing.sum()), int(rows.sum())
    if count == 0:
        return v
    both = TextFeatures.cat([text[missing], null.expand(count)])
    z2, t2 = torch.cat([z[missing], z[rows]]), torch.cat([t[missing], t[rows]])
    computed = net(z2, t2, t2, net.condition(both)).to(v.dtype)
    with_text = predicted.clone()
    with_text[missing] = computed[:many]
    guided = v.clone()
    guided[rows] = config.omega * v[rows] + config.kappa * with_text[rows] + (1 - config.omega - config.kappa) * computed[many:]
    return guided


@torch.no_grad()
def total_derivative(net: Network, z: Tensor, t: Tensor, r: Tensor, v: Tensor, text: TextFeatures) -> Tensor:
    """du/dt along the path: the Jacobian-vector product of u(z, t, r) with (v, 1, 0), no graph. [B, L, C] in float32.

    The network's values are float32 also under bf16 autocast, where only products of tangents are rounded: to take the derivative at values
    rounded to bf16 costs up to 10 % in single rows of a trained network, this 2 % at most [measured].
    """
    tangents = (v, torch.ones_like(t), torch.zeros_like(r))
    return jacobian_vector_product(lambda z, t, r: net(z, t, r, net.condition(text)), (z, t, r), tangents)


def draw_intervals(shape: Sequence[int], *, progress: float, generator: torch.Generator, config: ObjectiveConfig) -> Draws:
    """Times with r < t in the scheduled share of the rows, r = t in the others."""
    share = schedule(config.interval_fraction, progress)
    return draw(shape, interval_fraction=share, generator=generator, config=config, progress=progress)


def mean_flow(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, *, progress: float, config: ObjectiveConfig
) -> Loss:
    """Adaptively weighted squared error between u(z, t, r) and v_g - (t - r) du/dt.

    Rows with r = t need no derivative; rows that lose their text regress the plain velocity unless `dropped_rows` is "release".
    """
    guidance = schedule(config.guidance, progress)
    return mean_flow_at(net, x, draws.noise.to(x), draws.t, draws.r, draws.keep, text, null, guidance=guidance, config=config)


def mean_flow_at(
    net: Network,
    x: Tensor,
    noise: Tensor,
    t: Tensor,
    r: Tensor,
    keep: Tensor,
    text: TextFeatures,
    null: TextFeatures,
    *,
    guidance: float,
    config: ObjectiveConfig,
) -> Loss:
    """`mean_flow` at given noise, times and kept rows [B]."""
    z, v = interpolate(x, noise, t), velocity(x, noise)
    kept, moving = text.where(keep, null), r < t
    u = net(z, t, r, net.condition(kept)).float()

    # Velocity along the path, with guidance mixed in
    v_g = v
    if guidance > 0:
        rows = torch.ones_like(keep) if config.dropped_rows == "release" else keep
        full = guided_velocity(net, z, t, v, u.detach(), text, null, rows=rows, known=keep & ~moving, config=config)
        v_g = torch.lerp(v, full, guidance)
    return regress_mean_velocity(net, u, z, v_g, t, r, kept, config)


def regress_mean_velocity(
    net: Network, u: Tensor, z: Tensor, v: Tensor, t: Tensor, r: Tensor, text: TextFeatures, config: ObjectiveConfig
) -> Loss:
    """Adaptively weighted squared error of u = u(z, t, r) [B, L, C] against v - (t - r) du/dt, the derivative along v."""
    moving = r < t
    target = v
    if moving.any():
        derivative = total_derivative(net, z[moving], t[moving], r[moving], v[moving], text[moving])
        target = v.clone()
        target[moving] -= expand(t - r, z)[moving] * derivative
    error = (u - target).square().flatten(1).mean(1)
    per_sample = error / (error.detach() + config.adaptive_epsilon) ** config.adaptive_power
    logs = {"loss": per_sample.mean().item(), "error": error.mean().item()}
    if moving.any():
        logs |= {"error_interval": error[moving].mean().item(), "derivative_norm": derivative.square().mean().sqrt().item()}
    if not moving.all():
        logs["error_instant"] = error[~moving].mean().item()
    return Loss(per_sample, t, logs)
