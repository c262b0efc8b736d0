"""Where time, or arithmetic, goes: a reading is taken at the borders of the pipeline's stages while it runs as it always does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanaudio.pipeline import MeanAudio

# In the order in which they run. condition: the text's projections, once a text. network: its evaluations. score: of candidates. rest:
# noise, the sampler's arithmetic, the way to the CPU, level and peak. file: writing wav files.
STAGES = ("text", "condition", "network", "score", "vae", "vocoder", "rest", "file")


class Meter:
    """Attributes what a growing reading (a clock, a count of operations) grows by to stages.

    A stage inside another is taken out of the outer one, so that all amounts add up to the whole.
    amounts: stage -> one number for each time it ended.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.amounts: dict[str, list[float]] = defaultdict(list)
        self._inside: list[float] = []  # for each stage that is open: what the stages inside it took

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.read()
        self._inside.append(0.0)
        try:
            yield
        finally:
            whole = self.read() - start
            self.amounts[name].append(whole - self._inside.pop())
            if self._inside:
                self._inside[-1] += whole

    def totals(self) -> dict[str, float]:
        """Every one of STAGES -> the sum of its amounts."""
        return {name: sum(self.amounts[name]) for name in STAGES}


@contextmanager
def watched(pipeline: MeanAudio, meter: Meter) -> Iterator[None]:
    """While open, the pipeline's stages report to the meter. What runs, and in which order, is left as it is."""

    def staged(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with meter.stage(name):
                return run(*args, **options)

        return call

    network, codec = pipeline.network, pipeline.codec
    make_field = network.field
    calls = (
        (pipeline, "encode_text", staged("text", pipeline.encode_text)),
        (network, "condition", staged("condition", network.condition)),
        (network, "field", lambda *args, **options: staged("network", make_field(*args, **options))),
        (pipeline, "score", staged("score", pipeline.score)),
        (codec.vae, "decode", staged("vae", codec.vae.decode)),
        (codec, "decode", staged("vocoder", codec.decode)),  # the VAE inside it is counted apart
    )
    with ExitStack() as stack:
        for owner, name, call in calls:
            stack.enter_context(_replaced(owner, name, call))
        yield


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


@dataclass(frozen=True)
class Setting:
    """One way to generate. duration: seconds of a clip. candidates: drawn for each clip, of which the best is kept."""

    batch: int
    steps: int
    duration: float
    dtype: str
    compile: bool
    candidates: int = 1

    def __str__(self) -> str:
        how = "compiled" if self.compile else "eager"
        ranked = f", best of {self.candidates}" if self.candidates > 1 else ""
        return f"batch {self.batch}, {self.steps} step(s), {self.duration:g} s, {self.dtype}, {how}{ranked}"


def make_clips(
    pipeline: MeanAudio, setting: Setting, prompts: Sequence[str], seed: int, folder: Path,
    stage: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> None:  # fmt: skip
    """What is timed: prompts in, one wav file a prompt on the disk; every clip as a whole, so that all have the same work."""
    with stage("rest"):
        audio = pipeline.generate(
            prompts, duration=setting.duration, steps=setting.steps, seed=seed, num_candidates=setting.candidates, by_event=False
        )
    with stage("file"):
        for k in range(len(prompts)):
            audio.save(folder / f"{k}.wav", k)
