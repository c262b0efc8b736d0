"""How fast a checkpoint makes sound: every setting timed end to end and stage by stage, after warm-up, with the device synchronised."""

from __future__ import annotations

import hashlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Size
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm import tqdm

from meanaudio.checkpoint import folder_hash, read_json
from meanaudio.config import CheckpointConfig, parse
from meanaudio.convert.hub import find_checkpoint
from meanaudio.errors import InputError, OutsideKnowledge
from meanaudio.evaluation.first_sound import first_sound
from meanaudio.evaluation.probe import Memory, compiled_pieces, machine_facts, matmul_rate, seconds_waited, synchronise
from meanaudio.evaluation.stages import Meter, Setting, make_clips, watched
from meanaudio.evaluation.timings import Kernels, LeftOut, Repeats, Report, summarise
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
    cold: int = 3,
    device: str | None = None,
    quiet: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Time every combination of batch, steps, duration, dtype and candidates, eager and, if `compile`, compiled too.

    batch, steps, candidates: (1,) if None. duration, dtype: the checkpoint's length and the device's own if None.
    vocoder: as from_pretrained's.
    paper: the paper's protocol, which fixes batch, steps and duration, and takes 100 prompts.
    repeats: timed generations a setting (20 if None), each made twice, plain and watched, which take turns to go first; the settings of one
    loaded pipeline take turns too: whatever else the machine does falls on all of them. cold: fresh processes that time the first sound.
    Raises InputError for numbers out of range, before anything is loaded.
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
    _check(batch, steps, duration, dtype, {"repeats": (repeats, 1), "warm_up": (warm_up, 0), "cold": (cold, 0)})

    facts = machine_facts(where) | {
        "model": folder.name, "model_hash": folder_hash(folder), "trained_seconds": trained, "repeats": repeats, "warm_up": warm_up,
        "prompts_hash": hashlib.sha256("\n".join(prompts).encode()).hexdigest(), "flops": COUNTED, "memory": Memory(where).how,
    }  # fmt: skip
    ways = list(itertools.product(dict.fromkeys(dtype), (False, True) if compile else (False,)))
    products = itertools.product(ways, duration, batch, steps, candidates)
    wanted = list(dict.fromkeys(Setting(b, s, d, kind, compiled, n) for (kind, compiled), d, b, s, n in products))
    colds = [
        first_sound(folder, str(where), vars(Setting(1, steps[0], duration[0], *way)), vocoder, prompts[0], cold) for way in ways if cold
    ]
    rates = {name: {"before": matmul_rate(where, DTYPES[name])} for name in dtype}
    found: list[Repeats] = []
    left_out: list[LeftOut] = []
    kernels: dict[str, Kernels] = {}
    for kind, compiled in ways:
        pipeline = MeanAudio.from_pretrained(folder, str(where), kind, vocoder=vocoder, compile=compiled)
        facts |= {"parameters": _parameters(pipeline), "text_encoder": pipeline.encoder.fingerprint}
        facts |= {"vocoder": pipeline.codec.config.vocoder.kind, "vocoder_from": vocoder or "its own"}
        settings = [setting for setting in wanted if (setting.dtype, setting.compile) == (kind, compiled)]
        timed, without, made = _time(pipeline, settings, prompts, repeats, warm_up, clock, quiet)
        found, left_out = found + timed, left_out + without
        kernels |= {kind: made} if compiled else {}
        del pipeline  # one at a time in memory
    if not found:
        raise InputError(f"no setting fits into the memory of {where}: {left_out[0].reason}")
    for name, rate in rates.items():
        rate["after"] = matmul_rate(where, DTYPES[name])
    peaks = {name: max(rate.values()) for name, rate in rates.items()}
    return Report(facts, rates, colds, [summarise(repeats, peaks) for repeats in found], left_out, kernels, paper)


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


def _parameters(pipeline: MeanAudio) -> dict[str, int]:
    parts = {"network": pipeline.network, "vae": pipeline.codec.vae, "vocoder": pipeline.codec.vocoder}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


class _Bench:
    """Generations of one pipeline into a folder. `clock` is read when the device has come to rest."""

    def __init__(self, pipeline: MeanAudio, prompts: Sequence[str], folder: Path, clock: Callable[[], float]) -> None:
        self.pipeline, self.prompts, self.folder, self.clock = pipeline, prompts, folder, clock

    def read(self) -> float:
        synchronise(self.pipeline.device)
        return self.clock()

    def texts(self, setting: Setting, number: int) -> list[str]:
        """The prompts of generation `number`: the next ones of the list, over and over."""
        return [self.prompts[(number * setting.batch + k) % len(self.prompts)] for k in range(setting.batch)]

    def generate(self, setting: Setting, number: int, stage: Callable[[str], AbstractContextManager[object]] = nullcontext) -> None:
        self.pipeline.forget_text()
        make_clips(self.pipeline, setting, self.texts(setting, number), number, self.folder, stage)

    def plain(self, setting: Setting, number: int) -> tuple[float, float | None]:
        """Seconds, and those of them spent waiting for a core."""
        waited, start = seconds_waited(), self.read()
        self.generate(setting, number)
        seconds, until = self.read() - start, seconds_waited()
        return seconds, None if waited is None or until is None else until - waited

    def watch(self, setting: Setting, number: int) -> Meter:
        meter = Meter(self.read)
        with watched(self.pipeline, meter):
            self.generate(setting, number, meter.stage)
        return meter

    def flops(self, setting: Setting, repeats: int) -> dict[str, float]:
        """Stage -> operations of one generation: of the one with as many words as the median of those to be timed.

        Counted as it runs eagerly: compiled code hides its operations, and has the same ones to do.
        """
        numbers = sorted(range(repeats), key=lambda number: sum(len(text.split()) for text in self.texts(setting, number)))
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            meter = Meter(counter.get_total_flops)
            with watched(self.pipeline, meter):
                self.generate(setting, numbers[repeats // 2], meter.stage)
        return meter.totals()


def _attention(query: Size, key: Size, value: Size, *args: object, out_shape: object = None, **options: object) -> int:
    return sdpa_flop_count(query, key, value)


# Fused attention that torch's counter does not know: without these, attention on a CPU counts as nothing.
ATTENTION = {
    getattr(torch.ops.aten, name): _attention
    for name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math_for_mps")
    if hasattr(torch.ops.aten, name)
}


def _time(
    pipeline: MeanAudio,
    settings: Sequence[Setting],
    prompts: Sequence[str],
    repeats: int,
    warm_up: int,
    clock: Callable[[], float],
    quiet: bool,
) -> tuple[list[Repeats], list[LeftOut], Kernels]:
    """Count operations, warm up, then time, the settings in turn. What does not fit into the device's memory is left out from then on."""
    memory, found, left_out = Memory(pipeline.device), list[Repeats](), list[LeftOut]()

    def fitting() -> list[Repeats]:
        return [one for one in found if all(one.setting != other.setting for other in left_out)]

    bar = tqdm(total=len(settings) * (1 + warm_up + 2 * repeats), disable=quiet, unit="generation", dynamic_ncols=True, mininterval=1)
    before = compiled_pieces()
    with TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as told, bar:
        warnings.simplefilter("ignore", OutsideKnowledge)  # what the fixed prompts ask for matters to no timing
        bench = _Bench(pipeline, prompts, Path(folder), clock)
        for setting in settings:
            with _in_memory(setting, left_out):
                found.append(Repeats(setting, bench.flops(setting, repeats)))
                for number in range(warm_up):
                    bench.generate(setting, number)
            bar.update(1 + warm_up)
        warm = compiled_pieces()
        for number in range(repeats):
            for one in fitting():
                with _in_memory(one.setting, left_out):
                    _repeat(bench, memory, one, number)
                bar.update(2)
    for message in dict.fromkeys(str(warning.message) for warning in told):  # each once, not at every generation
        warnings.warn(message, stacklevel=2)
    return fitting(), left_out, Kernels.between(before, warm, compiled_pieces())


@contextmanager
def _in_memory(setting: Setting, left_out: list[LeftOut]) -> Iterator[None]:
    """A device that runs out of memory here costs this setting alone, and it is told: hours of others may have been measured already."""
    try:
        yield
    except RuntimeError as error:  # CUDA has a class for it, MPS has not
        if "out of memory" not in str(error):
            raise
        left_out.append(LeftOut(setting, str(error).splitlines()[0]))


def _repeat(bench: _Bench, memory: Memory, one: Repeats, number: int) -> None:
    """One plain and one watched generation of one setting."""
    memory.restart()
    for watching in (number % 2 == 1, number % 2 == 0):  # which goes first changes
        if watching:
            meter = bench.watch(one.setting, number)
            one.watched.append(meter.totals())
            one.evaluations += meter.amounts["network"]
        else:
            seconds, waited = bench.plain(one.setting, number)
            one.plain.append(seconds)
            one.waited.append(waited)
    one.memory.append((memory.peak_device(), memory.peak_host()))
