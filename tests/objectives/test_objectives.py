"""Objectives on flows with a known solution, and the accounting of their network calls."""

import copy
from typing import get_args

import pytest
import torch
from fakes import LATENT_DIM, fill, normals, random_text, tiny_network
from torch import Tensor

from meanaudio.config import (
    INSTANT,
    HalvingConfig,
    MatchingConfig,
    ObjectiveConfig,
    ObjectiveKind,
    ScaleConfig,
    ScheduleConfig,
    TimeConfig,
    constant,
)
from meanaudio.flow import expand, interpolate, velocity
from meanaudio.models.transformer import make_network
from meanaudio.objectives import OBJECTIVES, Objective
from meanaudio.objectives.mean_flow import mean_flow_at, total_derivative
from meanaudio.types import Asked, TextFeatures

LENGTH = 6
TEXT, NULL = random_text([3, 5, 2, 4]), random_text([1], seed=9)
PLAIN = ObjectiveConfig(text_dropout=0.0, interval_fraction=constant(1.0), guidance=constant(0.0), adaptive_power=0.0)


class Analytic:
    """A network made of a function u(z, t, r), deaf to text. `calls` holds the batch size and (t == r) of every evaluation."""

    def __init__(self, u) -> None:
        self.u, self.calls = u, []

    def condition(self, text: TextFeatures) -> TextFeatures:
        return text

    def __call__(self, z: Tensor, t: Tensor, r: Tensor, condition: TextFeatures) -> Tensor:
        assert len(z) == len(t) == len(r) == len(condition)
        self.calls.append(len(z))
        return self.u(z, t, r)


class Counting:
    """A real network that notes batch size and mode of every evaluation."""

    def __init__(self, network) -> None:
        self.network, self.batches = network, []

    def condition(self, text):
        return self.network.condition(text)

    def __call__(self, z, t, r, condition):
        self.batches.append((len(z), torch.is_grad_enabled()))
        return self.network(z, t, r, condition)


def network(**changes):
    return fill(make_network(tiny_network(**changes)), std=0.15)


def draws(batch: int = 4, seed: int = 0):
    """x, noise, t, r with a third of the rows at r = t."""
    x, noise = normals(batch, LENGTH, LATENT_DIM, seed=seed), normals(batch, LENGTH, LATENT_DIM, seed=seed + 1)
    t = torch.linspace(0.95, 0.5, batch)
    r = torch.where(torch.arange(batch) % 3 == 2, t, t * 0.3)
    return x, noise, t, r


def run(objective, net, x, *, seed=0, progress=0.5):
    return objective(net, x, TEXT, NULL, progress=progress, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- exactness


def test_without_intervals_and_guidance_mean_flow_is_flow_matching():
    net, x = network(), draws()[0]
    settings = {"interval_fraction": constant(0.0), "guidance": constant(0.0), "adaptive_power": 0.0, "text_dropout": 0.3}
    mean, flow = (Objective(ObjectiveConfig(kind=kind, **settings)) for kind in ("mean_flow", "flow_matching"))
    for seed in range(3):
        a, b = run(mean, net, x, seed=seed), run(flow, net, x, seed=seed)
        assert torch.equal(a.t, b.t)
        torch.testing.assert_close(a.per_sample, b.per_sample)
        assert a.logs["error"] == pytest.approx(b.logs["error"])
        assert "error_interval" not in a.logs


def test_the_exact_mean_velocity_of_a_point_mass_has_no_error():
    point = normals(1, LENGTH, LATENT_DIM, seed=5)
    exact = Analytic(lambda z, t, r: (z - point) / expand(t, z))
    wrong = Analytic(lambda z, t, r: (z - point) / expand(r.clamp_min(0.1), z))
    for seed in range(3):
        assert run(Objective(PLAIN), exact, point.expand(4, -1, -1), seed=seed).per_sample.max() < 1e-8
        assert run(Objective(PLAIN), wrong, point.expand(4, -1, -1), seed=seed).per_sample.min() > 1e-3


def gaussian_flow(scale: float):
    """Marginal velocity v(z, t) and mean velocity u(z, t, r) where the data are N(0, scale^2): z_t = sigma(t) / sigma(s) z_s."""

    def sigma(t):
        return ((1 - t) ** 2 * scale**2 + t**2).sqrt()

    def v(z, t):
        return z * expand((t - (1 - t) * scale**2) / sigma(t) ** 2, z)

    def u(z, t, r):
        return z * expand((sigma(t) - sigma(r)) / ((t - r) * sigma(t)), z)

    return v, u


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_the_mean_velocity_of_a_gaussian_obeys_the_identity(scale):
    v, u = gaussian_flow(scale)
    z, _, t, _ = (x.double() for x in draws())
    r = t * 0.4
    derivative = total_derivative(Analytic(u), z, t, r, v(z, t), TEXT)
    assert derivative.abs().max() > 1e-3
    torch.testing.assert_close(u(z, t, r), v(z, t) - expand(t - r, z) * derivative)


def test_the_derivative_equals_finite_differences():
    net = network(interval="absolute").double()
    text = TextFeatures(TEXT.sequence.double(), TEXT.pooled.double(), TEXT.mask)
    z, v, t, r = (x.double() for x in draws())
    condition, step = net.condition(text), 1e-5
    with torch.no_grad():
        ahead, behind = (net(z + s * v, t + s, r, condition) for s in (step, -step))
        expected = (ahead - behind) / (2 * step)
        at_r = (net(z, t, r + step, condition) - net(z, t, r - step, condition)) / (2 * step)
    found = total_derivative(net, z, t, r, v, text)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert at_r.abs().max() > 1e-3  # r has its own derivative, which must not enter


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("amp", [False, True])
def test_the_derivative_is_float32_and_without_a_graph_in_every_mode(mode, amp):
    """Under bf16 autocast only products of tangents are rounded."""
    net = network()
    z, v, t, r = draws()
    expected = total_derivative(net, z, t, r, v, TEXT)
    with mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        found = total_derivative(net, z, t, r, v, TEXT)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    if amp:
        assert 0 < (found - expected).norm() < 0.01 * expected.norm()
    else:
        assert torch.equal(found, expected)


def test_the_target_has_no_gradient():
    """Gradients equal those of a regression onto the same target, computed beforehand."""
    net = network()
    x, noise, t, r = draws()
    keep = torch.ones(4, dtype=torch.bool)
    mean_flow_at(net, x, noise, t, r, keep, TEXT, NULL, guidance=0.0, config=PLAIN).per_sample.mean().backward()
    found = [p.grad.clone() for p in net.parameters()]
    z, v = interpolate(x, noise, t), velocity(x, noise)
    target = v - expand(t - r, x) * total_derivative(net, z, t, r, v, TEXT)
    net.zero_grad()
    (net(z, t, r, net.condition(TEXT)) - target).square().mean().backward()
    for a, p in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, atol=3e-6, rtol=1e-4)


# ---------------------------------------------------------------- guidance and dropped rows


class Answers(Analytic):
    """A network that answers with its text: the first pooled features, at every time and place."""

    def __init__(self) -> None:
        super().__init__(None)

    def __call__(self, z, t, r, condition):
        return answer(condition).expand_as(z)


def answer(text: TextFeatures) -> Tensor:
    return text.pooled[:, None, :LATENT_DIM]


@pytest.mark.parametrize("dropped_rows", ["plain", "release"])
@pytest.mark.parametrize("guidance", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("instant", [True, False])
def test_the_target_mixes_velocity_text_and_null_as_documented(dropped_rows, guidance, instant):
    """The stand-in's derivative is zero, so the target is the guided velocity; it is linear in the schedule."""
    x, noise, t, r = draws()
    r = t if instant else r
    keep = torch.tensor([True, False, True, False])
    config = PLAIN.model_copy(update={"dropped_rows": dropped_rows, "omega": 0.4, "kappa": 0.8})
    found = mean_flow_at(Answers(), x, noise, t, r, keep, TEXT, NULL, guidance=guidance, config=config).per_sample

    v = velocity(x, noise)
    full = 0.4 * v + 0.8 * answer(TEXT) + (1 - 0.4 - 0.8) * answer(NULL)
    if dropped_rows == "plain":
        full = torch.where(keep[:, None, None], full, v)
    target = (1 - guidance) * v + guidance * full
    predicted = torch.where(keep[:, None, None], answer(TEXT), answer(NULL))
    torch.testing.assert_close(found, (predicted - target).square().flatten(1).mean(1))


def test_guidance_is_evaluated_at_the_rows_own_point_with_r_equal_t():
    seen = []

    def u(z, t, r):
        seen.append((z, t, r))
        return torch.zeros_like(z)

    x, noise, t, r = draws()
    mean_flow_at(Analytic(u), x, noise, t, r, torch.ones(4, dtype=torch.bool), TEXT, NULL, guidance=1.0, config=PLAIN)
    guiding = [call for call in seen if torch.equal(call[1], call[2])]
    assert len(guiding) == 1
    z = interpolate(x, noise, t)
    for row, time in zip(guiding[0][0], guiding[0][1], strict=True):
        match = int((t == time).nonzero())
        assert torch.equal(row, z[match])


# ---------------------------------------------------------------- cost


def test_derivatives_are_computed_for_interval_rows_only_and_guidance_in_one_pass():
    x, noise, t, r = draws(4)
    keep = torch.tensor([True, False, True, True])
    net = Counting(network())
    mean_flow_at(net, x, noise, t, r, keep, TEXT, NULL, guidance=1.0, config=PLAIN)
    # All rows with a graph; guidance: 3 kept rows without text, and with text but for row 2, where r = t and it is known;
    # derivative: the 3 rows with r < t.
    assert net.batches == [(4, True), (5, False), (3, False)]
    net.batches.clear()
    mean_flow_at(net, x, noise, t, t, keep, TEXT, NULL, guidance=0.0, config=PLAIN)
    assert net.batches == [(4, True)]
    net.batches.clear()
    mean_flow_at(net, x, noise, t, t, torch.zeros_like(keep), TEXT, NULL, guidance=1.0, config=PLAIN)
    assert net.batches == [(4, True)]


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("kind", ["flow_matching", "mean_flow"])
def test_activations_computed_twice_give_the_same_gradients_from_a_fraction_of_the_memory(kind, amp):
    found = {}
    for checkpointed in (False, True):
        net = network(single_depth=6)
        net.checkpoint_activations = checkpointed
        kept: dict[int, int] = {}

        def keep(x, kept=kept):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autocast("cpu", torch.bfloat16, enabled=amp), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = run(Objective(ObjectiveConfig(kind=kind, interval_fraction=constant(0.5))), net, normals(4, 60, LATENT_DIM))
        weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
        activations = sum(size for place, size in kept.items() if place not in weights)
        loss.per_sample.mean().backward()
        found[checkpointed] = (loss.per_sample, [p.grad for p in net.parameters()], activations)
    assert torch.equal(found[True][0], found[False][0])
    assert all(torch.equal(a, b) for a, b in zip(found[True][1], found[False][1], strict=True))
    assert found[True][2] < 0.3 * found[False][2]


# ---------------------------------------------------------------- every objective

HALF, SCALED = constant(0.5), {"scale": ScaleConfig(limits=True)}
CONFIGS = {
    "flow_matching": ObjectiveConfig(kind="flow_matching"),
    "mean_flow": ObjectiveConfig(interval_fraction=HALF, time=TimeConfig(endpoint_fraction=constant(0.3))),
    "release": ObjectiveConfig(interval_fraction=HALF, dropped_rows="release", text_dropout=0.5),
    "improved_mean_flow": ObjectiveConfig(kind="improved_mean_flow", interval_fraction=HALF),
    "improved_mean_flow with scales": ObjectiveConfig(kind="improved_mean_flow", interval_fraction=HALF, **SCALED),
    "alpha_flow": ObjectiveConfig(kind="alpha_flow", interval_fraction=HALF),
    "alpha_flow with scales": ObjectiveConfig(kind="alpha_flow", interval_fraction=HALF, **SCALED),
    "interval_splitting": ObjectiveConfig(kind="interval_splitting", interval_fraction=HALF),
    "finite_difference": ObjectiveConfig(kind="finite_difference", interval_fraction=HALF),
    "guidance_distillation": ObjectiveConfig(kind="guidance_distillation", teacher="given", scale=ScaleConfig()),
    "mean_flow_distillation": ObjectiveConfig(kind="mean_flow_distillation", teacher="given", interval_fraction=HALF),
    "progressive_distillation": ObjectiveConfig(kind="progressive_distillation", teacher="given"),
    "later progressive_distillation": ObjectiveConfig(
        kind="progressive_distillation", teacher="given", halving=HalvingConfig(steps=2, first=16), scale=ScaleConfig()
    ),
    "distribution_matching": ObjectiveConfig(kind="distribution_matching", teacher="given", matching=MatchingConfig(rehearsal=0.25)),
    "reward": ObjectiveConfig(kind="reward", judge="given"),
    "implicit_maximum_likelihood": ObjectiveConfig(kind="implicit_maximum_likelihood", noises=3),
    "regression": ObjectiveConfig(kind="implicit_maximum_likelihood", noises=1),
    "rehearsal": ObjectiveConfig(kind="implicit_maximum_likelihood", noises=2, rehearsal=0.5),
}


class Wants:
    """A judge who asks for captions of the tests' batch, and wants ones."""

    def ask(self, seeds):
        return TEXT[seeds[:, 0] % len(TEXT)], Asked(torch.zeros(len(seeds), 1, dtype=torch.long), torch.zeros(len(seeds), dtype=torch.bool))

    def __call__(self, latents, asked, seeds):
        return (latents - 1).square().flatten(1).mean(1)


def network_for(name: str):
    scale = CONFIGS[name].scale
    interval = "none" if CONFIGS[name].kind in INSTANT else "relative"
    return network(interval=interval, guidance_embedding=scale is not None, guidance_limits=scale is not None and scale.limits)


def objective_for(name: str) -> Objective:
    """The objective, with a teacher of the kind it takes, and a critic and an earlier student where it has them."""
    config, teacher = CONFIGS[name], None
    if config.kind == "distribution_matching":
        others = network(interval="none"), network(interval="none", width=48), network(interval="relative", width=48)
        return Objective(config, *(other.requires_grad_(False) for other in others))
    if config.looks_back:
        before = network(interval="relative", width=48).requires_grad_(False)
        return Objective(config, before=before, judge=Wants(), recall=lambda seeds: TEXT[seeds % len(TEXT)])
    if config.kind in ("guidance_distillation", "mean_flow_distillation"):
        teacher = network(interval="none")
    elif config.kind == "progressive_distillation":
        teacher = network(interval="relative", guidance_embedding=config.scale is not None)
    return Objective(config, None if teacher is None else teacher.requires_grad_(False))


def test_every_objective_of_the_table_is_tried_here():
    assert {config.kind for config in CONFIGS.values()} == set(OBJECTIVES) == set(get_args(ObjectiveKind))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("amp", [False, True])
def test_every_parameter_gets_a_gradient(name, amp):
    net = network_for(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        loss = run(objective_for(name), net, draws()[0])
    assert loss.per_sample.shape == loss.t.shape == (4,)
    assert loss.per_sample.dtype == torch.float32
    loss.per_sample.mean().backward()
    idle = "joint_blocks.0.text.attention.q_norm"  # the last text stream asks nothing: nobody reads its output
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert (parameter.grad.abs().max() > 0) != key.startswith(idle), key


@pytest.mark.parametrize("name", CONFIGS)
def test_draws_come_from_the_generator_alone(name):
    net, x = network_for(name), draws()[0]
    objective = objective_for(name)
    first = run(objective, net, x, seed=3)
    torch.randn(7)
    again, other = run(objective, net, x, seed=3), run(objective, net, x, seed=4)
    assert torch.equal(first.per_sample, again.per_sample)
    assert first.logs == again.logs
    assert not torch.equal(first.per_sample, other.per_sample)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_may_be_split_once_it_is_drawn(name):
    """What several processes and accumulation rely on: a row's loss does not depend on the rows beside it."""
    net, x, objective = network_for(name), draws()[0], objective_for(name)
    drawn = objective.draw(x.shape, progress=0.7, generator=torch.Generator().manual_seed(2))
    whole = objective.loss(net, x, TEXT, NULL, drawn, progress=0.7).per_sample
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        part = objective.loss(net, x[rows], TEXT[rows], NULL, drawn[rows], progress=0.7).per_sample
        torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_inputs_are_not_changed(name):
    x = draws()[0]
    before = copy.deepcopy((x, TEXT, NULL))
    run(objective_for(name), network_for(name), x)
    for a, b in zip(before[1:], (TEXT, NULL), strict=True):
        assert all(torch.equal(p, q) for p, q in zip((a.sequence, a.pooled, a.mask), (b.sequence, b.pooled, b.mask), strict=True))
    assert torch.equal(before[0], x)


def test_schedules_move_one_run_from_instantaneous_to_mean():
    config = ObjectiveConfig(
        interval_fraction=ScheduleConfig(start=0.0, stop=1.0, begin=0.4, end=0.6),
        guidance=ScheduleConfig(start=0.0, stop=1.0, begin=0.6, end=0.8),
        text_dropout=0.0,
    )
    net, x = Counting(network()), draws()[0]
    calls = {}
    for progress in (0.0, 0.3, 0.61, 1.0):
        net.batches.clear()
        run(Objective(config), net, x, progress=progress)
        calls[progress] = [size for size, _ in net.batches]
    assert calls == {0.0: [4], 0.3: [4], 0.61: [4, 8, 4], 1.0: [4, 8, 4]}


def test_the_adaptive_weight_makes_every_row_count_alike():
    x, noise, t, r = draws()
    net, keep = network(), torch.ones(4, dtype=torch.bool)
    results = {}
    for power in (0.0, 0.5, 1.0):
        config = PLAIN.model_copy(update={"adaptive_power": power})
        results[power] = mean_flow_at(net, x, noise, t, r, keep, TEXT, NULL, guidance=0.0, config=config).per_sample.detach()
    error = results[0.0]
    for power in (0.5, 1.0):
        torch.testing.assert_close(results[power], error / (error + PLAIN.adaptive_epsilon) ** power)


def test_the_fixed_rows_of_a_batch_do_not_depend_on_their_neighbours():
    x, noise, t, r = draws()
    net, keep = network(), torch.tensor([True, False, True, True])
    config = CONFIGS["mean_flow"]
    together = mean_flow_at(net, x, noise, t, r, keep, TEXT, NULL, guidance=1.0, config=config).per_sample
    for i in range(4):
        row = slice(i, i + 1)
        alone = mean_flow_at(net, x[row], noise[row], t[row], r[row], keep[row], TEXT[row], NULL, guidance=1.0, config=config)
        torch.testing.assert_close(alone.per_sample, together[row], atol=1e-5, rtol=1e-4)
