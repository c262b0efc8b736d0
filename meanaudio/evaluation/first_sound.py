"""How long cold processes take to their first clip."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not imported where a process begins: what it imports is timed
    from meanaudio.evaluation.stages import Setting

PHASES = ("python", "imports", "loading")  # then the stages of the first clip; a text encoder's weights are read in its "text"


@dataclass(frozen=True)
class Cold:
    """One process. total: seconds from its start to its first clip on the disk. host_memory: the most bytes resident until then.

    phases: seconds that add up to the total: starting python, importing, loading the checkpoint, then the stages of the clip.
    """

    total: float
    phases: Mapping[str, float]
    host_memory: int | None


@dataclass(frozen=True)
class FirstSound:
    """Cold processes of one setting. totals: of each, in the order they ran. phases: of the one with the median total (the lower of two).

    host_memory: the most bytes resident in any of them.
    Files are as the system has them: the first process may read the disk where later ones find its cache.
    """

    dtype: str
    compile: bool
    steps: int
    duration: float
    totals: list[float]
    phases: Mapping[str, float]
    host_memory: int | None

    @staticmethod
    def of(runs: Sequence[Cold], setting: Setting) -> FirstSound:
        totals = [run.total for run in runs]
        phases = next(run.phases for run in runs if run.total == statistics.median_low(totals))
        memory = max((run.host_memory for run in runs if run.host_memory is not None), default=None)
        return FirstSound(setting.dtype, setting.compile, setting.steps, setting.duration, totals, phases, memory)

    @property
    def median(self) -> float:
        return statistics.median_low(self.totals)
