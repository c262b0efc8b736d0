"""Work done ahead of time in the background."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """`prefetcher(step)` is `fn(step)`; while the caller is busy with it, the `ahead` steps that follow are computed in `threads` threads.

    fn must be a pure function of step: then nothing depends on what was asked before, and a resumed run needs no state of this.
    An error of fn is raised when its step is asked for. stop: the first step there is none of. waited: seconds that callers have waited.
    Threads, not processes: reading, decoding, resampling and tensor arithmetic leave the interpreter free.
    """

    def __init__(self, fn: Callable[[int], T], *, ahead: int = 2, threads: int = 1, stop: int | None = None) -> None:
        self.fn, self.ahead, self.stop = fn, ahead, stop
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
        self._futures: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        last = step + self.ahead if self.stop is None else min(step + self.ahead, self.stop - 1)
        for other in self._futures.keys() - range(step, last + 1):
            self._futures.pop(other).cancel()
        for wanted in range(step, max(step, last) + 1):
            if wanted not in self._futures:
                self._futures[wanted] = self._pool.submit(self.fn, wanted)
        began = time.perf_counter()
        try:
            return self._futures.pop(step).result()
        finally:
            self.waited += time.perf_counter() - began

    def close(self) -> None:
        """Drop what is not begun and wait for what is."""
        self._futures.clear()
        self._pool.shutdown(cancel_futures=True)
