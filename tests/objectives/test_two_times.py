"""Objectives beside mean_flow: exact targets on known flows, limits that meet, guidance as an input, and counted evaluations."""

from functools import partial
from pathlib import Path

import pytest
import torch
from fakes import LATENT_DIM, normals
from test_objectives import LENGTH, NULL, TEXT, Analytic, Counting, answer, draws, gaussian_flow, network

from meanaudio.config import ObjectiveConfig, ScaleConfig, ScheduleConfig, TimeConfig, TrainConfig, constant, load_config
from meanaudio.flow import expand, interpolate, velocity
from meanaudio.objectives import Objective
from meanaudio.objectives.alpha_flow import alpha_target
from meanaudio.objectives.finite_difference import difference_target
from meanaudio.objectives.improved_mean_flow import boundary_target
from meanaudio.objectives.interval_splitting import split_target
from meanaudio.objectives.mean_flow import mean_flow_at
from meanaudio.objectives.two_times import AtScale, Interval, TwoTimeDraws, acting, draw_two_times, guided_rows
from meanaudio.types import TextFeatures

KINDS = ["improved_mean_flow", "alpha_flow", "interval_splitting", "finite_difference"]
PLAIN = {"text_dropout": 0.0, "guidance": constant(0.0), "adaptive_power": 0.0}
DOUBLE = TextFeatures(TEXT.sequence.double(), TEXT.pooled.double(), TEXT.mask)


def config_of(kind: str, **changes) -> ObjectiveConfig:
    return ObjectiveConfig(kind=kind, **{**PLAIN, **changes})


def drawn(x, *, seed: int = 0, progress: float = 0.5, config: ObjectiveConfig) -> TwoTimeDraws:
    return draw_two_times(x.shape, progress=progress, generator=torch.Generator().manual_seed(seed), config=config)


def fixed(guidance: torch.Tensor | None = None, keep: torch.Tensor | None = None) -> tuple[torch.Tensor, TwoTimeDraws]:
    """x and draws with a third of the rows at r = t."""
    x, noise, t, r = draws()
    guidance = torch.tensor([1.0, 0.0, 1.0]).repeat(4, 1) if guidance is None else guidance
    keep = torch.ones(4, dtype=torch.bool) if keep is None else keep
    return x, TwoTimeDraws(noise, t, r, keep, guidance, torch.full((4,), 0.3))


def rows_of(net, z, v, t, r, *, own=None, text=DOUBLE, split=0.37) -> Interval:
    return Interval(net, text, z, v, v if own is None else own, t, r, torch.full_like(t, split))


def random_rows(split: float = 0.37) -> Interval:
    """Rows of a real network in double precision, along an arbitrary direction that is also the network's own velocity."""
    net = network(interval="absolute").double().requires_grad_(False)
    z, _, t, _ = (a.double() for a in draws())
    own = net(z, t, t, net.condition(DOUBLE))
    return rows_of(net, z, own, t, t * 0.4, own=own, split=split)


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("kind", KINDS)
def test_without_intervals_every_objective_is_flow_matching(kind):
    net, x = network(), draws()[0]
    config = config_of(kind, interval_fraction=constant(0.0))
    flow = Objective(ObjectiveConfig(kind="flow_matching"))
    for seed in range(3):
        draws_ = drawn(x, seed=seed, config=config)
        found = Objective(config).loss(net, x, TEXT, NULL, draws_, progress=0.5)
        expected = flow.loss(net, x, TEXT, NULL, draws_, progress=0.5)
        torch.testing.assert_close(found.per_sample, expected.per_sample)
        assert "error_interval" not in found.logs


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_mean_velocity_of_a_point_mass_has_no_error(kind):
    """The path to one point is straight, so the conditional velocity is the marginal one, and every alpha is exact."""
    point = normals(1, LENGTH, LATENT_DIM, seed=5)
    exact = Analytic(lambda z, t, r: (z - point) / expand(t, z))
    wrong = Analytic(lambda z, t, r: (z - point) / expand(r.clamp_min(0.1), z))
    x, config = point.expand(4, -1, -1), config_of(kind, interval_fraction=constant(1.0))
    for seed in range(3):
        draws_ = drawn(x, seed=seed, config=config)
        tolerance = 1e-5 if kind == "finite_difference" else 1e-8
        assert Objective(config).loss(exact, x, TEXT, NULL, draws_, progress=0.5).per_sample.max() < tolerance
        assert Objective(config).loss(wrong, x, TEXT, NULL, draws_, progress=0.5).per_sample.max() > 1e-3


TARGETS = {
    "improved_mean_flow": (boundary_target, 1e-9),
    "alpha_flow": (partial(alpha_target, alpha=0.0), 1e-9),
    "interval_splitting": (split_target, 1e-9),
    "finite_difference": (partial(difference_target, step=1e-3), 1e-5),
}


def test_splitting_sees_no_error_in_velocities_that_add_up_though_they_are_wrong():
    """Its interval rows cannot hold a network to the data; with adaptive weights they would drown those that do."""
    wrong = Analytic(lambda z, t, r: torch.full_like(z, 7.0))
    x = normals(4, LENGTH, LATENT_DIM)
    config = config_of("interval_splitting", interval_fraction=constant(0.5))
    logs = Objective(config).loss(wrong, x, TEXT, NULL, drawn(x, config=config), progress=0.5).logs
    assert logs["error_interval"] < 1e-10
    assert logs["error_instant"] > 10
    published = Path(__file__).parent.parent.parent / "configs" / "generator_splitting.yaml"
    assert load_config(TrainConfig, published).objective.adaptive_power == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_the_target_is_the_mean_velocity_of_a_gaussian(kind, scale):
    """A curved flow with a known solution. Splitting is exact wherever the interval is split."""
    v, u = gaussian_flow(scale)
    z, _, t, _ = (a.double() for a in draws())
    r, (target, tolerance) = t * 0.4, TARGETS[kind]
    for split in (0.01, 0.37, 0.9):
        found = target(rows_of(Analytic(u), z, v(z, t), t, r, split=split))
        torch.testing.assert_close(found, u(z, t, r), atol=tolerance, rtol=tolerance)


def test_the_target_of_alpha_is_off_by_a_euler_step_which_is_of_second_order():
    v, u = gaussian_flow(0.3)
    z, _, t, _ = (a.double() for a in draws())
    rows = rows_of(Analytic(u), z, v(z, t), t, t * 0.4)
    errors = [(alpha_target(rows, a) - u(z, t, t * 0.4)).norm().item() for a in (0.04, 0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    assert errors[2] > 1e-6


# ---------------------------------------------------------------- limits


def jvp_target(rows: Interval):
    return alpha_target(rows, 0.0)


def test_finite_differences_meet_the_derivative_at_second_order():
    rows = random_rows()
    errors = [(difference_target(rows, e) - jvp_target(rows)).norm().item() for e in (4e-4, 2e-4, 1e-4)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_finite_differences_stay_within_the_interval_and_the_path():
    seen = []
    net = Analytic(lambda z, t, r: seen.append((t, r)) or z * expand(t * t, z))
    z, t, r = normals(3, 2, 2).double(), torch.tensor([1.0, 0.999, 0.5]).double(), torch.tensor([0.0, 0.998, 0.0]).double()
    rows = Interval(net, TEXT[:3], z, torch.zeros_like(z), z, t, r, t)
    found = difference_target(rows, 0.005)
    assert all((s <= 1).all() and (s >= end).all() for s, end in seen)
    torch.testing.assert_close(found, -expand((t - r) * 2 * t, z) * z, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("target", [lambda rows, a: alpha_target(rows, a), lambda rows, a: split_target(rows)], ids=["alpha", "split"])
def test_one_small_part_of_the_interval_is_the_derivative(target):
    """(u - target) / a meets u - (v - (t - r) du/dt) as the part a that is not the network's own word shrinks, at first order."""
    errors = []
    for a in (0.02, 0.01, 0.005):
        rows = random_rows(split=a)
        own = rows.u(rows.z, rows.t, rows.r)
        wanted = own - jvp_target(rows)
        errors.append(((own - target(rows, a)) / a - wanted).norm().item())
    assert wanted.norm() > 10 * errors[-1]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("alpha", [1e-3, 0.0])
def test_the_gradient_of_alpha_flow_meets_that_of_mean_flow(power, alpha):
    net = network().double()
    null = TextFeatures(NULL.sequence.double(), NULL.pooled.double(), NULL.mask)
    x, base = fixed()
    x, base = x.double(), TwoTimeDraws(*(a.double() if a.is_floating_point() else a for a in vars(base).values()))
    config = config_of("alpha_flow", adaptive_power=power, alpha=constant(alpha))
    gradients = []
    for run in (
        lambda: Objective(config).loss(net, x, DOUBLE, null, base, progress=0.5),
        lambda: mean_flow_at(net, x, base.noise, base.t, base.r, base.keep, DOUBLE, null, guidance=0.0, config=config),
    ):
        net.zero_grad()
        run().per_sample.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    found, expected = gradients
    assert (found - expected).norm() < (1e-2 if alpha else 1e-6) * expected.norm()


def test_alpha_one_is_flow_matching_along_the_trajectory():
    net = Counting(network())
    x, base = fixed()
    loss = Objective(config_of("alpha_flow", alpha=constant(1.0))).loss(net, x, TEXT, NULL, base, progress=0.0)
    u = net.network(interpolate(x, base.noise, base.t), base.t, base.r, net.condition(TEXT))
    torch.testing.assert_close(loss.per_sample, (u - velocity(x, base.noise)).square().flatten(1).mean(1))
    assert net.batches == [(4, True)]


def test_the_improved_tangent_is_the_networks_own_velocity():
    """Where the drawn velocity and the network's differ, mean_flow follows the one and improved_mean_flow the other."""
    rows = random_rows()
    other = normals(*rows.z.shape, seed=9).double()
    rows = rows_of(rows.net, rows.z, other, rows.t, rows.r, own=rows.own)
    expected = other - (rows.own - jvp_target(rows_of(rows.net, rows.z, rows.own, rows.t, rows.r)))
    torch.testing.assert_close(boundary_target(rows), expected)
    assert (boundary_target(rows) - jvp_target(rows)).abs().max() > 1e-3


def test_every_objective_meets_mean_flow_where_the_velocity_is_the_networks_own():
    """One number for all: with v = u(z, t, t) the four targets agree on a real network, up to their own step."""
    rows = random_rows(split=1e-3)
    own, expected = rows.u(rows.z, rows.t, rows.r), jvp_target(rows)
    for found in (
        boundary_target(rows),
        difference_target(rows, 1e-3),
        own - (own - alpha_target(rows, 1e-3)) / 1e-3,
        own - (own - split_target(rows)) / 1e-3,
    ):
        assert (found - expected).norm() < 5e-3 * expected.norm()


# ---------------------------------------------------------------- guidance as an input


class Guided(Analytic):
    """u(z, t, t | text, w) = null + w (text - null), constant in z and t; outside its limits w is 1. Deaf to r."""

    def __init__(self) -> None:
        super().__init__(None)

    def __call__(self, z, t, r, condition, scale=None):
        self.calls.append(len(z))
        scale = torch.ones_like(t) if scale is None else acting(scale, t)[:, 0] if scale.ndim == 2 else scale
        null = answer(NULL)
        return (null + expand(scale, z) * (answer(condition) - null)).expand_as(z)


@pytest.mark.parametrize("limits", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0, 5.5, 8.0])
def test_the_guided_velocity_settles_at_the_guided_field_for_every_scale(scale, limits):
    """With the text's own velocity drawn, v_g of the network that already knows the answer is that answer."""
    config = config_of("improved_mean_flow", scale=ScaleConfig(limits=limits), guidance=constant(1.0))
    guidance = torch.tensor([[scale, 0.0, 1.0], [scale, 0.6, 1.0], [scale, 0.0, 0.4], [scale, 0.3, 0.7]])
    guidance = guidance if limits else guidance[:1].repeat(4, 1)
    z, t, keep = normals(4, LENGTH, LATENT_DIM), torch.full((4,), 0.5), torch.tensor([True, True, True, False])
    net, v = Guided(), answer(TEXT).expand(4, LENGTH, -1)
    none = torch.zeros(4, dtype=torch.bool)
    kept = TEXT.where(keep, NULL)
    v_g, own = guided_rows(net, z, t, v, v, kept, NULL, rows=keep, known=none, own=none, guidance=guidance, config=config)
    expected = AtScale(net, acting(guidance, t))(z, t, t, TEXT)
    torch.testing.assert_close(v_g, torch.where(keep[:, None, None], expected, v))
    if limits and scale > 1:
        assert (v_g[0] - v[0]).abs().max() > 0.1
        assert torch.equal(v_g[1], v[1])  # 0.5 lies outside its limits
        assert torch.equal(v_g[2], v[2])
        torch.testing.assert_close(v_g[3], v[3])  # a dropped row


def test_scale_one_is_no_guidance_and_costs_no_evaluation():
    x, base = fixed()
    config = config_of("alpha_flow", scale=ScaleConfig(), guidance=constant(1.0), alpha=constant(1.0))

    class Scaled(Counting):
        def __call__(self, z, t, r, condition, scale):
            self.batches.append((len(z), torch.is_grad_enabled()))
            return self.network(z, t, r, condition, scale)

    net = Scaled(network(guidance_embedding=True))
    found = Objective(config).loss(net, x, TEXT, NULL, base, progress=0.5)
    unguided = Objective(config.model_copy(update={"guidance": constant(0.0)})).loss(net, x, TEXT, NULL, base, progress=0.5)
    assert torch.equal(found.per_sample, unguided.per_sample)
    assert net.batches == [(4, True), (4, True)]


@pytest.mark.parametrize("config", [ScaleConfig(low=2.0, high=8.0, shown=4.0), ScaleConfig(low=1.0, high=5.0, draw="uniform")])
def test_scales_are_drawn_in_their_range_as_named(config):
    objective = config_of("improved_mean_flow", scale=config)
    scale = drawn(torch.zeros(20_000, 1, 1), config=objective).guidance[:, 0]
    assert config.low <= scale.min() < scale.max() <= config.high
    middle = (config.low * config.high) ** 0.5 if config.draw == "log_uniform" else (config.low + config.high) / 2
    assert scale.median().item() == pytest.approx(middle, rel=0.03)


def test_limits_are_drawn_about_the_middle_and_never_at_r_equal_t():
    config = config_of("improved_mean_flow", scale=ScaleConfig(limits=True), interval_fraction=constant(0.5))
    draws_ = drawn(torch.zeros(5000, 1, 1), config=config)
    low, high = draws_.guidance[:, 1:].unbind(1)
    instant = draws_.r == draws_.t
    assert (low[instant] == 0).all()
    assert (high[instant] == 1).all()
    assert ((low >= 0) & (low <= 0.5) & (high >= 0.5) & (high <= 1)).all()
    assert low[~instant].std() > 0.1


def test_schedules_reach_the_draws_and_the_target():
    ramp = ScheduleConfig(start=0.0, stop=1.0)
    config = config_of("alpha_flow", time=TimeConfig(endpoint_fraction=ramp), interval_fraction=ramp)
    x = torch.zeros(100, 1, 1)
    for progress, share in ((0.0, 0), (0.5, 50), (1.0, 100)):
        found = drawn(x, progress=progress, config=config)
        assert (found.r < found.t).sum() == share
        ends = (found.t == 1) & (found.r == 0)
        assert abs(int(ends.sum()) - share * progress) < 12
    x, base = fixed()
    config = config_of("alpha_flow", alpha=ScheduleConfig(start=1.0, stop=0.0, shape="sigmoid"))
    alphas = [Objective(config).loss(network(), x, TEXT, NULL, base, progress=p).logs["alpha"] for p in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert alphas == [1, 1, 0.5, 0, 0]


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize(
    ("kind", "alone", "guided"),
    [
        # Three rows with r < t of four. Guided: own and null evaluations of the kept rows as one batch; row 2 knows its own already,
        # row 1 has lost its text.
        ("improved_mean_flow", [(4, True), (3, False), (3, False)], [(4, True), (6, False), (3, False)]),
        ("alpha_flow", [(4, True), (3, False)], [(4, True), (5, False), (3, False)]),
        ("interval_splitting", [(4, True), (3, False), (3, False)], [(4, True), (1, False), (3, False), (3, False)]),
        ("finite_difference", [(4, True), (3, False), (3, False)], [(4, True), (5, False), (3, False), (3, False)]),
    ],
)
def test_evaluations_are_counted(kind, alone, guided):
    net = Counting(network())
    x, base = fixed(keep=torch.tensor([True, False, True, True]))
    for guidance, expected in ((0.0, alone), (1.0, guided)):
        net.batches.clear()
        config = config_of(kind, guidance=constant(guidance), alpha=constant(0.5))
        Objective(config).loss(net, x, TEXT, NULL, base, progress=0.5)
        assert net.batches == expected
