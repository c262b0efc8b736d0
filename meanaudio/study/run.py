"""A whole study: costs, runs, measurements, report. Stopped at any time, the same command goes on; several of it share the work."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from meanaudio.checkpoint import read_json, write_json
from meanaudio.config import StudyConfig, load_config
from meanaudio.errors import InputError
from meanaudio.pipeline import MeanAudio
from meanaudio.study.costs import step_costs
from meanaudio.study.measure import Judge, judged_by, measure_run
from meanaudio.study.plan import Job, Run, jobs, stage_config, stages_of
from meanaudio.study.report import write_report
from meanaudio.study.runs import claimed, divergence, finished, train_run

COSTS, LIMITS = "costs.json", "limits.json"
WAIT = 5.0  # seconds between two looks at runs that another process has claimed


def study(config: Path, out: Path, *, device: str | None = None, report_only: bool = False, progress_bar: bool = True) -> Path | None:
    """Train and measure all that `config` plans and is not done in `out`, and write tables and plots of all that is; returns the tables.

    report_only: write them of what there is. None: a signal stopped a run; call again to go on. Raises InputError for what cannot work.
    """
    settings, place = load_config(StudyConfig, config), config.parent
    if report_only and not (out / COSTS).is_file():
        raise InputError(f"{out}: holds no study; run it without --report first")
    if not (out / COSTS).is_file():
        with claimed(out / "costs", wait=True):
            if not (out / COSTS).is_file():
                write_json(out / COSTS, {label: asdict(cost) for label, cost in step_costs(settings, place).items()})
    costs = read_json(out / COSTS)
    if missing := sorted(stages_of(settings).keys() - costs.keys()):
        raise InputError(f"{out / COSTS}: has no {', '.join(missing)}; move it away to have all costs measured anew, in one turn")
    plan = list(jobs(settings, place, out, {label: cost["seconds"] for label, cost in costs.items()}))
    if not report_only and not _work(settings, place, out, plan, device, progress_bar):
        return None
    return write_report(settings, out, plan, costs, _limits(out, settings))


def _work(settings: StudyConfig, place: Path, out: Path, plan: list[Job], device: str | None, progress_bar: bool) -> bool:
    """Bring all runs to their ends. False: a signal stopped one."""
    judge = Judge(settings, stage_config(settings, place, settings.methods[settings.reference][0]), device=device)
    pending = list({(run.folder, run.guidance, run.evaluations): run for job in plan for run in job.runs}.values())
    while pending:
        later = []
        for run in pending:
            if divergence(run):
                continue
            if run.after is not None and not finished(run.after):
                later.append(run)
                continue
            with claimed(run.folder) as mine:
                if not mine:
                    later.append(run)
                elif not finished(run) and not train_run(run, device=device, progress_bar=progress_bar):
                    return False
                elif finished(run):
                    measure_run(run, judge)
                    _measure_limits(out, run, judge)
        if len(later) == len(pending):
            time.sleep(WAIT)
        pending = later
    return True


def _measure_limits(out: Path, run: Run, judge: Judge) -> None:
    """Once in a study; any run's pipeline has the codec that it takes."""
    if not _limits(out, judge.study):
        found = judge.limits(MeanAudio.from_pretrained(run.export, judge.device, run.config.loop.precision))
        write_json(out / LIMITS, {"by": judged_by(judge.study), "limits": found})


def _limits(out: Path, settings: StudyConfig) -> dict[str, dict[str, float]]:
    """What `Judge.limits` said; empty if it was not asked, or said it under other settings."""
    if not (out / LIMITS).is_file():
        return {}
    found = read_json(out / LIMITS)
    return dict(found["limits"]) if found["by"] == judged_by(settings) else {}
