"""MeanFlow with guidance folded into the target (Geng et al., arXiv 2505.13447; MeanAudio, arXiv 2508.06098).

The mean velocity obeys u(z_t, t, r) = v - (t - r) du/dt along the path; the network regresses the right-hand side. With schedules on
`interval_fraction` and `guidance` the same objective is the curriculum from instantaneous to mean velocities in one run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanaudio.config import ObjectiveConfig
from meanaudio.flow import expand, interpolate, sample_times, schedule, velocity
from meanaudio.objectives.flow_matching import keep_text
from meanaudio.types import Loss, Network, TextFeatures


@torch.no_grad()
def guided_velocity(
    net: Network, z: Tensor, t: Tensor, v: Tensor, text: TextFeatures, null: TextFeatures, rows: Tensor, config: ObjectiveConfig
) -> Tensor:
    """v_g = omega v + kappa u(z, t, t | text) + (1 - omega - kappa) u(z, t, t | null) in `rows` [B] bool; v elsewhere. [B, L, C].

    Both conditions go through the network as one batch, without a graph.
    """
    count = int(rows.sum())
    if count == 0:
        return v
    both = TextFeatures.cat([text[rows], null.expand(count)])
    z2, t2 = torch.cat([z[rows], z[rows]]), torch.cat([t[rows], t[rows]])
    with_text, without = net(z2, t2, t2, net.condition(both)).to(v.dtype).chunk(2)
    guided = v.clone()
    guided[rows] = config.omega * v[rows] + config.kappa * with_text + (1 - config.omega - config.kappa) * without
    return guided


@torch.no_grad()
def total_derivative(net: Network, z: Tensor, t: Tensor, r: Tensor, v: Tensor, text: TextFeatures) -> Tensor:
    """du/dt along the path: the Jacobian-vector product of u(z, t, r) with (v, 1, 0), in float32, no graph. [B, L, C].

    Forward-mode differentiation exists for the MATH attention only, and bf16 would drown the derivative in rounding.
    """
    with torch.autocast(z.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        condition = net.condition(text)
        _, derivative = torch.func.jvp(lambda *at: net(*at, condition), (z, t, r), (v, torch.ones_like(t), torch.zeros_like(r)))
    return derivative


def mean_flow(
    net: Network,
    x: Tensor,
    text: TextFeatures,
    null: TextFeatures,
    *,
    progress: float,
    generator: torch.Generator,
    config: ObjectiveConfig,
) -> Loss:
    """Adaptively weighted squared error between u(z, t, r) and v_g - (t - r) du/dt.

    Rows with r = t need no derivative; rows that lose their text regress the plain velocity unless `dropped_rows` is "release".
    """
    # Draws
    noise = torch.randn(x.shape, generator=generator).to(x)
    t, r = (s.to(x.device) for s in sample_times(len(x), config.time, schedule(config.interval_fraction, progress), generator))
    keep = keep_text(len(x), config.text_dropout, generator, x.device)
    return mean_flow_at(net, x, noise, t, r, keep, text, null, guidance=schedule(config.guidance, progress), config=config)


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
    kept = text.where(keep, null)

    # Velocity along the path, with guidance mixed in
    v_g = v
    if guidance > 0:
        rows = torch.ones_like(keep) if config.dropped_rows == "release" else keep
        v_g = torch.lerp(v, guided_velocity(net, z, t, v, text, null, rows, config), guidance)

    # Target
    target, moving = v_g, r < t
    if moving.any():
        derivative = total_derivative(net, z[moving], t[moving], r[moving], v_g[moving], kept[moving])
        target = v_g.clone()
        target[moving] -= expand(t - r, x)[moving] * derivative

    # Loss
    error = (net(z, t, r, net.condition(kept)).float() - target).square().flatten(1).mean(1)
    per_sample = error / (error.detach() + config.adaptive_epsilon) ** config.adaptive_power
    logs = {"loss": per_sample.mean().item(), "error": error.mean().item()}
    if moving.any():
        logs |= {"error_interval": error[moving].mean().item(), "derivative_norm": derivative.square().mean().sqrt().item()}
    if not moving.all():
        logs["error_instant"] = error[~moving].mean().item()
    return Loss(per_sample, t, logs)
