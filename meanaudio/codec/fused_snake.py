"""BigVGAN's smoothed activation in one pass over memory, on the CPU, without gradients (see SmoothSnake in bigvgan.py for what it is).

Written as loops that numba compiles to vector code (snake_kernel.py): every block of a row goes through up-sampling, snake and
down-sampling while it is in the cache. As separate tensor operations the same arithmetic is bound by memory, and took two thirds of the
vocoder's time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def fused_snake(
    x: Tensor, alpha: Tensor, inverse_beta: Tensor, taps: Tensor, dtype: torch.dtype, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x, and `added` if given, [B, C, N] float32 or bfloat16, alpha and inverse_beta [C], taps [12] of the low-pass ->
    x + added (or x) of x's type, its activation [B, C, N] of `dtype` (of the same two).

    Computed in float32, by as many threads as torch uses.
    """
    from meanaudio.codec.snake_kernel import snake  # numba takes a while to import

    batch, channels, length = x.shape
    out = torch.empty(x.shape, dtype=dtype)
    total = x if added is None else torch.empty(x.shape, dtype=x.dtype)
    no_rows = np.empty((0, 0), np.uint32)
    terms, sums = (no_rows, no_rows) if added is None else (_bits(added), _bits(total))
    alphas, betas = (p.float().repeat(batch).numpy() for p in (alpha, inverse_beta))
    threads = min(torch.get_num_threads(), batch * channels)
    snake(_bits(x), terms, sums, _bits(out), length, alphas, betas, taps.float().numpy(), threads=threads)
    return total, out


def _bits(x: Tensor) -> np.ndarray:
    """The memory of x [B, C, N] as unsigned integers [B * C, N or more]: numpy has no bfloat16, and its bits are a float32's upper half."""
    rows = x.flatten(0, 1)
    cut = len(rows) > 1 and rows.stride(1) == 1 and rows.stride(0) > rows.shape[1]
    if cut and rows.storage_offset() + rows.stride(0) * len(rows) <= x.untyped_storage().nbytes() // x.element_size():
        rows = rows.as_strided((len(rows), rows.stride(0)), (rows.stride(0), 1))  # what was cut from longer rows: no copy
    rows = rows.contiguous()
    return rows.view(torch.int32).numpy().view(np.uint32) if x.dtype == torch.float32 else rows.view(torch.int16).numpy().view(np.uint16)
