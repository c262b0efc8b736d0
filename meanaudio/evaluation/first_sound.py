"""How long a cold process takes to its first clip. Nothing heavy is imported at the top: the imports are part of what is timed."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meanaudio.errors import InputError

PHASES = ("python", "imports", "loading")  # then the stages of the first clip; a text encoder's weights are read in its "text"
CODE = "from meanaudio.evaluation.first_sound import child; child()"


@dataclass(frozen=True)
class FirstSound:
    """Cold processes of one setting. totals: seconds from the start of each to its clip on the disk, in the order they ran.

    phases: the seconds of the run with the median total (the lower of two), which they add up to: starting python, importing,
    loading the checkpoint, then the stages of the first clip. host_memory: the most bytes resident in any of them.
    Files are as the system has them: the first run may read the disk where later ones find its cache.
    """

    dtype: str
    compile: bool
    steps: int
    duration: float
    totals: list[float]
    phases: dict[str, float]
    host_memory: int | None

    @property
    def median(self) -> float:
        return statistics.median_low(self.totals)


def child() -> None:
    """Import, load, make one clip; print the seconds of each as one line of JSON. Runs in a process of its own."""
    request = json.loads(sys.argv[1])
    began = time.perf_counter()
    from meanaudio.evaluation.probe import Memory, synchronise
    from meanaudio.evaluation.stages import Meter, Setting, make_clips, watched
    from meanaudio.pipeline import MeanAudio

    imported = time.perf_counter()
    setting = Setting(**request["setting"])
    pipeline = MeanAudio.from_pretrained(
        request["model"], request["device"], setting.dtype, vocoder=request["vocoder"], compile=setting.compile
    )
    synchronise(pipeline.device)
    loaded = time.perf_counter()

    def read() -> float:
        synchronise(pipeline.device)
        return time.perf_counter()

    meter = Meter(read)
    with watched(pipeline, meter):
        make_clips(pipeline, setting, [request["prompt"]], 0, Path(request["folder"]), meter.stage)
    phases = {"imports": imported - began, "loading": loaded - imported, **meter.totals()}
    print(json.dumps({"phases": phases, "host_memory": Memory(pipeline.device).peak_host()}), flush=True)


def first_sound(model: Path, device: str, setting: dict[str, Any], vocoder: str | None, prompt: str, runs: int) -> FirstSound:
    """Make one clip in each of `runs` fresh processes. setting: the fields of a Setting of batch 1. Raises InputError if one fails."""
    shown = {name: setting[name] for name in ("dtype", "compile", "steps", "duration")}
    found = []
    with TemporaryDirectory() as folder:
        request = {
            "model": str(model.resolve()),
            "device": device,
            "vocoder": vocoder,
            "setting": setting,
            "prompt": prompt,
            "folder": folder,
        }
        for _ in range(runs):
            total, told = _run(json.dumps(request), Path(folder) / "errors.txt")
            start = total - sum(told["phases"].values())
            found.append((total, {"python": start, **told["phases"]}, told["host_memory"]))
    totals = [total for total, _, _ in found]
    phases = next(phases for total, phases, _ in found if total == statistics.median_low(totals))
    memories = [memory for _, _, memory in found if memory is not None]
    return FirstSound(**shown, totals=totals, phases=phases, host_memory=max(memories, default=None))


def _run(request: str, errors: Path) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of a process to the line that says its clip is written, and that line."""
    package = str(Path(__file__).parents[2])
    paths = [package, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with errors.open("w+", encoding="utf-8") as stderr:
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-c", CODE, request], env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith('{"phases"')), None)
            total = time.perf_counter() - began
        if line is None or process.returncode != 0:
            stderr.seek(0)
            said = [text.strip() for text in stderr.readlines() if text.strip()] or [f"exit code {process.returncode}"]
            raise InputError(f"a fresh process could not make a clip: {said[-1]}")
    return total, json.loads(line)
