"""What the objectives of mean velocities share: guidance as an input, guided velocities of single rows, one regression onto a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from meanaudio.config import ObjectiveConfig, ScaleConfig
from meanaudio.flow import expand, interpolate, schedule, velocity
from meanaudio.objectives.flow_matching import draw
from meanaudio.types import Draws, Loss, Network, TextFeatures


@dataclass(frozen=True)
class TwoTimeDraws(Draws):
    """guidance [B, 3]: the scale and the times, low and high, between which it acts. split [B] in [0, 1): where an interval is split."""

    guidance: Tensor
    split: Tensor


def draw_two_times(shape: Sequence[int], *, progress: float, generator: torch.Generator, config: ObjectiveConfig) -> TwoTimeDraws:
    """Times with r < t in the scheduled share of the rows, r = t in the others; guidance and splits of all rows."""
    share = schedule(config.interval_fraction, progress)
    base = draw(shape, interval_fraction=share, generator=generator, config=config, progress=progress)
    return with_guidance(base, generator, config)


def with_guidance(base: Draws, generator: torch.Generator, config: ObjectiveConfig) -> TwoTimeDraws:
    guidance = draw_guidance(base.r < base.t, generator, config.scale)
    return TwoTimeDraws(base.noise, base.t, base.r, base.keep, guidance, torch.rand(len(base), generator=generator))


def draw_guidance(moving: Tensor, generator: torch.Generator, config: ScaleConfig | None) -> Tensor:
    """[B, 3]: scale, low, high. Rows with r = t are guided at all times: they teach the velocity that limits are laid upon."""
    uniform = torch.rand(len(moving), 3, generator=generator)
    low, high = 0.5 * uniform[:, 1] * moving, 1 - 0.5 * uniform[:, 2] * moving
    if config is None:
        return torch.tensor([1.0, 0.0, 1.0]).repeat(len(moving), 1)
    if config.draw == "uniform":
        scale = config.low + (config.high - config.low) * uniform[:, 0]
    else:
        scale = config.low * (config.high / config.low) ** uniform[:, 0]
    return torch.stack([scale, low, high], 1) if config.limits else torch.stack([scale, 0 * low, torch.ones_like(high)], 1)


def guidance_inputs(guidance: Tensor, config: ObjectiveConfig) -> Tensor | None:
    """What the network takes of guidance [B, 3]: nothing, the scale [B], or all of it."""
    if config.scale is None:
        return None
    return guidance if config.scale.limits else guidance[:, 0]


def shown_guidance(batch: int, config: ObjectiveConfig, device: torch.device) -> Tensor | None:
    """The network's guidance inputs for samples and held-out numbers: the config's `shown` scale, at all times."""
    shown = 1.0 if config.scale is None else config.scale.shown
    return guidance_inputs(torch.tensor([shown, 0.0, 1.0], device=device).repeat(batch, 1), config)


def acting(guidance: Tensor, t: Tensor) -> Tensor:
    """guidance [B, 3] at the instant t [B]: the scale is 1 outside its limits, and the limits are no more."""
    inside = (guidance[:, 1] <= t) & (t <= guidance[:, 2])
    scale = torch.where(inside, guidance[:, 0], 1.0)
    return torch.stack([scale, torch.zeros_like(t), torch.ones_like(t)], 1)


@dataclass(frozen=True)
class AtScale:
    """A network whose guidance inputs are filled in. net: a Network; one that takes guidance has them as a fifth argument."""

    net: Any
    scale: Tensor | None

    def condition(self, text: TextFeatures) -> Any:
        return self.net.condition(text)

    def __call__(self, z: Tensor, t: Tensor, r: Tensor, condition: Any) -> Tensor:
        return self.net(z, t, r, condition) if self.scale is None else self.net(z, t, r, condition, self.scale)


@dataclass(frozen=True)
class Interval:
    """The rows of a batch with r < t; z, v, own [M, L, C], t, r, split [M].

    v: the velocity along the path, guidance mixed in. own: the network's u(z, t, t), where it was asked for. net: guidance filled in.
    """

    net: Network
    text: TextFeatures
    z: Tensor
    v: Tensor
    own: Tensor
    t: Tensor
    r: Tensor
    split: Tensor

    @cached_property
    def condition(self) -> Any:
        with torch.no_grad():
            return self.net.condition(self.text)

    @torch.no_grad()
    def u(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The network's mean velocity of these rows' text at other places, without a graph."""
        return self.net(z, t, r, self.condition).to(self.z.dtype)


@torch.no_grad()
def guided_rows(
    net: Network, z: Tensor, t: Tensor, v: Tensor, u: Tensor, text: TextFeatures, null: TextFeatures, *, rows: Tensor, known: Tensor,
    own: Tensor, guidance: Tensor, config: ObjectiveConfig,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(v_g [B, L, C], the network's u(z, t, t | text) [B, L, C] in the rows `known` and `own` and where guidance needs it).

    In `rows` [B] v_g = omega v + kappa u(z, t, t | text) + (1 - omega - kappa) u(z, t, t | null), elsewhere v. For a network that takes
    the scale w as an input omega = 1 and kappa = 1 - 1 / w, so that u(z, t, t | text) = v_g settles at null + w (text - null).
    u [B, L, C] already is u(z, t, t | text) in the rows `known`; all else that is needed is computed as one batch without a graph.
    """
    now = acting(guidance, t)
    if config.scale is None:
        omega, kappa = torch.full_like(t, config.omega), torch.full_like(t, config.kappa)
    else:
        omega, kappa = torch.ones_like(t), 1 - 1 / now[:, 0]
    away = 1 - omega - kappa
    rows = rows & ((kappa != 0) | (away != 0))
    texts, nulls = (own | (rows & (kappa != 0))) & ~known, rows & (away != 0)
    many, count = int(texts.sum()), int(nulls.sum())
    if many + count == 0:
        return v, u
    places = torch.cat([texts.nonzero()[:, 0], nulls.nonzero()[:, 0]])
    both = TextFeatures.cat([text[texts], null.expand(count)])
    guided_net = AtScale(net, guidance_inputs(now[places], config))
    computed = guided_net(z[places], t[places], t[places], net.condition(both)).to(v.dtype)
    with_text, without = u.clone(), torch.zeros_like(v)
    with_text[texts], without[nulls] = computed[:many], computed[many:]
    mixed = expand(omega, v) * v + expand(kappa, v) * with_text + expand(away, v) * without
    return torch.where(expand(rows, v).bool(), mixed, v), with_text


def regress(
    net: Network, x: Tensor, text: TextFeatures, null: TextFeatures, draws: TwoTimeDraws, *, progress: float, config: ObjectiveConfig,
    target: Callable[[Interval], Tensor], own: bool = False, guide_intervals: bool = True, step: float = 1.0,
) -> Loss:  # fmt: skip
    """Adaptively weighted squared error of u(z, t, r) against v_g where r = t and `target` [M, L, C] where r < t.

    own: `target` needs the network's u(z, t, t). guide_intervals: it needs v_g. step: `target` goes only this share of the way from
    u(z, t, r), so the error is `step` times too small.
    """
    # The network at z
    noise, t, r = draws.noise.to(x), draws.t, draws.r
    z, v = interpolate(x, noise, t), velocity(x, noise)
    kept, moving = text.where(draws.keep, null), r < t
    inputs = guidance_inputs(draws.guidance, config)
    u = AtScale(net, inputs)(z, t, r, net.condition(kept)).to(x.dtype)

    # Velocity along the path, with guidance mixed in
    share = schedule(config.guidance, progress)
    rows = draws.keep & (share > 0) & (guide_intervals | ~moving)
    full, with_text = guided_rows(
        net, z, t, v, u.detach(), kept, null, rows=rows, known=~moving, own=moving & own, guidance=draws.guidance, config=config
    )
    v_g = torch.lerp(v, full, share)

    # Target
    goal = v_g
    if moving.any():
        bound = AtScale(net, None if inputs is None else inputs[moving])
        parts = (a[moving] for a in (z, v_g, with_text, t, r, draws.split))
        goal = v_g.clone()
        goal[moving] = target(Interval(bound, kept[moving], *parts)).to(goal.dtype)

    # Loss
    steps = torch.where(moving, step, 1.0)
    error = (u - goal).square().flatten(1).mean(1)
    full_error = error.detach() / steps**2
    per_sample = error / steps / (full_error + config.adaptive_epsilon) ** config.adaptive_power
    logs = {"loss": per_sample.mean().item(), "error": full_error.mean().item()}
    if moving.any():
        logs["error_interval"] = full_error[moving].mean().item()
    if not moving.all():
        logs["error_instant"] = full_error[~moving].mean().item()
    return Loss(per_sample, t, logs)
