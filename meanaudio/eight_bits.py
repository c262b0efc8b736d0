"""Weights stored in eight bits: one byte a number and one scale a row. They are stored so, never computed with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from meanaudio.errors import InputError

SCALE = ".row_scale"  # ends the name of the scales [rows] of the tensor whose name stands before it


def to_eight_bits(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each finite floating tensor of two dimensions or more as int8, rounded to 1/127 of the largest number of its row, and its scales.

    A row is what one output of a layer is made with, or one input of a transposed convolution. Other floating tensors become float16.
    """
    stored: dict[str, Tensor] = {}
    for name, x in state.items():
        if x.ndim < 2 or not x.is_floating_point() or not x.numel():
            stored[name] = x.half() if x.is_floating_point() else x
            continue
        rows = x.detach().float().flatten(1)
        scale = rows.abs().amax(1) / 127
        stored[name] = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8).view(x.shape)
        stored[name + SCALE] = scale
    return stored


def from_eight_bits(stored: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """What `to_eight_bits` was given, in float32, rounded as it says. Raises InputError unless int8 tensors and scales belong together."""
    state = {name: x for name, x in stored.items() if not name.endswith(SCALE)}
    scales = {name: x for name, x in stored.items() if name.endswith(SCALE)}
    for name in [name for name, x in state.items() if x.dtype == torch.int8]:
        scale, x = scales.pop(name + SCALE, None), state[name]
        if scale is None or scale.dtype != torch.float32 or scale.shape != x.shape[:1]:
            found = "missing" if scale is None else f"{scale.dtype} {tuple(scale.shape)}"
            raise InputError(f"{source}: {name} is int8, and its {name + SCALE} is {found}, not a float32 number a row")
        state[name] = x.float() * scale.view(-1, *[1] * (x.ndim - 1))
    if scales:
        raise InputError(f"{source}: {', '.join(sorted(scales)[:5])}: scales of no int8 weights")
    return state
