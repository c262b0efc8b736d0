"""Sampling on flows with a known solution, and noise that belongs to its clip."""

import math

import pytest
import torch
from fakes import normals
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.errors import InputError
from meanaudio.flow import expand
from meanaudio.sampling import MAX_STEPS, integrate, integrate_stochastic, invert, per_sample_noise, per_sample_noises, uniform_times

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


# ---------------------------------------------------------------- stochastic


def gaussian_jump(mean: float, scale: float):
    """Exact mean velocity where the data are N(mean, scale^2): z_r = (1 - r) mean + sigma(r) / sigma(t) (z - (1 - t) mean)."""

    def sigma(t):
        return ((1 - t) ** 2 * scale**2 + t**2).sqrt()

    def u(z, t, r):
        t, r = expand(t, z), expand(r, z)
        return (z - (1 - r) * mean - sigma(r) / sigma(t) * (z - (1 - t) * mean)) / (t - r)

    return u


@pytest.mark.parametrize("times", [uniform_times(1), uniform_times(2), uniform_times(6), torch.tensor([1.0, 0.95, 0.3, 0.25, 0.0])])
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (2.0, 0.3), (-1.0, 3.0)])
def test_the_stochastic_sampler_keeps_mean_and_variance_of_a_gaussian(times, mean, scale):
    found = integrate_stochastic(gaussian_jump(mean, scale), per_sample_noises((500,), range(200)), times, mean=True)
    assert found.mean().item() == pytest.approx(mean, abs=0.02 * scale)
    assert found.std().item() == pytest.approx(scale, rel=0.02)


def test_the_stochastic_sampler_costs_one_evaluation_a_step_and_jumps_twice_as_far():
    calls = []

    def field(z, t, r):
        calls.append((round(t[0].item(), 6), round(r[0].item(), 6)))
        return torch.zeros_like(z)

    integrate_stochastic(field, per_sample_noises((3,), [0]), uniform_times(4), mean=True)
    assert calls == [(1, 0.5), (0.75, 0.25), (0.5, 0), (0.25, 0)]
    calls.clear()
    integrate_stochastic(field, per_sample_noises((3,), [0]), uniform_times(2), mean=False)
    assert calls == [(1, 1), (0.5, 0.5)]


def test_one_stochastic_step_is_the_deterministic_one_and_more_are_not():
    u = gaussian_jump(1.0, 0.5)
    for steps, same in ((1, True), (2, False)):
        stochastic = integrate_stochastic(u, per_sample_noises((4,), [3]), uniform_times(steps), mean=True)
        assert torch.equal(stochastic, integrate(u, per_sample_noise((4,), [3]), uniform_times(steps), mean=True)) == same


def test_later_noise_belongs_to_its_seed_too():
    u = gaussian_jump(1.0, 0.5)
    together = integrate_stochastic(u, per_sample_noises((4,), [3, 8]), uniform_times(5), mean=True)
    alone = integrate_stochastic(u, per_sample_noises((4,), [8]), uniform_times(5), mean=True)
    torch.testing.assert_close(together[1:], alone)
    stream = per_sample_noises((50, 50), [1])
    first, second = next(stream), next(stream)
    assert abs((first * second).mean().item()) < 0.05


# ---------------------------------------------------------------- back to noise


@pytest.mark.parametrize("steps", [2, 4, 16])
@pytest.mark.parametrize("field", [gaussian_jump(0.5, 0.8), mean_velocity], ids=["gaussian", "linear"])
def test_what_is_inverted_and_integrated_again_is_what_it_was(field, steps):
    """The inverse of the sampler itself: the distance falls to nothing with the iterations, whatever the steps."""
    latents, times = normals(3, 5, 2).double(), uniform_times(steps).double()
    errors = []
    for iterations in (1, 4, 60):
        noise = invert(field, latents, times, mean=True, iterations=iterations)
        errors.append((integrate(field, noise, times, mean=True) - latents).norm().item())
    assert errors[2] < 1e-9
    assert errors[2] < errors[1] < errors[0]


def test_one_iteration_of_euler_inverts_at_first_order():
    latents, errors = normals(3, 5, 2).double(), []
    for steps in (50, 100, 200):
        times = uniform_times(steps).double()
        noise = invert(instantaneous, latents, times, mean=False)
        errors.append((integrate(instantaneous, noise, times, mean=False) - latents).norm().item())
        assert (noise - latents * math.e).norm() < 0.05 * noise.norm()
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_inversion_to_a_lower_noise_level_starts_and_ends_there():
    calls = []

    def field(z, t, r):
        calls.append((round(t[0].item(), 6), round(r[0].item(), 6)))
        return torch.ones_like(z)

    latents = normals(1, 2, 2)
    found = invert(field, latents, uniform_times(2, 0.5), mean=True, iterations=2)
    assert calls == [(0.25, 0), (0.25, 0), (0.5, 0.25), (0.5, 0.25)]
    torch.testing.assert_close(found, latents + 0.5)
    with pytest.raises(InputError, match="iterations = 0: must be from 1"):
        invert(field, latents, uniform_times(2), mean=True, iterations=0)
