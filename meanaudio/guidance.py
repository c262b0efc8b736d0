"""Guidance: fields made from fields. Scale 1 is no guidance, for every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from meanaudio.errors import InputError
from meanaudio.flow import expand
from meanaudio.types import Field

# reference(z [n, L, C], t [n], r [n], rows [n], choice [n]) -> [n, L, C]: the field to move away from, for some rows of the batch; choice
# is a class, or BASE: no text, a negative text, or whatever a weaker network makes of the prompt.
ChosenField = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
BASE = -1
Reference = Literal["base", "rival"]


def guided(main: Field, reference: Field, scale: float, limits: tuple[float, float] = (0.0, 1.0)) -> Field:
    """Move away from `reference` (null text, negative text, a weaker network): reference + scale (main - reference).

    Classifier-free guidance is this with the field of the null text, autoguidance (Karras et al., arXiv 2406.02507) with the field of a
    weaker or earlier network. scale 1 returns `main` itself and costs nothing. limits: guide for t within them only (Kynkäänniemi et al.,
    arXiv 2404.07724); outside `reference` is not evaluated.
    """
    if scale == 1:
        return main
    if limits == (0.0, 1.0):
        return lambda z, t, r: torch.lerp(reference(z, t, r), main(z, t, r), scale)

    def field(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        own, inside = main(z, t, r), within(t, limits)
        if not inside.any():
            return own
        return torch.where(expand(inside, z).bool(), torch.lerp(reference(z, t, r), own, scale), own)

    return field


def within(t: Tensor, limits: tuple[float, float]) -> Tensor:
    """[B] True where limits[0] <= t <= limits[1]."""
    return (limits[0] <= t) & (t <= limits[1])


def check_limits(limits: tuple[float, float]) -> None:
    """Raises InputError unless 0 <= low < high <= 1."""
    low, high = limits
    if not 0 <= low < high <= 1:
        raise InputError(f"guidance_limits = ({low}, {high}): must be two times, 0 <= low < high <= 1; t = 1 is noise")


class Classifier(Protocol):
    """Hears what is in the codec's latents [B, L, C] -> logits [B, K] for one softmax over its `classes`.

    related: [K, K] True for classes of which one is no mistake for the other, or None.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def related(self) -> Tensor | None: ...

    def __call__(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class DecodedClassifier:
    """A classifier of sound as one of latents. decode: latents [B, L, C] -> audio [B, N]. listen: audio [B, N] -> logits [B, K]."""

    decode: Callable[[Tensor], Tensor]
    listen: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    related: Tensor | None = None

    def __call__(self, latents: Tensor) -> Tensor:
        return self.listen(self.decode(latents))


@dataclass(frozen=True)
class ClassifierGuidance:
    """scale: the largest, where the sample sounds like another class alone. reference: what a confused sample moves away from: BASE, as
    guidance does, or the rival class. power, temperature: how the scale grows with confusion, and how soft the classifier's word is taken.
    threshold: confusion below it is ignored. jump: the clean latents are estimated by a jump of their own to r = 0, one evaluation more a
    step; otherwise by the step's own velocity, for nothing.
    """

    scale: float = 3.0
    reference: Reference = "base"
    power: float = 1.0
    temperature: float = 1.0
    threshold: float = 0.1
    jump: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("scale", 1, 100), ("power", 0, 10), ("temperature", 0.01, 100), ("threshold", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"classifier {name} = {getattr(self, name)}: must be from {low} to {high}")
        if self.reference not in get_args(Reference):
            raise InputError(f"classifier reference = {self.reference!r}: must be one of {', '.join(get_args(Reference))}")


def classifier_guided(
    main: Field, reference: ChosenField, classify: Callable[[Tensor], Tensor], wanted: Tensor, settings: ClassifierGuidance, *,
    base_scale: float = 1.0, limits: tuple[float, float] = (0.0, 1.0),
) -> Field:  # fmt: skip
    """Gradient-free classifier guidance, after Shenoy et al. (arXiv 2411.15393): a classifier that only looks decides, at every step and
    for every row, how far to move away, and from what.

    A reconstruction: the paper's idea is known here from its abstract, its formulae are not. With the clean latents x = z - t u,
    p = softmax(classifier(x) / temperature), the rival k = argmax of p outside `wanted` and confusion = p_k / (p_k + p_wanted), the scale
    is base_scale + (settings.scale - base_scale) confusion^power, no less than base_scale, and the reference as settings.reference says;
    that the base (null text or a weaker network) may stay the reference is ours. Rows below the threshold keep `base_scale` and the BASE
    reference; at base_scale 1 they cost no second evaluation.

    classify: clean latents as the field has them, [B, L, C] -> logits [B, K]. wanted: [B, K] True at the classes that row b may hold, at
    least one.
    """
    if settings.scale == 1 and base_scale == 1:
        return main

    def field(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        own, inside = main(z, t, r), within(t, limits)
        if not inside.any():
            return own
        arrives = not settings.jump or bool((r == 0).all())
        clean = z - expand(t, z) * (own if arrives else main(z, t, torch.zeros_like(r)))
        rival, share = choose(classify(clean), wanted, settings)
        chosen = torch.full_like(rival, BASE) if settings.reference == "base" else rival
        scale = base_scale + (max(settings.scale, base_scale) - base_scale) * share
        rows = ((scale != 1) & inside).nonzero()[:, 0]
        if len(rows) == 0:
            return own
        away = reference(z[rows], t[rows], r[rows], rows, chosen[rows])
        moved = own.clone()
        moved[rows] = torch.lerp(away, own[rows], expand(scale[rows], own))
        return moved

    return field


def choose(logits: Tensor, wanted: Tensor, settings: ClassifierGuidance) -> tuple[Tensor, Tensor]:
    """(rival class [B], or BASE; share of the way to the largest scale [B], 0 with BASE) for logits and wanted classes [B, K]."""
    p = torch.softmax(logits.float() / settings.temperature, 1)
    rival, rival_class = p.masked_fill(wanted, 0).max(1)
    confusion = rival / (rival + (p * wanted).sum(1))
    confused = (confusion > settings.threshold) & (settings.scale > 1)
    return torch.where(confused, rival_class, BASE), torch.where(confused, confusion**settings.power, 0.0)
