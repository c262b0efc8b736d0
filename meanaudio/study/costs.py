"""What a training step of each stage costs, over the whole of its run: schedules make the last steps dearer than the first."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from meanaudio.config import DISTILLED, INSTANT, WITH_CRITIC, StudyConfig, TrainConfig
from meanaudio.evaluation.training_cost import Bench, NoJudge, Variant, loss_of, peak_memory
from meanaudio.models.transformer import make_network
from meanaudio.objectives import Objective
from meanaudio.study.plan import stage_config, stages_of

TOKENS = 16  # of a caption
WARM_UP = 1


@dataclass(frozen=True)
class StepCost:
    """seconds: mean over a run, of medians. peak_memory: bytes of a process that makes such steps and nothing else, at their dearest."""

    seconds: float
    peak_memory: int


def step_costs(study: StudyConfig, place: Path, *, parts: int = 10, rounds: int = 3) -> dict[str, StepCost]:
    """Measure a step (forward, backward, AdamW) of every stage in the middle of each tenth of its run.

    The stages alternate, so that whatever else the machine does falls on all of them; ratios are what is to be relied on. Random latents.
    """
    configs = {label: stage_config(study, place, stage) for label, stage in stages_of(study).items()}
    memory = {label: peak_memory(bench_of, config) for label, config in configs.items()}
    benches = {label: bench_of(config) for label, config in configs.items()}
    seconds: dict[str, list[list[float]]] = {label: [[] for _ in range(parts)] for label in configs}
    for round_ in range(WARM_UP + rounds):
        for part in range(parts):
            for label, (bench, variant) in benches.items():
                taken = bench.step(variant, round_ * parts + part, progress=(part + 0.5) / parts)
                if round_ >= WARM_UP:
                    seconds[label][part].append(taken)
    return {label: StepCost(statistics.fmean(statistics.median(part) for part in found), memory[label]) for label, found in seconds.items()}


def bench_of(config: TrainConfig) -> tuple[Bench, Variant]:
    """The network and the step of a stage. A teacher has random weights: its cost is the same. Judges and text encoders are left out."""
    objective, teacher, critic, before = config.objective, None, None, None
    if objective.kind in DISTILLED:
        plain = {"interval": "none", "guidance_embedding": False, "guidance_limits": False} if objective.kind in INSTANT else {}
        teacher = make_network(config.network.model_copy(update=plain)).requires_grad_(False)
    if objective.kind in WITH_CRITIC:
        critic, before = make_network(config.network), teacher
    elif objective.looks_back:
        before = make_network(config.network).requires_grad_(False)
    judge = NoJudge(config.network, TOKENS)
    made = Objective(objective, teacher, critic, before, judge, judge.recall)
    return Bench(config, TOKENS), Variant(loss_of(made), config.loop.precision, config.loop.checkpoint_activations, made)
