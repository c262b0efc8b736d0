"""BigVGAN's smoothed activation in one pass over memory, on the CPU, without gradients (see SmoothSnake in bigvgan.py for what it is).

Written as loops that numba compiles to vector code: every block of a row goes through up-sampling, snake and down-sampling while it is in
the cache. As separate tensor operations the same arithmetic is bound by memory, and took two thirds of the vocoder's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # samples of a row at a time: the buffers stay in the first-level cache
REACH = 6  # input samples on either side that an output sample depends on


def fused_snake(x: Tensor, alpha: Tensor, inverse_beta: Tensor, taps: Tensor, dtype: torch.dtype) -> Tensor:
    """x [B, C, N] float32 or bfloat16, alpha and inverse_beta [C], taps [12] of the low-pass -> [B, C, N] of `dtype` (of the same two).

    Computed in float32. Rows are shared out among as many threads as torch uses.
    """
    kernel = _compiled()
    batch, channels, _ = x.shape
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=dtype)
    source, target = _bits(x).reshape(batch * channels, -1), _bits(out).reshape(batch * channels, -1)
    alphas, betas = (p.float().repeat(batch).numpy() for p in (alpha, inverse_beta))
    weights = taps.float().numpy()
    threads = min(torch.get_num_threads(), len(source))
    borders = [len(source) * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:  # the kernel gives the interpreter's lock up
        parts = [pool.submit(kernel, source, target, alphas, betas, weights, a, b) for a, b in zip(borders, borders[1:], strict=False)]
    for part in parts:
        part.result()
    return out


def _bits(x: Tensor) -> np.ndarray:
    """The tensor's memory as unsigned integers: numpy has no bfloat16, and its bits are a float32's upper half."""
    return x.view(torch.int32).numpy().view(np.uint32) if x.dtype == torch.float32 else x.view(torch.int16).numpy().view(np.uint16)


@cache
def _compiled() -> Callable[..., None]:
    """The kernel, compiled once a process, or read from numba's cache on disk where that can be written."""
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "nnan", "ninf", "reassoc"}}
    try:
        return numba.njit(_rows, cache=True, **options)
    except RuntimeError:  # no folder for the cache
        return numba.njit(_rows, **options)


def _rows(x, out, alpha, inverse_beta, taps, first, last):  # pragma: no cover - compiled
    """Rows [first, last) of x [R, N]; both arrays hold a float's bits, in 32 or (upper half) in 16."""
    length = x.shape[1]
    bits = np.empty(BLOCK + 2 * REACH, np.uint32)
    window = bits.view(np.float32)  # x[start - 6 + i]
    even = np.empty(BLOCK + REACH, np.float32)  # y[2 (start - 3 + i)], where y is x at twice the rate, after the snake
    odd = np.empty(BLOCK + REACH, np.float32)  # the sample after it
    made = np.empty(BLOCK, np.float32)
    made_bits = made.view(np.uint32)
    e0, e1, e2, e3, e4, e5 = taps[0], taps[2], taps[4], taps[6], taps[8], taps[10]
    o0, o1, o2, o3, o4, o5 = taps[1], taps[3], taps[5], taps[7], taps[9], taps[11]
    # sin(pi f)^2 for |f| <= 1/2 as a polynomial in f^2, fitted at Chebyshev's points: within 3e-7
    s0, s1, s2 = np.float32(9.86960431), np.float32(-32.46967117), np.float32(42.72719634)
    s3, s4, s5 = np.float32(-30.10146584), np.float32(13.05009892), np.float32(-3.35659262)
    wide = x.itemsize == 4
    narrow = out.itemsize == 2
    for row in range(first, last):
        a, b = np.float32(alpha[row] / math.pi), inverse_beta[row]
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            low, high = max(0, start - REACH), min(length, start + count + REACH)
            skipped = low - (start - REACH)
            heard, read = x[row, low:high], bits[skipped : skipped + high - low]  # views: indices that start at 0 make plain stores
            if wide:
                for i in range(high - low):
                    read[i] = heard[i]
            else:
                for i in range(high - low):
                    read[i] = np.uint32(heard[i]) << np.uint32(16)
            for i in range(skipped):  # the ends of x are repeated
                bits[i] = bits[skipped]
            for i in range(skipped + high - low, count + 2 * REACH):
                bits[i] = bits[skipped + high - low - 1]
            for i in range(count + REACH):
                y = e0 * window[i] + e1 * window[i + 1] + e2 * window[i + 2] + e3 * window[i + 3] + e4 * window[i + 4] + e5 * window[i + 5]
                y = y + y
                f = a * y
                f = f - np.rint(f)  # the square of the sine repeats every half turn
                g = f * f
                square = (((((s5 * g + s4) * g + s3) * g + s2) * g + s1) * g + s0) * g
                even[i] = y + b * square
                y = (
                    o0 * window[i + 1]
                    + o1 * window[i + 2]
                    + o2 * window[i + 3]
                    + o3 * window[i + 4]
                    + o4 * window[i + 5]
                    + o5 * window[i + 6]
                )
                y = y + y
                f = a * y
                f = f - np.rint(f)
                g = f * f
                square = (((((s5 * g + s4) * g + s3) * g + s2) * g + s1) * g + s0) * g
                odd[i] = y + b * square
            if start == 0:  # the ends of y are its first even and its last odd sample
                for i in range(3):
                    even[i] = odd[i] = even[3]
            end = length - 1 - start + 3
            for i in range(end + 1, count + REACH):
                even[i] = odd[i] = odd[end]
            for i in range(count):
                made[i] = (
                    o0 * even[i + 1] + o1 * even[i + 2] + o2 * even[i + 3] + o3 * even[i + 4] + o4 * even[i + 5] + o5 * even[i + 6]
                    + e0 * odd[i] + e1 * odd[i + 1] + e2 * odd[i + 2] + e3 * odd[i + 3] + e4 * odd[i + 4] + e5 * odd[i + 5]
                )  # fmt: skip
            written = out[row, start : start + count]
            if narrow:
                for i in range(count):  # to the nearest, ties to even
                    written[i] = (made_bits[i] + np.uint32(0x7FFF) + ((made_bits[i] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            else:
                for i in range(count):
                    written[i] = made_bits[i]
