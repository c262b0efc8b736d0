"""The loops of fused_snake.py, which numba compiles when this module is imported and they are first called, or reads from its cache.

Its threads are OpenMP's, as torch's are: those wait for work by running in circles, and threads of another kind would have to share the
cores with them.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any

import numba
import numpy as np
from numba import prange

BLOCK = 1024  # samples of a row at a time: the buffers stay in the first-level cache
REACH = 6  # input samples on either side that an output sample depends on


def _compiled(loops: Callable[..., None], **options: Any) -> Callable[..., None]:
    fast = {"contract", "nsz", "nnan", "ninf", "reassoc"}
    try:
        return numba.njit(loops, cache=True, nogil=True, error_model="numpy", fastmath=fast, **options)
    except RuntimeError:  # no folder for the cache
        return numba.njit(loops, nogil=True, error_model="numpy", fastmath=fast, **options)


def _read(source, bits, skipped, low, high):  # pragma: no cover - compiled
    """bits[skipped:] = source[low:high] as a float's bits."""
    heard, read = source[low:high], bits[skipped : skipped + high - low]  # views: indices that start at 0 make plain stores
    if source.itemsize == 4:
        for i in range(high - low):
            read[i] = heard[i]
    else:
        for i in range(high - low):
            read[i] = np.uint32(heard[i]) << np.uint32(16)


def _write(bits, target, start, count):  # pragma: no cover - compiled
    """target[start : start + count] = bits[:count]; to 16 bits to the nearest, ties to even."""
    written = target[start : start + count]
    if target.itemsize == 4:
        for i in range(count):
            written[i] = bits[i]
    else:
        for i in range(count):
            written[i] = (bits[i] + np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


read, write = _compiled(_read), _compiled(_write)


def _rows(x, added, total, out, length, alpha, inverse_beta, taps, first, last):  # pragma: no cover - compiled
    bits, more = np.empty(BLOCK + 2 * REACH, np.uint32), np.empty(BLOCK + 2 * REACH, np.uint32)
    window, terms = bits.view(np.float32), more.view(np.float32)  # x[start - 6 + i], and of added
    even = np.empty(BLOCK + REACH, np.float32)  # y[2 (start - 3 + i)], where y is x at twice the rate, after the snake
    odd = np.empty(BLOCK + REACH, np.float32)  # the sample after it
    made = np.empty(BLOCK, np.float32)
    made_bits = made.view(np.uint32)
    e0, e1, e2, e3, e4, e5 = taps[0], taps[2], taps[4], taps[6], taps[8], taps[10]
    o0, o1, o2, o3, o4, o5 = taps[1], taps[3], taps[5], taps[7], taps[9], taps[11]
    # sin(pi f)^2 for |f| <= 1/2 as a polynomial in f^2, fitted at Chebyshev's points: within 3e-7
    s0, s1, s2 = np.float32(9.86960431), np.float32(-32.46967117), np.float32(42.72719634)
    s3, s4, s5 = np.float32(-30.10146584), np.float32(13.05009892), np.float32(-3.35659262)
    for row in range(first, last):
        a, b = np.float32(alpha[row] / math.pi), inverse_beta[row]
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            low, high = max(0, start - REACH), min(length, start + count + REACH)
            skipped = low - (start - REACH)
            read(x[row], bits, skipped, low, high)
            if len(added):
                read(added[row], more, skipped, low, high)
                for i in range(skipped, skipped + high - low):
                    window[i] += terms[i]
                write(bits[REACH:], total[row], start, count)
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
            write(made_bits, out[row], start, count)


rows = _compiled(_rows)


def _shared(x, added, total, out, length, alpha, inverse_beta, taps, threads):  # pragma: no cover - compiled
    for thread in prange(threads):
        first, last = len(out) * thread // threads, len(out) * (thread + 1) // threads
        rows(x, added, total, out, length, alpha, inverse_beta, taps, first, last)


shared = _compiled(_shared, parallel=True)


# Starting, numba's OpenMP layer sets how many OpenMP threads its thread uses: torch's number too, were it started in a caller's thread.
_starter = Thread(target=numba.get_num_threads)
_starter.start()
_starter.join()

one_at_a_time = Lock()  # where numba has no OpenMP, its own threads serve one caller only; a call takes all cores anyhow


def snake(*arrays: Any, threads: int) -> None:
    """`arrays`: what _shared takes, but for the threads."""
    threads = min(threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]  # set when it is imported
    with one_at_a_time:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            shared(*arrays, threads)
        finally:
            numba.set_num_threads(before)
