"""A fresh process that times its first sound, then its share of a benchmark. Nothing heavy is imported at the top: imports are timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanaudio.errors import InputError, OutsideKnowledge
from meanaudio.evaluation.first_sound import Cold

if TYPE_CHECKING:
    from meanaudio.evaluation.share import Request, Share
    from meanaudio.pipeline import MeanAudio

CODE = "from meanaudio.evaluation.process import child; child()"
ANSWER = "benchmark: "  # begins the lines of stdout that are answers: JSON objects


def child() -> None:
    """Runs in a process of its own, with a Request as JSON for its argument. Answers phases and host_memory of its first sound as soon as
    that is on the disk, then its share and the package's warnings; or, at any time, an error.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module="meanaudio")
        warnings.simplefilter("ignore", OutsideKnowledge)  # what the fixed prompts ask for matters to no timing
        try:
            pipeline = _first_sound(json.loads(sys.argv[1]))
            share = _share(pipeline, sys.argv[1])
        except (InputError, OSError) as error:
            _answer(error=str(error))
            sys.exit(1)
        except Exception as error:  # a fault: stderr shows where
            _answer(error=f"{type(error).__name__}: {error}")
            raise
    _answer(share=share, warnings=list(dict.fromkeys(str(warning.message) for warning in told)))


def _first_sound(request: dict[str, Any]) -> MeanAudio:
    """Import, load, make one clip; answer with the seconds of each."""
    began = time.perf_counter()
    from meanaudio.evaluation.probe import Memory, synchronise
    from meanaudio.evaluation.stages import Meter, Setting, make_clips, watched
    from meanaudio.pipeline import MeanAudio

    imported = time.perf_counter()
    first = Setting(**request["first"])
    pipeline = MeanAudio.from_pretrained(
        request["model"], request["device"], first.dtype, vocoder=request["vocoder"], compile=first.compile
    )
    synchronise(pipeline.device)
    loaded = time.perf_counter()

    def read() -> float:
        synchronise(pipeline.device)
        return time.perf_counter()

    meter = Meter(read)
    with watched(pipeline, meter):
        make_clips(pipeline, first, request["prompts"][:1], 0, Path(request["folder"]), meter.stage)
    phases = {"imports": imported - began, "loading": loaded - imported, **meter.totals()}
    _answer(phases=phases, host_memory=Memory(pipeline.device).peak_host())
    return pipeline


def _share(pipeline: MeanAudio, request: str) -> dict[str, Any]:
    from pydantic import TypeAdapter

    from meanaudio.evaluation.share import Request, time_share

    return asdict(time_share(pipeline, TypeAdapter(Request).validate_json(request)))


def _answer(**values: Any) -> None:
    print(ANSWER + json.dumps(values), flush=True)


def run_process(request: Request) -> tuple[Cold, Share]:
    """Ask a fresh python: what its first sound took, and its share. Its warnings are given here, its progress goes to stderr.

    Raises InputError with what the process said if it fails.
    """
    from pydantic import TypeAdapter

    from meanaudio.evaluation.share import Share

    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    told: dict[str, Any] = {}
    began, total = time.perf_counter(), 0.0
    command = [sys.executable, "-c", CODE, json.dumps(asdict(request))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for answer in _answers(process.stdout):
            if "phases" in answer:
                total = time.perf_counter() - began
            told |= answer
    if process.returncode != 0 or "share" not in told:
        failed = "failed while timing" if "phases" in told else "could not make a clip"
        raise InputError(f"a fresh process {failed}: {told.get('error', f'exit code {process.returncode}')}")
    for message in told["warnings"]:
        warnings.warn(message, stacklevel=2)
    phases = {"python": total - sum(told["phases"].values()), **told["phases"]}
    return Cold(total, phases, told["host_memory"]), TypeAdapter(Share).validate_python(told["share"])


def _answers(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith(ANSWER):
            yield json.loads(line.removeprefix(ANSWER))
