"""What is computed in bfloat16 and what stays float32: one switch for inference and training."""

from __future__ import annotations

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """A context in which matrix products and convolutions are computed in `dtype`: float32 leaves them alone, bfloat16 rounds inputs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def hold_in_bfloat16(module: nn.Module) -> None:
    """Store the weights of every matrix layer in 16 bits, in place, for use under `computing_in`; norms and embeddings stay float32.

    A module that names children in an attribute `float32_parts` keeps those as they are.
    """
    kept = {id(inner) for m in module.modules() for name in getattr(m, "float32_parts", ()) for inner in getattr(m, name).modules()}
    for layer in module.modules():
        if isinstance(layer, MATRIX_LAYERS) and id(layer) not in kept:
            layer.to(torch.bfloat16)
