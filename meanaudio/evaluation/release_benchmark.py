"""A converted release here, beside the same work done in the shape of the public code: stage times, ratios, memory, first sound.

Every variant runs in a process of its own, round by round, so that whatever else the machine does falls on all of them, peak memory is
each one's own, and the time to the first sound starts cold.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.codec.bigvgan import SmoothSnake, low_pass
from meanaudio.codec.spectral_conv import SpectralConv1d
from meanaudio.errors import InputError
from meanaudio.memory import KEEP
from meanaudio.pipeline import MeanAudio

DURATION, PROMPT = 9.984, "a dog barks in the distance while rain falls"
# name: (dtype, vocoder, in the public code's shape)
VARIANTS: dict[str, tuple[str, str | None, bool]] = {
    "public shape, float32": ("float32", None, True),
    "float32": ("float32", None, False),
    "bf16": ("bf16", None, False),
    "float32, fast vocoder": ("float32", "fast", False),
    "bf16, fast vocoder": ("bf16", "fast", False),
}
BASELINE = next(iter(VARIANTS))
STAGES, WHOLE = ("text", "network", "VAE", "vocoder"), "end to end"


class TextbookSnake(nn.Module):
    """SmoothSnake as published: a grouped transposed convolution, the snake at twice the rate, a grouped strided convolution."""

    taps: Tensor

    def __init__(self, source: SmoothSnake) -> None:
        super().__init__()
        self.source = source
        self.register_buffer("taps", low_pass()[None, None].expand(len(source.log_alpha), 1, -1).contiguous(), persistent=False)

    def of_sum(self, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x if added is None else x + added
        return x, self(x)

    def forward(self, x: Tensor) -> Tensor:
        groups = x.shape[1]
        up = 2 * F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), self.taps, stride=2, groups=groups)[..., 15:-15]
        return F.conv1d(F.pad(self.source.snake(up), (5, 6), mode="replicate"), self.taps, stride=2, groups=groups)


def in_public_shape(module: nn.Module) -> None:
    """Put TextbookSnake in the place of every SmoothSnake, and a plain Conv1d in that of every SpectralConv1d, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SmoothSnake):
                setattr(parent, name, TextbookSnake(child))
            elif isinstance(child, SpectralConv1d):
                setattr(parent, name, child.plain())


def run_variant(model: str, variant: str, repeats: int, audio_file: Path) -> dict[str, Any]:
    """In this process: load, make a first clip, then time `repeats` clips by stage. The clip is written to `audio_file` (.npy).

    Returns seconds of each stage and of the whole (medians), up to the first sound, and peak resident bytes.
    """
    dtype, vocoder, public = VARIANTS[variant]
    began = time.perf_counter()
    pipeline = MeanAudio.from_pretrained(model, device="cpu", dtype=dtype, vocoder=vocoder)
    if public:
        in_public_shape(pipeline.codec.vocoder)
    first = pipeline.generate(PROMPT, duration=DURATION, seed=0, level_db=None)
    first_sound = time.perf_counter() - began
    np.save(audio_file, first.samples[0].numpy())
    spec = pipeline.codec.spec
    seconds: dict[str, list[float]] = {stage: [] for stage in (*STAGES, WHOLE)}

    for repeat in range(repeats):
        pipeline.forget_text()
        times = [time.perf_counter()]
        with torch.inference_mode():
            text = pipeline.encode_text([PROMPT])
            times.append(time.perf_counter())
            latents = pipeline.sample_latents(text, [repeat], spec.covering_latents(DURATION))
            times.append(time.perf_counter())
            with pipeline.precision():
                mel = pipeline.codec.decode_mel(latents)
                times.append(time.perf_counter())
                pipeline.codec.vocoder(mel)
                times.append(time.perf_counter())
        for stage, a, b in zip(STAGES, times, times[1:], strict=False):
            seconds[stage].append(b - a)
        seconds[WHOLE].append(times[-1] - times[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    medians = {stage: statistics.median(values) for stage, values in seconds.items()}
    return {"seconds": medians, "first_sound": first_sound, "peak": peak}


@dataclass(frozen=True)
class ReleaseBenchmark:
    """runs: variant -> what `run_variant` returned, round by round. error: relative difference of the variant's clip from the baseline's.

    The median round is the number: the public shape's time depends on the memory that the system happens to hand out, by a fifth and more.
    """

    model: str
    threads: int
    runs: dict[str, list[dict[str, Any]]]
    error: dict[str, float]

    def seconds(self, variant: str, stage: str = WHOLE) -> float:
        """Median over the rounds."""
        return statistics.median(run["seconds"][stage] for run in self.runs[variant])

    def speed_up(self, variant: str) -> float:
        """How many times faster than the baseline, end to end."""
        return self.seconds(BASELINE) / self.seconds(variant)

    def to_text(self) -> str:
        """A table for a reader."""
        what = f"seconds, medians of {len(self.runs[BASELINE])} round(s), and the least and most of the whole"
        head = f"{self.model}: {DURATION} s, one step, {self.threads} threads; {what}"
        titles = "".join(f"{name:>11}" for name in (*STAGES, WHOLE))
        lines = [head, f"{'':<24}{titles}{'from':>8}{'to':>7}{'faster':>9}{'1st sound':>11}{'peak GB':>9}{'difference':>12}"]
        for name, runs in self.runs.items():
            times = "".join(f"{self.seconds(name, stage):>11.2f}" for stage in (*STAGES, WHOLE))
            wholes, peak = [run["seconds"][WHOLE] for run in runs], max(run["peak"] for run in runs)
            first = statistics.median(run["first_sound"] for run in runs)
            rest = f"{self.speed_up(name):>8.1f}x{first:>11.1f}{peak / 1e9:>9.2f}{self.error[name]:>12.1e}"
            lines.append(f"{name:<24}{times}{min(wholes):>8.2f}{max(wholes):>7.2f}{rest}")
        return "\n".join(lines)


def release_benchmark(model: str | Path, *, rounds: int = 3, repeats: int = 2) -> ReleaseBenchmark:
    """Run every variant `rounds` times, in turn. Raises InputError if the checkpoint's own vocoder is not the release's."""
    if rounds < 1 or repeats < 1:
        raise InputError(f"rounds = {rounds}, repeats = {repeats}: must be 1 or more")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    error = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for variant in VARIANTS:
                audio = Path(folder) / f"{list(VARIANTS).index(variant)}.npy"
                code = (
                    "import json, sys; from pathlib import Path; from meanaudio.evaluation.release_benchmark import run_variant; "
                    "print(json.dumps(run_variant(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))))"
                )
                command = [sys.executable, "-c", code, str(model), variant, str(repeats), str(audio)]
                environment = {**os.environ, KEEP: "0" if variant == BASELINE else "1"}  # the public code leaves the allocator as it is
                made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
                if made.returncode:
                    raise InputError(f"{variant}: {(made.stderr.strip().splitlines() or ['stopped'])[-1]}")
                runs[variant].append(json.loads(made.stdout.splitlines()[-1]))
                clip = np.load(audio)
                if variant == BASELINE:
                    expected = clip
                error[variant] = float(np.linalg.norm(clip - expected) / np.linalg.norm(expected))
    return ReleaseBenchmark(str(model), torch.get_num_threads(), runs, error)
