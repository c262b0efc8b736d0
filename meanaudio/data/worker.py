"""Which share of the work is this process's, when several prepare one folder without talking to each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from meanaudio.errors import InputError


@dataclass(frozen=True)
class Worker:
    """Number `number` (from 0) of `count` workers."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise InputError(f"worker {self.number}/{self.count}: must be K/N with 0 <= K < N")

    def share(self, total: int) -> range:
        """Every count-th of `total` pieces, so that the shares differ by one at most."""
        return range(self.number, total, self.count)

    @staticmethod
    def parse(text: str) -> Worker:
        """`K/N`, such as 0/8."""
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise InputError(f"worker {text!r}: must be K/N, such as 0/8")
        return Worker(int(number), int(count))

    @staticmethod
    def of_environment(environment: Mapping[str, str] = os.environ) -> Worker:
        """The global rank that torchrun states, or the place in a Slurm job array; the only worker where there is neither."""
        if "RANK" in environment:
            number, count, first, step = (environment.get(k, "") for k in ("RANK", "WORLD_SIZE", "", ""))
        else:
            keys = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")
            number, count, first, step = (environment.get(k, "") for k in keys)
            if not number:
                return Worker()
        try:
            return Worker((int(number) - int(first or 0)) // int(step or 1), int(count))
        except ValueError as error:
            raise InputError(f"the environment says worker {number!r} of {count!r}, which are no numbers: {error}") from None
