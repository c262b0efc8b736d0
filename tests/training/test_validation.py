"""Held-out numbers: the same question at every visit; and the network that answered it best."""

import pytest
import torch
from fakes import fill, tiny_network
from runs import rows, run, tiny_run, with_loop

from meanaudio.checkpoint import load_weights, read_json
from meanaudio.config import ObjectiveConfig, constant
from meanaudio.errors import InputError
from meanaudio.flow import interpolate
from meanaudio.objectives import Objective
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.loop import Loop
from meanaudio.training.validation import SEED, held_out_loss


@pytest.fixture
def config(tmp_path):
    return tiny_run(tmp_path)


def validated(task, network, **changes):
    count = len(task.held_out)
    objective = Objective(task.config.objective.model_copy(update=changes))
    with torch.inference_mode():
        return held_out_loss(network, objective, task.held_out.batch(list(range(count))), task.null, task.mean, task.std, count)


def test_it_is_the_flow_matching_error_under_fixed_noise_and_times(config):
    config = config.model_copy(update={"network": tiny_network(interval="none"), "objective": ObjectiveConfig(kind="flow_matching")})
    task = GeneratorTask(config)
    network = fill(task.blank(), 1)
    found = validated(task, network)
    torch.randn(3)
    assert validated(task, network) == found
    assert validated(task, fill(task.blank(), 2)) != found

    batch, generator = task.held_out.batch([0, 1, 2, 3]), torch.Generator().manual_seed(SEED)
    x = (batch.mean + batch.std * torch.randn(batch.mean.shape, generator=generator) - task.mean) / task.std
    draws = Objective(config.objective).draw(x.shape, progress=1.0, generator=generator)
    with torch.no_grad():
        predicted = network(interpolate(x, draws.noise, draws.t), draws.t, draws.t, network.condition(batch.text))
    errors = (predicted - (draws.noise - x)).square().mean((1, 2))
    assert found["error"] == pytest.approx(errors.mean().item(), rel=1e-5)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (draws.t >= low) & (draws.t < low + 0.2)
        key = f"error_t_{low:.1f}_{low + 0.2:.1f}"
        assert (key in found) == bool(inside.any())
        if inside.any():
            assert found[key] == pytest.approx(errors[inside].mean().item(), rel=1e-5)
    assert len(found) > 2


def test_neither_weighting_nor_dropout_nor_schedules_come_in(config):
    task = GeneratorTask(config)
    network = fill(task.blank(), 1)
    found = validated(task, network)
    assert validated(task, network, adaptive_power=0.5, text_dropout=0.9) == found
    assert validated(task, network, guidance=constant(0.0)) != found
    assert validated(task, network, interval_fraction=constant(0.0))["error"] != found["error"]


def test_a_network_that_sees_padding_is_asked_with_as_much_as_it_learned_with(config, tmp_path):
    task = GeneratorTask(config.model_copy(update={"network": tiny_network(mask_text=False)}))
    network, seen = task.blank().eval(), set()
    condition = network.condition
    network.condition = lambda text: seen.add(text.sequence.shape[1]) or condition(text)
    task.evaluate(network, tmp_path / "samples")
    assert seen == {config.text.max_tokens}


def test_the_log_has_them_and_the_best_and_the_last_network_are_kept(config, tmp_path):
    config = with_loop(config, sample_every=2)
    task = GeneratorTask(config)
    loop, numbers = Loop(task, config, tmp_path / "run"), {2: float("nan"), 4: 1.0, 6: 2.0, 8: float("inf"), 10: 1.0}
    evaluate, shown = task.evaluate, {}

    def judged(network, folder):
        shown[loop.step] = {k: v.clone() for k, v in network.state_dict().items()}
        return evaluate(network, folder) | {"quality": numbers[loop.step]}

    task.evaluate, task.best = judged, "quality"
    loop.run(until=4, progress_bar=False)
    loop.run(progress_bar=False)
    assert read_json(tmp_path / "run" / "best" / "best.json") == {"step": 4, "quality": 1.0}
    for folder, step in (("best", 4), ("export", 10)):
        stored = load_weights(tmp_path / "run" / folder / "network.safetensors")
        assert all(torch.equal(value, shown[step][name]) for name, value in stored.items())
    held_out = [row for row in rows(tmp_path / "run") if "held_out/error" in row]
    assert [row["step"] for row in held_out] == [2, 4, 6, 8, 10]
    assert any(key.startswith("held_out/error_t_") for key in held_out[0])


def test_a_number_that_is_not_there_cannot_choose_the_best(config, tmp_path):
    with pytest.raises(InputError, match="loop.best = 'loss' is none of the held-out numbers: error, "):
        run(with_loop(config, best="loss"), tmp_path / "run")
    run(with_loop(config, best="frechet_1_step"), tmp_path / "run")
    best = read_json(tmp_path / "run" / "best" / "best.json")
    logged = {row["step"]: row["held_out/frechet_1_step"] for row in rows(tmp_path / "run") if "held_out/frechet_1_step" in row}
    assert best == {"step": min(logged, key=logged.get), "frechet_1_step": min(logged.values())}
