"""The path, its times, and schedules."""

import pytest
import torch
from fakes import normals
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.config import ScheduleConfig, TimeConfig, constant
from meanaudio.flow import expand, interpolate, normal_velocity, path_deviation, sample_times, schedule, velocity


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_path_goes_from_data_to_noise_at_its_velocity():
    x, noise = normals(3, 5, 2), normals(3, 5, 2, seed=1)
    assert torch.equal(interpolate(x, noise, torch.zeros(3)), x)
    assert torch.equal(interpolate(x, noise, torch.ones(3)), noise)
    t, step = torch.tensor([0.1, 0.5, 0.8]), 0.1
    moved = (interpolate(x, noise, t + step) - interpolate(x, noise, t)) / step
    torch.testing.assert_close(moved, velocity(x, noise), atol=1e-5, rtol=1e-5)


@given(std=st.floats(0.01, 10), times=st.tuples(*[st.floats(0, 1)] * 3))
def test_the_velocity_of_normal_data_takes_its_noise_to_its_samples(std, times):
    """One jump of any length is exact: from z to the point of the same quantile. At r = t it is what regression on all pairs would find."""
    r, s, t = (torch.tensor(x, dtype=torch.float64) for x in sorted(times))
    std, z = torch.tensor(std, dtype=torch.float64), torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64)
    there = z * path_deviation(r, std) / path_deviation(t, std)
    torch.testing.assert_close(z - (t - r) * normal_velocity(z, t, r, std), there)
    halfway = z - (t - s) * normal_velocity(z, t, s, std)
    torch.testing.assert_close(halfway - (s - r) * normal_velocity(halfway, s, r, std), there)
    covariance, variance = t - (1 - t) * std**2, path_deviation(t, std) ** 2  # of (noise - x, z), of z
    torch.testing.assert_close(normal_velocity(z, t, t, std), z * covariance / variance)


def test_times_multiply_rows():
    x = torch.ones(2, 3, 4)
    assert (expand(torch.tensor([2.0, 3.0]), x) * x)[:, 0, 0].tolist() == [2, 3]
    assert expand(torch.ones(2), x.double()).dtype == torch.float64


@given(batch=st.integers(1, 40), share=st.floats(0, 1), ends=st.floats(0, 1), seed=st.integers(0, 1000))
def test_r_never_passes_t_and_the_number_of_interval_rows_is_exact(batch, share, ends, seed):
    t, r = sample_times(batch, TimeConfig(endpoint_fraction=constant(ends)), share, generator(seed))
    assert t.shape == r.shape == (batch,)
    assert (r <= t).all()
    assert (r >= 0).all()
    assert (t <= 1).all()
    assert abs(int((r < t).sum()) - batch * share) < 1


@pytest.mark.parametrize(("batch", "share"), [(1, 0.3), (7, 0.25), (3, 0.5), (8, 0.25), (4, 0.0), (4, 1.0)])
def test_the_share_of_interval_rows_is_exact_in_the_mean(batch, share):
    draws = generator()
    counts = [int((torch.lt(*reversed(sample_times(batch, TimeConfig(), share, draws)))).sum()) for _ in range(4000)]
    assert sum(counts) / len(counts) == pytest.approx(batch * share, abs=0.03)
    if (batch * share).is_integer():
        assert set(counts) == {int(batch * share)}


def test_times_are_logit_normal():
    """At r = t each row is the larger of two draws; the mean of log-odds of all interval ends is that of the single draw."""
    t, r = sample_times(100_000, TimeConfig(mean=-0.4, std=1.3), 1.0, generator())
    ends = torch.logit(torch.cat([t, r]).double())
    assert ends.mean().item() == pytest.approx(-0.4, abs=0.02)
    assert ends.std().item() == pytest.approx(1.3, abs=0.02)
    instant = torch.logit(sample_times(100_000, TimeConfig(mean=-0.4, std=1.3), 0.0, generator())[0].double())
    assert instant.mean().item() == pytest.approx(-0.4 + 1.3 / torch.pi**0.5, abs=0.02)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_fraction_of_the_interval_rows_takes_the_whole_jump(fraction):
    t, r = sample_times(10_000, TimeConfig(endpoint_fraction=constant(fraction)), 0.5, generator())
    whole = (t == 1) & (r == 0)
    assert whole.sum().item() == pytest.approx(5000 * fraction, abs=150)
    assert torch.equal(whole, (t == 1) | (r == 0))


def test_times_come_from_the_generator():
    a, b, c = (sample_times(8, TimeConfig(), 0.5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], c[0])


# ---------------------------------------------------------------- schedules


@given(
    start=st.floats(-2, 2), stop=st.floats(-2, 2), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    places=st.lists(st.floats(0, 1), min_size=2, max_size=2), shape=st.sampled_from(["cosine", "sigmoid"]),
)  # fmt: skip
def test_a_schedule_goes_one_way_between_its_ends(start, stop, ends, places, shape):
    begin, end = sorted(ends)
    config = ScheduleConfig(start=start, stop=stop, begin=begin, end=end, shape=shape)
    first, second = (schedule(config, p) for p in sorted(places))
    low, high = min(start, stop) - 1e-9, max(start, stop) + 1e-9
    assert low <= first <= high
    assert low <= second <= high
    assert (second - first) * (stop - start) >= -1e-9


def test_a_schedule_holds_ramps_and_holds():
    config = ScheduleConfig(start=0.0, stop=2.0, begin=0.4, end=0.6)
    assert [schedule(config, p) for p in (0, 0.2, 0.4, 0.6, 0.9, 1)] == [0, 0, 0, 2, 2, 2]
    assert schedule(config, 0.5) == pytest.approx(1.0)
    assert schedule(config, 0.45) == pytest.approx(2 * 0.5 * (1 - 2**-0.5))


def test_a_sigmoid_is_flat_at_its_ends_and_reaches_them_exactly():
    config = ScheduleConfig(start=1.0, stop=0.0, begin=0.2, end=0.8, shape="sigmoid")
    assert [schedule(config, p) for p in (0, 0.2, 0.3, 0.7, 0.8, 1)] == [1, 1, 1, 0, 0, 0]
    assert schedule(config, 0.5) == pytest.approx(0.5)
    assert schedule(config, 0.55) == pytest.approx(1 - 1 / (1 + 2.718281828 ** (-25 * 0.05 / 0.6)))


def test_the_share_of_whole_jumps_follows_its_schedule():
    config = TimeConfig(endpoint_fraction=ScheduleConfig(start=0.0, stop=1.0))
    for progress in (0.0, 0.5, 1.0):
        t, _ = sample_times(10_000, config, 1.0, generator(), progress)
        assert (t == 1).sum().item() == pytest.approx(10_000 * progress, abs=200)


def test_a_schedule_may_jump_and_may_stand_still():
    jump = ScheduleConfig(start=0.0, stop=1.0, begin=0.5, end=0.5)
    assert [schedule(jump, p) for p in (0, 0.49, 0.5, 1)] == [0, 0, 1, 1]
    assert {schedule(ScheduleConfig(start=0.3, stop=0.3), p) for p in (0.0, 0.1, 1.0)} == {0.3}
