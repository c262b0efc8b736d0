"""Work over many files at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from meanaudio.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_files(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    progress: bool = False,
    description: str = "",
) -> Iterator[Result]:
    """`work` of each item, in order, on `workers` threads (as many as there are cores if None).

    Threads, not processes: reading, decoding and hashing leave the interpreter free for others.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers = {workers}: must be 1 or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(workers or cores)
    try:
        yield from tqdm(
            pool.map(work, items), total=len(items), desc=description, unit="file", disable=not progress, dynamic_ncols=True, leave=False
        )
    finally:
        pool.shutdown(cancel_futures=True)
