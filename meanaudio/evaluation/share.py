"""What one process does for a benchmark: its share of the generations of every setting of one way, after warm-up, device synchronised."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Size
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm import tqdm

from meanaudio.evaluation.probe import Memory, compiled_pieces, seconds_waited, synchronise
from meanaudio.evaluation.stages import Meter, Setting, make_clips, watched
from meanaudio.evaluation.timings import Kernels, LeftOut, Repeats
from meanaudio.pipeline import MeanAudio


@dataclass(frozen=True)
class Request:
    """What process `index` of `processes` is asked: to time generations index, index + processes, ... below `repeats` of each setting.

    settings: of one dtype, and all compiled or none: one pipeline makes them all. first: of that way too, of batch 1, for the first sound.
    model, folder: paths, of a checkpoint and of a place for wav files. Process 0 counts operations as well.
    """

    model: str
    device: str
    vocoder: str | None
    first: Setting
    settings: list[Setting]
    prompts: list[str]
    repeats: int
    warm_up: int
    index: int
    processes: int
    folder: str
    quiet: bool

    @property
    def numbers(self) -> range:
        return range(self.index, self.repeats, self.processes)


@dataclass(frozen=True)
class Share:
    """What a process found. left_out: settings that ran out of memory, of which `found` has nothing. kernels: None if not compiled.

    facts: of the pipeline and the process.
    """

    found: list[Repeats]
    left_out: list[LeftOut]
    kernels: Kernels | None
    facts: dict[str, Any]


def time_share(
    pipeline: MeanAudio, request: Request, *, clock: Callable[[], float] = time.perf_counter, before: tuple[int, int] = (0, 0)
) -> Share:
    """Count operations (process 0), warm up, then time, the settings in turn. What does not fit into memory is left out from then on.

    clock: read when the device has come to rest. before: `compiled_pieces` before the pipeline was loaded; none in a fresh process.
    """
    memory, found, left_out = Memory(pipeline.device), list[Repeats](), list[LeftOut]()
    settings, numbers, compiled = request.settings, request.numbers, request.first.compile

    def fitting() -> list[Repeats]:
        return [one for one in found if all(one.setting != other.setting for other in left_out)]

    counting = int(request.index == 0)
    total = len(settings) * (counting + request.warm_up + 2 * len(numbers))
    bench = _Bench(pipeline, request.prompts, Path(request.folder), clock)
    with tqdm(total=total, desc=_title(request), disable=request.quiet, unit="generation", dynamic_ncols=True, mininterval=1) as bar:
        for setting in settings:
            with _in_memory(setting, left_out):
                found.append(Repeats(setting, bench.flops(setting, request.repeats) if counting else {}))
                for number in range(request.warm_up):
                    bench.generate(setting, number)
            bar.update(counting + request.warm_up)
        warm = compiled_pieces() if compiled else before
        for turn, number in enumerate(numbers):
            for one in fitting():
                with _in_memory(one.setting, left_out):
                    _repeat(bench, memory, one, number, watched_first=(turn + request.index) % 2 == 1)
                bar.update(2)
    kernels = Kernels.between(before, warm, compiled_pieces()) if compiled else None
    return Share(fitting(), left_out, kernels, _facts(pipeline, request.vocoder))


def _title(request: Request) -> str:
    way = f"{request.first.dtype}, {'compiled' if request.first.compile else 'eager'}"
    return f"{way}, process {request.index + 1} of {request.processes}" if request.processes > 1 else way


def _facts(pipeline: MeanAudio, vocoder: str | None) -> dict[str, Any]:
    parts = {"network": pipeline.network, "vae": pipeline.codec.vae, "vocoder": pipeline.codec.vocoder}
    return {
        "threads": torch.get_num_threads(),
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "text_encoder": pipeline.encoder.fingerprint,
        "vocoder": pipeline.codec.config.vocoder.kind,
        "vocoder_from": vocoder or "its own",
    }


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
        """Stage -> operations of one generation: of the one with as many words as the median of all `repeats`.

        Counted as it runs eagerly: compiled code hides its operations, and has the same ones to do.
        """
        numbers = sorted(range(repeats), key=lambda number: sum(len(text.split()) for text in self.texts(setting, number)))
        eagerly = torch.compiler.set_stance("force_eager") if setting.compile else nullcontext()
        with eagerly, unfused_encoder_layers(), FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            meter = Meter(counter.get_total_flops)
            with watched(self.pipeline, meter):
                self.generate(setting, numbers[repeats // 2], meter.stage)
        return meter.totals()


@contextmanager
def unfused_encoder_layers() -> Iterator[None]:
    """torch's encoder layers as operations that can be counted: in inference each is one of its own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _attention(query: Size, key: Size, value: Size, *args: object, out_shape: object = None, **options: object) -> int:
    return sdpa_flop_count(query, key, value)


# Fused attention that torch's counter does not know: without these, attention on a CPU counts as nothing.
ATTENTION = {
    getattr(torch.ops.aten, name): _attention
    for name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math_for_mps")
    if hasattr(torch.ops.aten, name)
}


@contextmanager
def _in_memory(setting: Setting, left_out: list[LeftOut]) -> Iterator[None]:
    """A device that runs out of memory here costs this setting alone, and it is told: hours of others may have been measured already."""
    try:
        yield
    except RuntimeError as error:  # CUDA has a class for it, MPS has not
        if "out of memory" not in str(error):
            raise
        left_out.append(LeftOut(setting, str(error).splitlines()[0]))


def _repeat(bench: _Bench, memory: Memory, one: Repeats, number: int, *, watched_first: bool) -> None:
    """One plain and one watched generation of one setting."""
    memory.restart()
    for watching in (watched_first, not watched_first):
        if watching:
            meter = bench.watch(one.setting, number)
            one.watched.append(meter.totals())
            one.evaluations += meter.amounts["network"]
        else:
            seconds, waited = bench.plain(one.setting, number)
            one.plain.append(seconds)
            one.waited.append(waited)
    one.memory.append((memory.peak_device(), memory.peak_host()))
