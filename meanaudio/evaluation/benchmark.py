"""How fast a checkpoint makes sound: each stage timed after warm-up, with the device synchronised."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from meanaudio.config import TrainConfig
from meanaudio.models.transformer import make_network
from meanaudio.objectives import make_objective
from meanaudio.pipeline import MeanAudio
from meanaudio.types import TextFeatures

T = TypeVar("T")
PROMPTS = ("a dog barks", "heavy rain falls", "footsteps on gravel, followed by a door slam", "an explosion in the distance")


@dataclass(frozen=True)
class Benchmark:
    """seconds: stage -> times of every repeat. duration: seconds of one clip. peak_memory: bytes resident at most; load: seconds."""

    model: str
    device: str
    dtype: str
    threads: int
    duration: float
    steps: int
    seconds: dict[str, list[float]]
    load: float
    peak_memory: int

    def real_time_factor(self, stage: str = "end to end") -> float:
        """Median time of a stage over the clip's duration."""
        return statistics.median(self.seconds[stage]) / self.duration

    def to_text(self) -> str:
        head = (
            f"{self.model} on {self.device} ({self.threads} threads), {self.dtype}, batch 1, {self.duration:g} s, {self.steps} step(s), "
            f"{len(self.seconds['end to end'])} clips after warm-up; loading {self.load:.2f} s, peak memory {self.peak_memory / 1e6:.0f} MB"
        )
        rows = [f"{'stage':<12}{'median ms':>11}{'p90 ms':>9}{'RTF':>9}"]
        for stage, times in self.seconds.items():
            p90 = statistics.quantiles(times, n=10)[-1] if len(times) > 1 else times[0]
            rows.append(f"{stage:<12}{statistics.median(times) * 1e3:>11.1f}{p90 * 1e3:>9.1f}{self.real_time_factor(stage):>9.4f}")
        return "\n".join([head, *rows])


def benchmark(
    model: str | Path,
    *,
    duration: float | None = None,
    steps: int = 1,
    repeats: int = 20,
    device: str | None = None,
    dtype: str | None = None,
) -> Benchmark:
    """Time `repeats` clips, one at a time, of varying prompts: text, network, codec, and all of it end to end."""
    began = time.perf_counter()
    pipeline = MeanAudio.from_pretrained(model, device=device, dtype=dtype)
    pipeline.encode_text([""])
    load = time.perf_counter() - began
    duration = pipeline.config.seconds if duration is None else duration
    spec = pipeline.codec.spec
    seconds: dict[str, list[float]] = {"text": [], "network": [], "codec": [], "end to end": []}

    def timed(stage: str, run: Callable[[], T]) -> T:
        _synchronise(pipeline.device)
        start = time.perf_counter()
        result = run()
        _synchronise(pipeline.device)
        seconds[stage].append(time.perf_counter() - start)
        return result

    warm_up = 3
    for i in range(warm_up + repeats):
        if i == warm_up:
            for times in seconds.values():
                times.clear()
        prompt, seed = PROMPTS[i % len(PROMPTS)], i
        text = timed("text", partial(pipeline.encode_text, [prompt]))
        latents = timed("network", partial(pipeline.sample_latents, text, [seed], spec.covering_latents(duration), steps=steps))
        timed("codec", partial(pipeline.decode, latents, spec.num_samples(duration)))
        timed("end to end", partial(pipeline.generate, prompt, duration=duration, steps=steps, seed=seed))
    if pipeline.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(pipeline.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    name = str(pipeline.dtype).removeprefix("torch.")
    return Benchmark(pipeline.name, str(pipeline.device), name, torch.get_num_threads(), duration, steps, seconds, load, peak)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_cost(config: TrainConfig, *, repeats: int = 8, tokens: int = 16) -> dict[str, float]:
    """Median seconds of one training step (forward, backward, AdamW) of the config's network on random latents.

    Flow matching and mean flow alternate, so that whatever else the machine does falls on both. Mean flow is at its dearest: guidance
    fully on, the interval fraction at its schedule's end.
    """
    network = make_network(config.network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    size, n = config.loop.batch_size, config.network
    x = torch.randn(size, config.codec.audio_spec().window_latents(config.seconds), n.latent_dim, generator=generator)

    def features(rows: int) -> TextFeatures:
        sequence = torch.randn(rows, tokens, n.sequence_dim, generator=generator)
        return TextFeatures(sequence, torch.randn(rows, n.pooled_dim, generator=generator), torch.ones(rows, tokens, dtype=torch.bool))

    text, null = features(size), features(1)
    mean_flow = config.objective.model_copy(update={"kind": "mean_flow"})
    objectives = {"flow matching": mean_flow.model_copy(update={"kind": "flow_matching"}), "mean flow": mean_flow}
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(2 + repeats):
        for name, objective in objectives.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=config.loop.precision == "bf16"):
                loss = make_objective(objective)(network, x, text, null, progress=1.0, generator=generator)
            optimizer.zero_grad(set_to_none=True)
            loss.per_sample.mean().backward()
            optimizer.step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[2:]) for name, times in seconds.items()}
