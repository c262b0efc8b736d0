"""Guidance: fields made from fields. Scale 1 is no guidance, for every kind."""

from __future__ import annotations

import torch

from meanaudio.types import Field


def guided(main: Field, reference: Field, scale: float) -> Field:
    """Move away from `reference` (null text, negative text, a weaker network): reference + scale (main - reference).

    Classifier-free guidance is this with the field of the null text. scale 1 returns `main` itself and costs nothing.
    """
    if scale == 1:
        return main
    return lambda z, t, r: torch.lerp(reference(z, t, r), main(z, t, r), scale)
