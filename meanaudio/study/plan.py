"""What a study trains: every method under every budget and seed as a chain of runs, and how many steps each of them gets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from meanaudio.config import DISTILLED, StageConfig, StudyConfig, TrainConfig, load_config


@dataclass(frozen=True)
class Run:
    """One training run in a chain. folder: its own; two chains that begin alike share the runs they have in common.

    after: the run whose network it continues. rounds: a progressive distillation is so many runs, each of config.loop.steps.
    guidance, evaluations: at which scales and how many evaluations the network is measured.
    """

    folder: Path
    config: TrainConfig
    stage: StageConfig
    after: Run | None
    rounds: int
    guidance: tuple[float, ...]
    evaluations: tuple[int, ...]

    @property
    def export(self) -> Path:
        """What the run ends with."""
        return self.export_for(1)

    def export_for(self, steps: int) -> Path:
        """The network to be sampled with so many steps: of a progressive distillation's rounds, the last that still took as many."""
        if not self.rounds:
            return self.folder / "export"
        taken = min(2 ** (steps.bit_length() - 1), self.config.objective.halving.first)
        return self.folder / f"{taken}-steps" / "export"

    @property
    def steps(self) -> int:
        return self.config.loop.steps * max(1, self.rounds)


@dataclass(frozen=True)
class Job:
    """A method under a budget with one seed."""

    budget: str
    method: str
    seed: int
    runs: tuple[Run, ...]


def stages_of(study: StudyConfig) -> dict[str, StageConfig]:
    """All different stages by label."""
    return {stage.label: stage for stages in study.methods.values() for stage in stages}


def stage_config(study: StudyConfig, place: Path, stage: StageConfig, teacher: str | None = None) -> TrainConfig:
    """A stage's training config with the study's settings. place: the folder of the study's file. teacher: the export before it."""
    changes: dict = {}
    for sections in (study.settings, stage.changes):
        for section, values in sections.items():
            both = isinstance(values, dict) and isinstance(changes.get(section), dict)
            changes[section] = {**changes[section], **values} if both else values
    config = load_config(TrainConfig, place / stage.config, changes=changes)
    if teacher is None:
        return config
    more = {"teacher": teacher} if config.objective.kind in DISTILLED else {}
    return config.model_copy(update={"init_from": teacher, "objective": config.objective.model_copy(update=more)})


def rounds_of(config: TrainConfig) -> int:
    """How many rounds `distill` makes of a config: 0 for what is no progressive distillation."""
    progressive = config.objective.kind == "progressive_distillation"
    return int(math.log2(config.objective.halving.first)) + 1 if progressive else 0


def jobs(study: StudyConfig, place: Path, out: Path, costs: Mapping[str, float]) -> Iterator[Job]:
    """All jobs, budget after budget; in each the first seed of every method before any second one. costs: seconds of a step by label."""
    for name, budget in study.budgets.items():
        for number, seed in enumerate(budget.seeds):
            methods = budget.methods or tuple(study.methods)
            for method in (budget.repeated or methods) if number else methods:
                yield Job(name, method, seed, chain(study, place, out, name, method, seed, costs))


def chain(study: StudyConfig, place: Path, out: Path, budget: str, method: str, seed: int, costs: Mapping[str, float]) -> tuple[Run, ...]:
    """The runs of a method, in their order."""
    given, reference = study.budgets[budget], costs[study.methods[study.reference][0].label]
    runs: list[Run] = []
    stages = study.methods[method]
    for stage in stages:
        total = given.times * study.steps * stage.share
        if given.equal == "cost":
            total *= reference / costs[stage.label]
        before = runs[-1] if runs else None
        config = stage_config(study, place, stage, str(before.export) if before else None)
        rounds = rounds_of(config)
        steps = max(1, round(total / max(1, rounds)))
        loop = config.loop.model_copy(update={"steps": steps, "sample_every": steps, "seed": seed})
        name = f"{before.folder.name}+{stage.label}-{steps}" if before else f"{stage.label}-{steps}"
        folder = out / "runs" / f"seed-{seed}" / name
        scales = stage.guidance or ((1.0,) if stage is stages[-1] else ())
        evaluations = study.evaluations if seed == given.seeds[0] else study.repeated_evaluations
        runs.append(Run(folder, config.model_copy(update={"loop": loop}), stage, before, rounds, scales, evaluations))
    return tuple(runs)
