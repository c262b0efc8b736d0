"""Averages made after the run: exact where they can be, near where the snapshots are few, and through the command."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import run, tiny_run
from typer.testing import CliRunner

from meanaudio.checkpoint import load_weights
from meanaudio.cli import app
from meanaudio.errors import InputError
from meanaudio.training.ema import PowerEMA
from meanaudio.training.posthoc import TRAINED_FILE, Snapshot, fit, list_snapshots, reconstruct, shares, snapshot_steps
from meanaudio.training.run import TASKS


def walk(steps, sigmas, at) -> dict[Snapshot, torch.Tensor]:
    """Averages of 50 weights on a random walk, as they stood at the steps `at`."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Linear(50, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(network.weight)
    averages, found = [PowerEMA(network, sigma) for sigma in sigmas], {}
    for step in range(1, steps + 1):
        with torch.no_grad():
            network.weight += torch.randn(1, 50, generator=generator, dtype=torch.float64)
        for ema in averages:
            ema.update(network, step)
            if step in at:
                found[Snapshot(step, ema.sigma_rel)] = ema.averages["weight"].clone()
    return found


def combined(snapshots, sigma, step):
    weights, error = fit(list(snapshots), sigma, step)
    return sum(w * value for w, value in zip(weights, snapshots.values(), strict=True)), error


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_the_shares_are_what_the_average_gives(sigma):
    """Shown weights that are 1 at one step only, the average is that step's share."""
    network = torch.nn.Linear(30, 1, bias=False, dtype=torch.float64)
    ema = PowerEMA(network, sigma)
    for step in range(1, 31):
        torch.nn.init.zeros_(network.weight)
        if step <= 25:
            network.weight.data[0, step - 1] = 1
            ema.update(network, step)
    expected = ema.averages["weight"][0].numpy()
    np.testing.assert_allclose(shares(sigma, 25, 0, 30), expected, atol=1e-15)
    np.testing.assert_allclose(np.concatenate([shares(sigma, 25, 0, 7), shares(sigma, 25, 7, 30)]), expected, atol=1e-15)


@pytest.mark.parametrize("sigma", [0.02, 0.08, 0.15, 0.25])
@pytest.mark.parametrize("step", [40, 29])
def test_snapshots_of_every_step_give_every_average_exactly(sigma, step):
    stored = walk(40, (0.05, 0.10), range(1, 41))
    direct = walk(step, (sigma,), {step})[Snapshot(step, sigma)]
    made, error = combined(stored, sigma, step)
    assert error < 1e-9
    torch.testing.assert_close(made, direct, rtol=1e-8, atol=1e-8)


def test_a_stored_average_is_itself():
    stored = [Snapshot(step, sigma) for step in (50, 100) for sigma in (0.05, 0.10)]
    weights, error = fit(stored, 0.10, 100)
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-9)
    assert error < 1e-9
    assert fit(stored[:1], 0.05, 50) == (np.ones(1), pytest.approx(0, abs=1e-9))


@pytest.mark.parametrize("sigma", [0.04, 0.07, 0.12, 0.15])
def test_sixteen_snapshots_of_two_come_within_a_hundredth(sigma):
    stored = walk(400, (0.05, 0.10), snapshot_steps(400, 16))
    direct = walk(400, (sigma,), {400})[Snapshot(400, sigma)]
    made, error = combined(stored, sigma, 400)
    assert error < 0.011
    assert (made - direct).norm() < 0.01 * direct.norm()


@given(steps=st.integers(1, 300), count=st.integers(1, 12), sigma=st.floats(0.02, 0.27), chunk=st.integers(1, 70))
@settings(max_examples=40)
def test_weights_add_up_to_one_and_chunks_do_not_matter(steps, count, sigma, chunk):
    stored = [Snapshot(step, width) for step in sorted(snapshot_steps(steps, count)) for width in (0.05, 0.10)]
    weights, error = fit(stored, sigma, steps)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    again, same = fit(stored, sigma, steps, chunk)
    assert same == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize(("steps", "count"), [(10, 3), (10, 10), (10, 16), (2800, 16), (1, 4)])
def test_snapshots_are_spread_over_the_run_and_end_with_it(steps, count):
    found = snapshot_steps(steps, count)
    assert max(found) == steps
    assert min(found) >= 1
    assert len(found) == min(count, steps)
    assert snapshot_steps(steps, 0) == set()


# ---------------------------------------------------------------- the command


def test_every_task_has_a_file_that_an_average_replaces():
    assert TRAINED_FILE.keys() == TASKS.keys()


def test_the_command_makes_the_average_that_a_run_would_have_exported(tmp_path):
    config = tiny_run(tmp_path)
    optim = config.optim
    run(config.model_copy(update={"optim": optim.model_copy(update={"ema": (0.05, 0.10)})}), tmp_path / "run")
    run(config.model_copy(update={"optim": optim.model_copy(update={"ema": (0.2,)})}), tmp_path / "direct")
    done = CliRunner().invoke(app, ["ema", str(tmp_path / "run"), "--sigma-rel", "0.2", "-o", str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    assert "sigma_rel 0.2 after step 10, from 20 snapshots; relative error of the fit" in done.output
    made, direct = (load_weights(tmp_path / folder / "network.safetensors") for folder in ("made", "direct/export"))
    exported = load_weights(tmp_path / "run" / "export" / "network.safetensors")
    assert made.keys() == direct.keys()
    for name, value in direct.items():
        torch.testing.assert_close(made[name], value, rtol=2e-3, atol=2e-4 * value.abs().max().item())  # snapshots have 11 bits
    assert sum(torch.dist(exported[name], direct[name]) for name in made) > 10 * sum(torch.dist(made[name], direct[name]) for name in made)
    names = {path.name for path in (tmp_path / "direct" / "export").iterdir()}
    assert {path.name for path in (tmp_path / "made").iterdir()} == names
    assert (tmp_path / "made" / "config.json").read_bytes() == (tmp_path / "direct" / "export" / "config.json").read_bytes()


def test_what_cannot_be_reconstructed_is_refused(tmp_path):
    config = tiny_run(tmp_path)
    without = config.model_copy(update={"optim": config.optim.model_copy(update={"ema_snapshots": 0})})
    run(without, tmp_path / "without", 2)
    with pytest.raises(InputError, match="ema_snapshots"):
        reconstruct(tmp_path / "without", 0.08, tmp_path / "out")
    run(config, tmp_path / "run", 5)
    for sigma in (0.0, 0.3, -1.0):
        with pytest.raises(InputError, match="between 0 and 0.28"):
            reconstruct(tmp_path / "run", sigma, tmp_path / "out")
    for step in (0, 6):
        with pytest.raises(InputError, match="between 1 and 5"):
            reconstruct(tmp_path / "run", 0.08, tmp_path / "out", step=step)
    with pytest.raises(InputError, match="the run's own"):
        reconstruct(tmp_path / "run", 0.08, tmp_path / "run" / "export")
    with pytest.raises(InputError, match="no such file"):
        reconstruct(tmp_path, 0.08, tmp_path / "out")
    assert len(list_snapshots(tmp_path / "run")) == 10
    path = next((tmp_path / "run" / "snapshots").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=path.name):
        reconstruct(tmp_path / "run", 0.08, tmp_path / "out")
    (path.parent / "latest.safetensors").touch()
    with pytest.raises(InputError, match="not a snapshot's name"):
        reconstruct(tmp_path / "run", 0.08, tmp_path / "out")
    assert not (tmp_path / "out").exists()
