"""What a training step of the transformer costs on this machine's CPU: seconds, and memory at its peak, on random latents."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanaudio.config import INSTANT, ONE_STEP, WITH_CRITIC, HalvingConfig, NetworkConfig, ObjectiveConfig, TrainConfig, constant
from meanaudio.evaluation.probe import Memory, seconds_waited
from meanaudio.flow import expand, interpolate, velocity
from meanaudio.memory import keep_freed_memory
from meanaudio.models.transformer import make_network
from meanaudio.objectives import OBJECTIVES, Objective
from meanaudio.objectives.distribution_matching import MatchingDraws, laid_on, outputs
from meanaudio.objectives.flow_matching import flow_matching
from meanaudio.objectives.two_times import TwoTimeDraws
from meanaudio.precision import DTYPES, computing_in
from meanaudio.types import Asked, Draws, Loss, Network, TextFeatures

PUBLIC = "mean flow as in the public code, float32"


def public_mean_flow(
    net: Network, x: torch.Tensor, text: TextFeatures, null: TextFeatures, draws: Draws, *, progress: float, config: ObjectiveConfig
) -> Loss:
    """The mean-flow loss in the order of work of the public code. It is here to be measured against, and nothing trains with it.

    What makes it dear: the derivative by `torch.autograd.functional.jvp`, which differentiates twice backward, keeps its graph, and runs on
    all rows although it is multiplied by t - r = 0 in most; guidance by two passes over all rows that keep their graphs too.
    Equals `mean_flow` with dropped_rows "release" and guidance fully on.
    """
    t, r = draws.t, draws.r
    z, v = interpolate(x, draws.noise, t), velocity(x, draws.noise)
    kept = text.where(draws.keep, null)
    with_text, without_text = (net(z, t, t, net.condition(features)) for features in (text, null.expand(len(x))))
    v_g = config.omega * v + config.kappa * with_text + (1 - config.omega - config.kappa) * without_text
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
        u, derivative = torch.autograd.functional.jvp(
            lambda z, t, r: net(z, t, r, net.condition(kept)), (z, t, r), (v_g, torch.ones_like(t), torch.zeros_like(r)), create_graph=True
        )
    target = (v_g - expand(t - r, x) * derivative).detach()
    error = (u - target).square().flatten(1).mean(1)
    per_sample = error / (error.detach() + config.adaptive_epsilon) ** config.adaptive_power
    return Loss(per_sample, t, {"loss": per_sample.mean().item(), "error": error.mean().item()})


@dataclass(frozen=True)
class Variant:
    """One way to make a training step."""

    loss: Callable[..., Loss]  # as an objective's
    precision: str
    checkpoint_activations: bool = False
    objective: Objective | None = None  # whose draws it needs; mean flow's if left out


def variants(config: TrainConfig, against: str | None, tokens: int = 16) -> dict[str, Variant]:
    """Flow matching and mean flow as `config` has it; against "public": the public code's way first, ours in both precisions, and with
    checkpoints; against "objectives": flow matching first, then every kind, those of mean velocities without guidance and with it.

    Mean flow is at its dearest: guidance fully on, the interval fraction at its schedule's end.
    """
    if against == "objectives":
        return objective_variants(config, tokens)
    mean = config.objective.model_copy(update={"kind": "mean_flow", "guidance": constant(1.0)})
    flow = mean.model_copy(update={"kind": "flow_matching"})
    if against is None:
        here = config.loop.precision
        again = config.loop.checkpoint_activations
        return {f"{name}, {here}": Variant(Objective(o).loss, here, again) for name, o in (("flow matching", flow), ("mean flow", mean))}
    found = {PUBLIC: Variant(partial(public_mean_flow, config=mean), "float32")}
    for precision in ("float32", "bf16"):
        found[f"flow matching, {precision}"] = Variant(Objective(flow).loss, precision)
        found[f"mean flow, {precision}"] = Variant(Objective(mean).loss, precision)
    found["mean flow, bf16, activations computed twice"] = Variant(Objective(mean).loss, "bf16", checkpoint_activations=True)
    return found


def objective_variants(config: TrainConfig, tokens: int) -> dict[str, Variant]:
    """Every objective on the config's network, without inputs for guidance; a distillation's teacher is like its student.

    alpha is halfway, where AlphaFlow needs no derivative. Progressive distillation is measured in a round after the first; of a reward the
    judge's own work is left out, and so is encoding what is rehearsed.
    """
    here, again = config.loop.precision, config.loop.checkpoint_activations
    teacher = make_network(config.network).requires_grad_(False)
    judge, found = NoJudge(config.network, tokens), {}
    for kind in OBJECTIVES:
        for guidance in (0.0,) if kind in INSTANT | WITH_CRITIC | ONE_STEP | {"progressive_distillation"} else (0.0, 1.0):
            changes = {"kind": kind, "guidance": constant(guidance), "alpha": constant(0.5), "halving": HalvingConfig(steps=8, first=16)}
            critic = make_network(config.network) if kind in WITH_CRITIC else None
            objective = Objective(config.objective.model_copy(update=changes), teacher, critic, teacher, judge, judge.recall)
            loss = partial(_at_scale, objective, 4.0) if kind == "guidance_distillation" else loss_of(objective)
            name = kind.replace("_", " ") + (", guided" if guidance else "")
            found[name] = Variant(loss, here, again, objective)
    return found


class NoJudge:
    """In place of a reward's judge, and of what is rehearsed: captions of `tokens` tokens, and an opinion that is next to no work, through
    which gradients flow."""

    def __init__(self, config: NetworkConfig, tokens: int) -> None:
        self.config, self.tokens = config, tokens

    def recall(self, seeds: torch.Tensor) -> TextFeatures:
        shape = len(seeds), self.tokens
        sequence = torch.zeros(*shape, self.config.sequence_dim, device=seeds.device)
        mask = torch.ones(shape, dtype=torch.bool, device=seeds.device)
        return TextFeatures(sequence, torch.zeros(shape[0], self.config.pooled_dim, device=seeds.device), mask)

    def ask(self, seeds: torch.Tensor) -> tuple[TextFeatures, Asked]:
        asked = Asked(seeds.new_zeros(len(seeds), 1), torch.zeros(len(seeds), dtype=torch.bool, device=seeds.device))
        return self.recall(seeds), asked

    def __call__(self, latents: torch.Tensor, asked: Asked, seeds: torch.Tensor) -> torch.Tensor:
        return latents.square().flatten(1).mean(1)


def loss_of(objective: Objective) -> Callable[..., Loss]:
    """The objective's loss, before which a critic makes its passes of the step. What its AdamW takes, time and memory, is left out."""
    return objective.loss if objective.critic is None else partial(_after_critic, objective)


def _after_critic(
    objective: Objective, net: Network, x: torch.Tensor, text: TextFeatures, null: TextFeatures, draws: MatchingDraws, *, progress: float
) -> Loss:
    assert objective.critic is not None
    made, config = outputs(net, text, draws), objective.config
    for number in range(config.matching.critic_steps):
        followed = flow_matching(objective.critic, made, text, null, laid_on(draws, number), progress=progress, config=config)
        followed.per_sample.mean().backward()
    return objective.loss(net, x, text, null, draws, progress=progress)


def _at_scale(
    objective: Objective, scale: float, net: Network, x: torch.Tensor, text: TextFeatures, null: TextFeatures, draws: TwoTimeDraws, *,
    progress: float,
) -> Loss:  # fmt: skip
    """The objective's loss with one scale for all rows: it reaches the teacher, though the network here takes none."""
    guidance = draws.guidance.new_tensor([scale, 0.0, 1.0]).expand(len(draws), 3)
    return objective.loss(net, x, text, null, replace(draws, guidance=guidance), progress=progress)


class Bench:
    """A network, its optimiser and random latents; `step` makes one training step in a variant's way."""

    def __init__(self, config: TrainConfig, tokens: int) -> None:
        loop, n = config.loop, config.network
        keep_freed_memory()  # as training does
        self.network = make_network(n)
        self.objective = Objective(config.objective.model_copy(update={"kind": "mean_flow"}))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-6, fused=True)
        self.generator = torch.Generator().manual_seed(0)
        length = config.codec.audio_spec().window_latents(config.seconds)
        self.x = torch.randn(loop.batch_size, length, n.latent_dim, generator=self.generator)

        def features(rows: int) -> TextFeatures:
            sequence = torch.randn(rows, tokens, n.sequence_dim, generator=self.generator)
            pooled = torch.randn(rows, n.pooled_dim, generator=self.generator)
            return TextFeatures(sequence, pooled, torch.ones(rows, tokens, dtype=torch.bool))

        self.text, self.null = features(loop.batch_size), features(1)

    def step(self, variant: Variant, seed: int, progress: float = 1.0) -> float:
        """Forward, backward and AdamW, with the draws of `seed`; seconds, without those for which other work had the core."""
        draws = (variant.objective or self.objective).draw(self.x.shape, progress=progress, generator=torch.Generator().manual_seed(seed))
        self.network.checkpoint_activations = variant.checkpoint_activations
        start, waited = time.perf_counter(), seconds_waited() or 0.0
        with computing_in(DTYPES[variant.precision], self.x.device):
            loss = variant.loss(self.network, self.x, self.text, self.null, draws, progress=progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.per_sample.mean().backward()
        self.optimizer.step()
        return time.perf_counter() - start - ((seconds_waited() or 0.0) - waited)


@dataclass(frozen=True)
class Cost:
    """seconds of every timed step; peak_memory in bytes, of a process that makes such steps and nothing else."""

    seconds: list[float]
    peak_memory: int


@dataclass(frozen=True)
class TrainingCost:
    """Costs by variant; the first is what the others are compared with."""

    title: str
    costs: dict[str, Cost]

    def speed_up(self, name: str) -> float:
        """Median over the rounds of the first variant's seconds over this one's: what slows a round down falls on both."""
        first = next(iter(self.costs.values())).seconds
        return statistics.median(a / b for a, b in zip(first, self.costs[name].seconds, strict=True))

    def memory_share(self, name: str) -> float:
        return self.costs[name].peak_memory / next(iter(self.costs.values())).peak_memory

    def to_text(self) -> str:
        width = max(map(len, self.costs)) + 2
        rows = [self.title, f"{'':<{width}}{'seconds':>9}{'ratio':>7}{'speed-up':>10}{'peak GB':>9}{'share':>7}"]
        for name, cost in self.costs.items():
            times = f"{statistics.median(cost.seconds):>9.3f}{1 / self.speed_up(name):>7.2f}{self.speed_up(name):>10.2f}"
            numbers = f"{times}{cost.peak_memory / 1e9:>9.2f}"
            rows.append(f"{name:<{width}}{numbers}{self.memory_share(name):>7.0%}")
        return "\n".join(rows)


def training_cost(config: TrainConfig, *, repeats: int = 8, tokens: int | None = None, against: str | None = None) -> TrainingCost:
    """Measure one training step (forward, backward, AdamW) of the config's network in several ways.

    They alternate, so that whatever else the machine does falls on all of them, with the same draws. Memory comes from a process of its
    own for each. tokens: length of the captions; if left out, 16, or the encoder's longest for a network that attends to padding.
    """
    if tokens is None:
        tokens = 16 if config.network.mask_text else config.text.max_tokens
    ways = variants(config, against, tokens)
    memory = {name: peak_memory(_bench_of, config, tokens, name, against) for name in ways}
    bench = Bench(config, tokens)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    warm_up = 1
    for round_ in range(warm_up + repeats):
        for name, variant in ways.items():
            taken = bench.step(variant, round_)
            if round_ >= warm_up:
                seconds[name].append(taken)
    parameters = sum(p.numel() for p in bench.network.parameters())
    title = (
        f"training step of {parameters / 1e6:.2f} M parameters, batch {config.loop.batch_size}, {bench.x.shape[1]} latents, {tokens} text "
        f"tokens, {torch.get_num_threads()} threads; {repeats} rounds after warm-up"
    )
    return TrainingCost(title, {name: Cost(seconds[name], memory[name]) for name in ways})


def _bench_of(config: TrainConfig, tokens: int, name: str, against: str | None) -> tuple[Bench, Variant]:
    return Bench(config, tokens), variants(config, against, tokens)[name]


def peak_memory(make: Callable[..., tuple[Bench, Variant]], *args: object) -> int:
    """Bytes resident at most while a fresh process makes two steps of what make(*args) returns; the first makes the optimiser's state."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_peak_memory, make, args, torch.get_num_threads()).result()


def _peak_memory(make: Callable[..., tuple[Bench, Variant]], args: tuple[object, ...], threads: int) -> int:
    torch.set_num_threads(threads)
    bench, variant = make(*args)
    for seed in range(2):
        bench.step(variant, seed)
    return Memory(bench.x.device).peak_host() or 0
