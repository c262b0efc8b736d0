"""Tables and plots of a study, from what its runs have written and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanaudio.checkpoint import write_beside, write_json, write_text
from meanaudio.config import StudyConfig
from meanaudio.study.measure import measured
from meanaudio.study.plan import Job, Run, stages_of
from meanaudio.study.runs import divergence, finished

NUMBERS = {  # key of a measured row: what it is, decimals, whether more is better
    "heard/frechet": ("Fréchet distance as the listener hears", 0, False),
    "heard/kernel": ("kernel distance as the listener hears, times 1000", 1, False),
    "heard/kl": ("KL to the recording of the same caption, as the listener hears", 2, False),
    "latents/frechet": ("Fréchet distance of latents", 2, False),
    "latents/match": ("distance of latents to the own caption's recording over that to all, 1 is chance", 3, False),
    "text/top_5": ("own caption among the first five, in percent", 0, True),
}
FACTORS = {"heard/kernel": 1000.0, "text/top_5": 100.0}
SHOWN = ("heard/frechet", "heard/kl", "latents/frechet", "text/top_5")  # in the plots
REPORT, RESULTS = "study.md", "study.json"


@dataclass(frozen=True)
class Line:
    """One row of a table: a stage of a method under a budget at one guidance scale, over the seeds that are there.

    values: number -> evaluations -> one value a seed. steps: of training, by stage. planned, ended, diverged: runs.
    """

    budget: str
    name: str
    steps: str
    planned: int
    ended: int
    diverged: int
    values: dict[str, dict[int, list[float]]]

    def mean(self, key: str, evaluations: int) -> float | None:
        found = self.values.get(key, {}).get(evaluations)
        return statistics.fmean(found) if found else None

    def spread(self, key: str, evaluations: int) -> float | None:
        """Standard deviation over seeds; None for fewer than two."""
        found = self.values.get(key, {}).get(evaluations, [])
        return statistics.stdev(found) if len(found) > 1 else None


def write_report(study: StudyConfig, out: Path, plan: Sequence[Job], costs: Mapping[str, Any], limits: Mapping[str, Any]) -> Path:
    """study.md, study.json and one plot a budget in `out`; returns the first."""
    lines = lines_of(study, plan)
    pictures = {budget: f"study-{budget.replace(' ', '-')}.png" for budget in study.budgets}
    for budget, picture in pictures.items():
        _plot(study, [line for line in lines if line.budget == budget], limits, out / picture)
    write_json(out / RESULTS, to_json(study, lines, costs, limits))
    write_text(out / REPORT, to_markdown(study, lines, costs, limits, pictures))
    return out / REPORT


def lines_of(study: StudyConfig, plan: Sequence[Job]) -> list[Line]:
    """Lines in the order of budgets, methods, stages and scales; what has not been measured has a line without values."""
    found = []
    for budget, given in study.budgets.items():
        for method in given.methods or study.methods:
            chains = [job.runs for job in plan if job.budget == budget and job.method == method]
            for number, stage_runs in enumerate(zip(*chains, strict=True)):
                for guidance in stage_runs[0].guidance:
                    found.append(_line(study, budget, method, number == len(chains[0]) - 1, stage_runs, guidance))
    return found


def _line(study: StudyConfig, budget: str, method: str, last: bool, runs: Sequence[Run], guidance: float) -> Line:
    values: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for row in measured(run, study):
            if row["guidance"] == guidance:
                for key in NUMBERS.keys() & row.keys():
                    values.setdefault(key, {}).setdefault(row["evaluations"], []).append(row[key])
    name = method + ("" if last else f", stage {runs[0].stage.label}") + ("" if guidance == 1 else f", guidance {guidance:g}")
    diverged = sum(divergence(run) is not None for run in runs)
    return Line(budget, name, steps_of(runs[0]), len(runs), sum(map(finished, runs)), diverged, values)


def steps_of(run: Run) -> str:
    """Training steps of a run and of those before it."""
    own = f"{run.rounds} × {run.config.loop.steps}" if run.rounds else str(run.steps)
    return f"{steps_of(run.after)} + {own}" if run.after else own


# ---------------------------------------------------------------- tables


def to_markdown(
    study: StudyConfig, lines: Sequence[Line], costs: Mapping[str, Any], limits: Mapping[str, Any], pictures: Mapping[str, str]
) -> str:
    parts = [_costs_table(study, costs)]
    for budget, given in study.budgets.items():
        own = [line for line in lines if line.budget == budget]
        what = f"{given.times * study.steps:g} training steps" if given.equal == "steps" else _cost_told(study, given.times)
        parts.append(f"### {budget[0].upper()}{budget[1:]}: {what} each\n\n![{budget}]({pictures[budget]})")
        parts.append(_runs_table(own))
        if any(line.values for line in own):
            parts += [_number_table(study, key, own, limits) for key in NUMBERS]
    return "\n\n".join(parts) + "\n"


def _cost_told(study: StudyConfig, times: float) -> str:
    return f"as long as {times * study.steps:g} steps of {study.reference}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join(["| " + " | ".join(header) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)])


def _costs_table(study: StudyConfig, costs: Mapping[str, Any]) -> str:
    cheapest = min(cost["seconds"] for cost in costs.values())
    rows = [
        [label, f"{costs[label]['seconds']:.3f}", f"{costs[label]['seconds'] / cheapest:.2f}", f"{costs[label]['peak_memory'] / 1e9:.2f}"]
        for label in stages_of(study)
    ]
    return "### Cost of a training step\n\n" + _table(["stage", "seconds, over its run", "ratio", "peak GB"], rows)


def _runs_table(lines: Sequence[Line]) -> str:
    """Methods, not scales: a run that is measured twice has one row. What has not been run is told here and has no row in the others."""
    rows = {line.name.split(", guidance")[0]: line for line in lines}
    told = [[name, x.steps, f"{x.ended} of {x.planned}", _share(x)] for name, x in rows.items()]
    return _table(["method", "training steps", "runs ended", "without divergence"], told)


def _share(line: Line) -> str:
    known = line.ended + line.diverged
    return f"{line.ended / known:.0%} of {known}" if known else "not run"


def _number_table(study: StudyConfig, key: str, lines: Sequence[Line], limits: Mapping[str, Any]) -> str:
    what, decimals, up = NUMBERS[key]
    counts = sorted({n for line in lines for n in line.values.get(key, {})} | set(study.evaluations))
    rows = [[line.name, *(_cell(line, key, n, decimals) for n in counts)] for line in lines if line.values]
    for name, told in (("codec", "recordings through the codec"), ("others", "other recordings"), ("chance", "chance")):
        if key in limits.get(name, {}):
            value = f"{round(limits[name][key] * FACTORS.get(key, 1), decimals) + 0.0:.{decimals}f}"  # no -0.00
            rows.append([f"*{told}*", value, *[""] * (len(counts) - 1)])
    title = f"**{what[0].upper()}{what[1:]}**, {'higher' if up else 'lower'} is better, by network evaluations a clip"
    return f"{title}\n\n" + _table(["", *map(str, counts)], rows)


def _cell(line: Line, key: str, evaluations: int, decimals: int) -> str:
    mean, spread, factor = line.mean(key, evaluations), line.spread(key, evaluations), FACTORS.get(key, 1)
    if mean is None:
        return ""
    return f"{mean * factor:.{decimals}f}" + ("" if spread is None else f" ± {spread * factor:.{decimals}f}")


def to_json(study: StudyConfig, lines: Sequence[Line], costs: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of every seed."""
    return {
        "study": study.model_dump(mode="json"),
        "costs": dict(costs),
        "limits": dict(limits),
        "numbers": {key: {"what": what, "better": "higher" if up else "lower"} for key, (what, _, up) in NUMBERS.items()},
        "lines": [
            {
                "budget": line.budget, "name": line.name, "training_steps": line.steps, "planned": line.planned, "ended": line.ended,
                "diverged": line.diverged,
                "values": {key: {str(n): seeds for n, seeds in sorted(by.items())} for key, by in sorted(line.values.items())},
            }
            for line in lines
        ],
    }  # fmt: skip


# ---------------------------------------------------------------- plots


def _plot(study: StudyConfig, lines: Sequence[Line], limits: Mapping[str, Any], picture: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    shown = [line for line in lines if line.values]
    for place, key in enumerate(SHOWN):
        axes, factor = figure.add_subplot(2, 2, place + 1), FACTORS.get(key, 1)
        for number, line in enumerate(shown):
            counts = sorted(line.values.get(key, {}))
            means = [(line.mean(key, n) or 0.0) * factor for n in counts]
            spreads = [(line.spread(key, n) or 0.0) * factor for n in counts]
            shifted = [n * 1.015 ** (number - len(shown) / 2) for n in counts]  # so that bars do not hide one another
            axes.errorbar(shifted, means, yerr=spreads, marker="os^Dv"[number % 5], markersize=4, linewidth=1, capsize=2, label=line.name,
                          color=f"C{number % 10}", linestyle="-" if number < 10 else "--")  # fmt: skip
        for name, style in (("codec", ":"), ("others", "-."), ("chance", "--")):
            if key in limits.get(name, {}):
                axes.axhline(limits[name][key] * factor, color="grey", linewidth=0.8, linestyle=style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(study.evaluations, [str(n) for n in study.evaluations])
        axes.set_title(NUMBERS[key][0], fontsize=9)
        axes.grid(alpha=0.3)
    for axes in figure.axes[2:]:
        axes.set_xlabel("network evaluations a clip")
    if shown:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    write_beside(picture, lambda path: FigureCanvasAgg(figure).print_png(path))
