"""Guided distillation: exact targets for every scale and every number of steps, and counted teacher passes."""

import math
from dataclasses import replace

import pytest
import torch
from fakes import LATENT_DIM, normals
from test_objectives import LENGTH, NULL, TEXT, Analytic, answer, draws, gaussian_flow

from meanaudio.config import HalvingConfig, ObjectiveConfig, ScaleConfig, constant
from meanaudio.flow import expand, interpolate
from meanaudio.objectives import Objective
from meanaudio.objectives.guidance_distillation import clean_weight
from meanaudio.objectives.progressive_distillation import draw_steps, teacher_steps
from meanaudio.objectives.two_times import TwoTimeDraws
from meanaudio.types import TextFeatures

STAGE_ONE = ObjectiveConfig(kind="guidance_distillation", teacher="given", scale=ScaleConfig(low=1.0, high=8.0), text_dropout=0.25)


def stage_two(steps: int, first: int = 16, **changes) -> ObjectiveConfig:
    halving = HalvingConfig(steps=steps, first=first, rehearsal=changes.pop("rehearsal", 0.0))
    return ObjectiveConfig(kind="progressive_distillation", teacher="given", halving=halving, text_dropout=0.0, **changes)


class Teacher(Analytic):
    """A velocity that depends on place, time and text: t z + text."""

    def __init__(self) -> None:
        super().__init__(None)

    def __call__(self, z, t, r, condition):
        assert torch.equal(t, r)
        self.calls.append(len(z))
        return expand(t, z) * z + answer(condition)


class Student(Analytic):
    """What stage one should find: null + w (text - null), offset by `error`."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__(None)
        self.error = error

    def __call__(self, z, t, r, condition, scale):
        null = expand(t, z) * z + answer(NULL)
        return null + expand(scale, z) * (expand(t, z) * z + answer(condition) - null) + self.error


# ---------------------------------------------------------------- stage one


@pytest.mark.parametrize("seed", range(3))
def test_a_student_that_has_the_guided_field_has_no_error_for_any_scale(seed):
    x, teacher = draws()[0], Teacher()
    objective = Objective(STAGE_ONE, teacher)
    drawn = objective.draw(x.shape, progress=0.0, generator=torch.Generator().manual_seed(seed))
    assert objective.loss(Student(), x, TEXT, NULL, drawn, progress=0.0).per_sample.max() < 1e-9
    off = objective.loss(Student(0.1), x, TEXT, NULL, drawn, progress=0.0)
    torch.testing.assert_close(off.per_sample, 0.01 * clean_weight(drawn.t))
    assert off.logs["error"] == pytest.approx(0.01, rel=1e-4)


def test_training_recovers_the_guided_teacher_for_every_scale():
    """A student that is linear in w, and knows nothing of text and null, is trained on 16 drawn scales and asked at others."""
    text, null = TEXT[:1], NULL
    constant_part, slope = (torch.zeros(LATENT_DIM, requires_grad=True) for _ in range(2))

    class Linear(Analytic):
        def __init__(self):
            super().__init__(None)

        def __call__(self, z, t, r, condition, scale):
            return expand(t, z) * z + constant_part + expand(scale, z) * slope

    config = STAGE_ONE.model_copy(update={"text_dropout": 0.0})
    objective = Objective(config, Teacher())
    optimizer = torch.optim.LBFGS([constant_part, slope], max_iter=200, tolerance_grad=1e-10, tolerance_change=0)
    x = normals(16, LENGTH, LATENT_DIM)
    drawn = objective.draw(x.shape, progress=0.0, generator=torch.Generator().manual_seed(0))

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(Linear(), x, text.expand(16), null, drawn, progress=0.0).per_sample.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    for w in (1.0, 2.5, 4.0, 8.0):
        expected = answer(null) + w * (answer(text) - answer(null))
        torch.testing.assert_close(constant_part + w * slope, expected[0, 0], atol=1e-3, rtol=1e-3)


def test_the_second_teacher_pass_is_for_guided_rows_only():
    x, noise, t, _ = draws()
    keep = torch.tensor([True, False, True, True])
    guidance = torch.tensor([[3.0, 0, 1], [3.0, 0, 1], [1.0, 0, 1], [8.0, 0, 1]])
    teacher = Teacher()
    drawn = TwoTimeDraws(noise, t, t, keep, guidance, torch.zeros(4))
    Objective(STAGE_ONE, teacher).loss(Student(), x, TEXT, NULL, drawn, progress=0.0)
    assert teacher.calls == [4 + 2]  # row 1 has lost its text, row 2 has scale 1


def test_the_weight_is_the_truncated_signal_to_noise_ratio_of_the_clean_latents():
    t = torch.linspace(0.05, 1, 20)
    snr = ((1 - t) / t) ** 2
    torch.testing.assert_close(clean_weight(t), snr.clamp_min(1) * t**2)


# ---------------------------------------------------------------- mean velocities of a teacher


def mean_distillation(**changes) -> ObjectiveConfig:
    values = {"kind": "mean_flow_distillation", "teacher": "given", "text_dropout": 0.0, "adaptive_power": 0.0, "omega": 1.0, "kappa": 0.5}
    return ObjectiveConfig(**values | {"interval_fraction": constant(1.0)} | changes)


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_exact_mean_velocities_have_no_error_whatever_noise_was_drawn(scale):
    """MeanFlow's own target has an error here, in every row but that of the mean: its velocity is the drawn one."""
    v, u = gaussian_flow(scale)
    teacher, x = Analytic(lambda z, t, r: v(z, t)), 5 * draws()[0]
    drawn = Objective(mean_distillation(), teacher).draw(x.shape, progress=0.0, generator=torch.Generator().manual_seed(0))
    drawn = replace(drawn, t=torch.linspace(0.9, 0.4, len(x)), r=torch.linspace(0.5, 0.1, len(x)))
    loss = Objective(mean_distillation(), teacher).loss(Analytic(u), x, TEXT, NULL, drawn, progress=1.0)
    assert loss.per_sample.max() < 1e-8
    plain = mean_distillation(kind="mean_flow", guidance=constant(0.0))
    assert Objective(plain).loss(Analytic(u), x, TEXT, NULL, drawn, progress=1.0).per_sample.min() > 1e-2


@pytest.mark.parametrize(("share", "guidance"), [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)])
def test_the_teachers_velocity_is_guided_at_the_scale_that_omega_and_kappa_amount_to(share, guidance):
    x = draws()[0]
    objective = Objective(mean_distillation(interval_fraction=constant(0.0), guidance=constant(share), text_dropout=0.5), Teacher())
    drawn = objective.draw(x.shape, progress=0.0, generator=torch.Generator().manual_seed(3))
    assert 0 < drawn.keep.sum() < len(x)

    def guided(z, t, r):
        scale = torch.where(drawn.keep, guidance, 0.0)  # a row without its text has the null text's velocity
        return expand(t, z) * z + torch.lerp(answer(NULL).expand_as(answer(TEXT)), answer(TEXT), expand(scale, z))

    assert objective.loss(Analytic(guided), x, TEXT, NULL, drawn, progress=0.0).per_sample.max() < 1e-9


# ---------------------------------------------------------------- stage two


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_teacher_with_exact_mean_velocities_gives_exact_targets(steps):
    v, u = gaussian_flow(0.4)
    config = stage_two(steps)
    z = normals(64, 3, 2).double()
    drawn = draw_steps((64, 3, 2), progress=0.0, generator=torch.Generator().manual_seed(0), config=config)
    t, r = drawn.t.double(), drawn.r.double()
    found = teacher_steps(Analytic(u), z, t, r, TEXT[:1].expand(64), None, config.halving)
    torch.testing.assert_close(found.double(), u(z, t, r), atol=1e-5, rtol=1e-5)


def test_the_first_teacher_takes_euler_steps_that_approach_the_mean_velocity():
    v, u = gaussian_flow(0.4)
    z, errors = normals(8, 3, 2).double(), []
    for first in (16, 32, 64):
        config = stage_two(first, first=first)
        t = torch.full((8,), 0.5).double()
        r = t - 1 / first
        found = teacher_steps(Analytic(lambda z, t, r: v(z, t)), z, t, r, TEXT[:1].expand(8), None, config.halving)
        z1 = z - 0.5 / first * v(z, t)
        z2 = z1 - 0.5 / first * v(z1, t - 0.5 / first)
        torch.testing.assert_close(found.double(), (z - z2) * first, atol=1e-4, rtol=1e-4)
        errors.append((found - u(z, t, r)).norm().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_the_objective_regresses_the_steps_of_the_teacher_at_the_students_scale():
    _, u = gaussian_flow(0.4)

    class AtEveryScale(Analytic):
        def __call__(self, z, t, r, condition, scale):
            return self.u(z, t, r) * expand(scale, z)

    x = draws()[0]
    config = stage_two(4, scale=ScaleConfig())
    objective = Objective(config, AtEveryScale(u))
    drawn = objective.draw(x.shape, progress=0.0, generator=torch.Generator().manual_seed(1))
    z, w = interpolate(x, drawn.noise, drawn.t), expand(drawn.guidance[:, 0], x)
    half = (drawn.t + drawn.r) / 2
    first = u(z, drawn.t, half) * w
    second = u(z - expand(drawn.t - half, z) * first, half, drawn.r) * w
    student = AtEveryScale(u)(z, drawn.t, drawn.r, TEXT, drawn.guidance[:, 0])
    expected = (student - (first + second) / 2).square().flatten(1).mean(1) * clean_weight(drawn.t)
    torch.testing.assert_close(objective.loss(AtEveryScale(u), x, TEXT, NULL, drawn, progress=0.0).per_sample, expected)


@pytest.mark.parametrize(("steps", "first"), [(16, 16), (4, 16), (1, 16), (1, 1)])
def test_times_lie_on_the_grids_of_this_and_of_rehearsed_rounds(steps, first):
    config = stage_two(steps, first, rehearsal=0.5)
    drawn = draw_steps((4000, 1, 1), progress=0.0, generator=torch.Generator().manual_seed(0), config=config)
    length = (drawn.t - drawn.r).double()
    instant = length == 0
    counts = (1 / length[~instant]).round()
    rounds = int(math.log2(first / steps))
    assert set(counts.tolist()) == {steps * 2.0**k for k in range(rounds + 1)}
    places = drawn.t[~instant].double() * counts
    torch.testing.assert_close(places, places.round(), atol=1e-4, rtol=0)
    assert drawn.t.max() <= 1
    assert drawn.r.min() >= 0
    assert (counts == steps).double().mean().item() * (~instant).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert instant.double().mean().item() == pytest.approx(0.5 / (rounds + 1), abs=0.03)
    assert (drawn.t[~instant][counts == steps] == 1).any()


def test_rehearsing_rows_keep_the_teachers_own_word_for_one_pass():
    _, u = gaussian_flow(0.4)
    teacher = Analytic(u)
    t = torch.tensor([1.0, 0.75, 0.5]).double()
    r = t - torch.tensor([0.5, 0.25, 0.125]).double()  # of 2, 4 and 8 steps; this round is that of 2
    z = normals(3, 3, 2).double()
    found = teacher_steps(teacher, z, t, r, TEXT[:3], None, HalvingConfig(steps=2, first=16))
    assert teacher.calls == [3, 1]
    torch.testing.assert_close(found[1:].double(), u(z, t, r)[1:], atol=1e-6, rtol=1e-6)


def test_a_teacher_keeps_its_text():
    seen = []

    class Listening(Teacher):
        def condition(self, text: TextFeatures):
            seen.append(text)
            return text

    x = draws()[0]
    objective = Objective(stage_two(16), Listening())
    objective(Analytic(lambda z, t, r: z), x, TEXT, NULL, progress=0.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seen[0].pooled, TEXT.pooled)
    assert torch.equal(seen[1].pooled, TEXT.pooled)
