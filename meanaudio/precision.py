"""What is computed in bfloat16 and what stays float32: one switch for inference and training."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """A context in which matrix products and convolutions are computed in `dtype`: float32 leaves them alone, bfloat16 rounds inputs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def warn_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Of bfloat16 on a CPU without instructions for it, where torch multiplies matrices by a plain loop [measured: 60 times slower]."""
    asked = device.type == "cpu" and dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
    if asked and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn("this CPU has no 16-bit arithmetic: bf16 is many times slower than float32 here", stacklevel=3)


def cpu_kernel_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The type in which a CPU kernel of ours, which has no gradient, may compute x in place of torch's own operations; None if it may not.

    Under autocast that of autocast, as a convolution would read x. None on other devices, while learning, and while torch compiles.
    """
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if x.device.type != "cpu" or learning or torch.compiler.is_compiling():
        return None
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def hold_in_bfloat16(module: nn.Module) -> None:
    """Store the weights of every matrix layer in 16 bits, in place, for use under `computing_in`; norms and embeddings stay float32.

    A module that names children in an attribute `float32_parts` keeps those as they are.
    """
    kept = {id(inner) for m in module.modules() for name in getattr(m, "float32_parts", ()) for inner in getattr(m, name).modules()}
    for layer in module.modules():
        if isinstance(layer, MATRIX_LAYERS) and id(layer) not in kept:
            layer.to(torch.bfloat16)
