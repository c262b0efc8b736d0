"""Which share of the work is this process's, when several prepare one folder without talking to each other."""

from __future__ import annotations

import os
from dataclasses import dataclass

from meanaudio.distributed import Environment
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
    def of_environment() -> Worker:
        """The global rank that torchrun states, or the place in a Slurm job array; the only worker where there is neither."""
        if "RANK" in os.environ:
            here = Environment.read()
            return Worker(here.rank, here.size)
        if "SLURM_ARRAY_TASK_ID" not in os.environ:
            return Worker()
        try:
            number, first, step, count = (int(os.environ[f"SLURM_ARRAY_TASK_{key}"]) for key in ("ID", "MIN", "STEP", "COUNT"))
        except (KeyError, ValueError) as error:
            told = "SLURM_ARRAY_TASK_ID is set, so _MIN, _STEP and _COUNT must be numbers too; or say which worker this is"
            raise InputError(f"{told} ({error})") from None
        return Worker((number - first) // step, count)
