"""Sampling on flows with a known solution, and noise that belongs to its clip."""

import math

import pytest
import torch
from fakes import normals
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.errors import InputError
from meanaudio.flow import expand
from meanaudio.sampling import MAX_STEPS, integrate, per_sample_noise, uniform_times

# dz/dt = z: z(0) = z(1) / e, and the mean velocity over [r, t] is z (1 - exp(r - t)) / (t - r).


def mean_velocity(z, t, r):
    return z * expand((1 - torch.exp(r - t)) / (t - r), z)


def instantaneous(z, t, r):
    assert torch.equal(t, r)
    return z


@pytest.mark.parametrize("steps", [1, 2, 4, 13])
def test_exact_mean_velocities_need_one_jump(steps):
    noise = normals(3, 5, 2).double()
    found = integrate(mean_velocity, noise, uniform_times(steps).double(), mean=True)
    torch.testing.assert_close(found, noise / math.e)


def test_any_grid_will_do():
    noise = normals(3, 5, 2).double()
    times = torch.tensor([1.0, 0.93, 0.2, 0.19, 0.0], dtype=torch.float64)
    torch.testing.assert_close(integrate(mean_velocity, noise, times, mean=True), noise / math.e)


def test_euler_converges_at_first_order():
    noise = normals(3, 5, 2).double()
    errors = [
        (integrate(instantaneous, noise, uniform_times(steps).double(), mean=False) - noise / math.e).norm().item()
        for steps in (50, 100, 200)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.03)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.03)


@given(steps=st.integers(1, 50))
def test_the_field_is_called_once_a_step_along_the_grid(steps):
    calls = []

    def field(z, t, r):
        assert t.shape == r.shape == (2,)
        calls.append((t[0].item(), r[0].item()))
        return torch.zeros_like(z)

    noise = normals(2, 3, 1)
    assert torch.equal(integrate(field, noise, uniform_times(steps), mean=True), noise)
    times = uniform_times(steps).tolist()
    assert calls == list(zip(times[:-1], times[1:], strict=True))
    assert times[0] == 1
    assert times[-1] == 0


def test_no_graph_is_kept_and_the_noise_is_not_changed():
    weight, noise = torch.ones(1, requires_grad=True), normals(2, 3, 1)
    before = noise.clone()
    assert not integrate(lambda z, t, r: z * weight, noise, uniform_times(2), mean=True).requires_grad
    assert torch.equal(noise, before)


def test_noise_belongs_to_its_seed_alone():
    together = per_sample_noise((4, 3), [7, 2**60, 7, 0])
    assert together.shape == (4, 4, 3)
    for row, seed in zip(together, [7, 2**60, 7, 0], strict=True):
        assert torch.equal(per_sample_noise((4, 3), [seed])[0], row)
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[3])
    many = per_sample_noise((100, 8), range(100))
    assert abs(many.mean().item()) < 0.02
    assert many.std().item() == pytest.approx(1, abs=0.02)


def test_noise_neither_reads_nor_moves_the_global_state():
    torch.manual_seed(0)
    expected, first = torch.rand(1), per_sample_noise((3,), [1])
    torch.manual_seed(0)
    again = per_sample_noise((3,), [1])
    assert torch.equal(first, again)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("steps", [0, -1, MAX_STEPS + 1])
def test_impossible_steps_are_refused_with_what_is_allowed(steps):
    with pytest.raises(InputError, match=f"steps = {steps}: must be from 1 to {MAX_STEPS}"):
        uniform_times(steps)
