"""How fast a checkpoint makes sound: every setting timed end to end and stage by stage, after warm-up, with the device synchronised."""

from __future__ import annotations

import hashlib
import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from meanaudio.checkpoint import folder_hash, read_json
from meanaudio.config import CheckpointConfig, parse
from meanaudio.convert.hub import find_checkpoint
from meanaudio.errors import InputError, OutsideKnowledge
from meanaudio.evaluation.first_sound import Cold, FirstSound
from meanaudio.evaluation.probe import Memory, compiled_pieces, machine_facts, matmul_rate
from meanaudio.evaluation.process import run_process
from meanaudio.evaluation.share import Request, Share, time_share
from meanaudio.evaluation.stages import Setting
from meanaudio.evaluation.timings import Kernels, LeftOut, Report, summarise
from meanaudio.pipeline import MAX_DURATION, MIN_DURATION, MeanAudio, resolve_device, resolve_dtype
from meanaudio.precision import DTYPES
from meanaudio.ranking import check_candidates
from meanaudio.sampling import uniform_times

MAX_BATCH = 1024
PAPER_STEPS, PAPER_DURATION = (1, 2, 5, 25), 10.0
COUNTED = "torch's FlopCounterMode: matrix products, convolutions, attention; not norms, activations, softmax, embeddings, FFTs"


def read_prompts() -> list[str]:
    """The fixed list of 100 prompts, one to 23 words long."""
    return (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()


def benchmark(
    model: str | Path,
    *,
    batch: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    duration: Sequence[float] | None = None,
    dtype: Sequence[str] | None = None,
    candidates: Sequence[int] | None = None,
    compile: bool = False,
    vocoder: str | None = None,
    paper: bool = False,
    repeats: int | None = None,
    warm_up: int = 3,
    processes: int = 5,
    device: str | None = None,
    quiet: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Time every combination of batch, steps, duration, dtype and candidates, eager and, if `compile`, compiled too.

    batch, steps, candidates: (1,) if None. duration, dtype: the checkpoint's length and the device's own if None.
    vocoder: as from_pretrained's.
    paper: the paper's protocol, which fixes batch, steps and duration, and takes 100 prompts.
    repeats: timed generations a setting (20 if None), each made twice, plain and watched, which take turns to go first; the settings of one
    loaded pipeline take turns too: whatever else the machine does falls on all of them.
    processes: fresh processes that share the repeats of each dtype and compilation (one each where there are fewer repeats), warm up for
    themselves, and time their first sound before that. 0: all in this process, and no first sound. clock: of this process.
    Raises InputError for numbers out of range, before anything is loaded, and for a process that fails.
    """
    prompts = read_prompts()
    if paper:
        if given := [name for name, value in (("batch", batch), ("steps", steps), ("duration", duration)) if value]:
            raise InputError(f"the paper's protocol fixes batch, steps and duration: leave out {', '.join(given)}")
        steps, duration, repeats = PAPER_STEPS, (PAPER_DURATION,), len(prompts) if repeats is None else repeats
    where = resolve_device(device)
    folder = find_checkpoint(model)
    config = parse(CheckpointConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    trained = config.seconds
    default = resolve_dtype(None, where)
    batch, steps, duration, candidates = batch or (1,), steps or (1,), duration or (trained,), candidates or (1,)
    dtype = dtype or [name for name, kind in DTYPES.items() if kind == default]
    repeats = 20 if repeats is None else repeats
    for n in candidates:
        check_candidates(folder.name, config.scorer is not None, n, 1)
    _check(batch, steps, duration, dtype, {"repeats": (repeats, 1), "warm_up": (warm_up, 0), "processes": (processes, 0)})

    processes = min(processes, repeats)
    facts = machine_facts(where) | {
        "model": folder.name, "model_hash": folder_hash(folder), "trained_seconds": trained, "repeats": repeats, "warm_up": warm_up,
        "processes": processes, "prompts_hash": hashlib.sha256("\n".join(prompts).encode()).hexdigest(), "flops": COUNTED,
        "memory": Memory(where).how,
    }  # fmt: skip
    kinds = list(itertools.product(dict.fromkeys(dtype), (False, True) if compile else (False,)))
    products = itertools.product(kinds, duration, batch, steps, candidates)
    wanted = list(dict.fromkeys(Setting(b, s, d, kind, compiled, n) for (kind, compiled), d, b, s, n in products))
    rates = {name: {"before": matmul_rate(where, DTYPES[name])} for name in dtype}
    with TemporaryDirectory() as clips, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore", OutsideKnowledge)  # what the fixed prompts ask for matters to no timing
        ways = [
            _Way(
                Request(
                    str(folder.resolve()), str(where), vocoder, first=Setting(1, steps[0], duration[0], kind, compiled),
                    settings=[setting for setting in wanted if (setting.dtype, setting.compile) == (kind, compiled)], prompts=prompts,
                    repeats=repeats, warm_up=warm_up, index=0, processes=max(processes, 1), folder=clips, quiet=quiet,
                )
            )
            for kind, compiled in kinds
        ]  # fmt: skip
        _run_in_turn(ways, run_process if processes else partial(_run_here, clock=clock))
    for message in dict.fromkeys(str(warning.message) for warning in told):  # each once, not at every generation of every process
        warnings.warn(message, stacklevel=2)
    for name, rate in rates.items():
        rate["after"] = matmul_rate(where, DTYPES[name])
    left_out = [one for way in ways for one in way.left_out]
    kept = [setting for setting in wanted if all(setting != one.setting for one in left_out)]
    if not kept:
        raise InputError(f"no setting fits into the memory of {where}: {left_out[0].reason}")
    peaks = {name: max(rate.values()) for name, rate in rates.items()}
    found = [one for way in ways for share in way.shares for one in share.found]
    results = [summarise([one for one in found if one.setting == setting], peaks) for setting in kept]
    first_sounds = [FirstSound.of(way.colds, way.request.first) for way in ways if way.colds]
    kernels = {way.request.first.dtype: Kernels.pooled(way.kernels) for way in ways if way.kernels}
    return Report(facts | ways[-1].shares[-1].facts, rates, first_sounds, results, left_out, kernels, paper)


@dataclass
class _Way:
    """One dtype, compiled or not: what is asked of its process 0, and what every process answered so far, in order."""

    request: Request
    colds: list[Cold] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)

    @property
    def left_out(self) -> list[LeftOut]:
        return [one for share in self.shares for one in share.left_out]

    @property
    def kernels(self) -> list[Kernels]:
        return [share.kernels for share in self.shares if share.kernels is not None]


def _run_in_turn(ways: Sequence[_Way], run: Callable[[Request], tuple[Cold | None, Share]]) -> None:
    """Process 0 of all ways, then process 1 of all, ...: a slow minute falls on all.

    A setting that ran out of memory in one process is asked of no later one.
    """
    for index in range(ways[0].request.processes):
        for way in ways:
            gone = [one.setting for one in way.left_out]
            if settings := [setting for setting in way.request.settings if setting not in gone]:
                cold, share = run(replace(way.request, index=index, settings=settings))
                way.colds += [] if cold is None else [cold]
                way.shares.append(share)


def _run_here(request: Request, *, clock: Callable[[], float]) -> tuple[None, Share]:
    first = request.first
    before = compiled_pieces() if first.compile else (0, 0)
    pipeline = MeanAudio.from_pretrained(request.model, request.device, first.dtype, vocoder=request.vocoder, compile=first.compile)
    return None, time_share(pipeline, request, clock=clock, before=before)


def _check(
    batch: Sequence[int], steps: Sequence[int], duration: Sequence[float], dtype: Sequence[str], counts: Mapping[str, tuple[int, int]]
) -> None:
    """counts: name -> (value, least)."""
    for b in batch:
        if not 1 <= b <= MAX_BATCH:
            raise InputError(f"batch = {b}: must be from 1 to {MAX_BATCH}")
    for s in steps:
        uniform_times(s)
    for d in duration:
        if not MIN_DURATION <= d <= MAX_DURATION:
            raise InputError(f"duration = {d} s: must be from {MIN_DURATION:g} to {MAX_DURATION:g}")
    for name in dtype:
        resolve_dtype(name, torch.device("cpu"))
    for option, (value, least) in counts.items():
        if value < least:
            raise InputError(f"{option} = {value}: must be {least} or more")
