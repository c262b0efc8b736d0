"""The cost of a training step: the public code's way computes the same loss, and what is told of each way."""

from dataclasses import replace

import pytest
import torch
from fakes import LATENT_DIM, TINY_CODEC, fill, normals, random_text, tiny_network

from meanaudio.config import LoopConfig, ObjectiveConfig, TrainConfig, constant
from meanaudio.evaluation import training_cost as module
from meanaudio.evaluation.training_cost import PUBLIC, Cost, TrainingCost, public_mean_flow, training_cost
from meanaudio.models.transformer import make_network
from meanaudio.objectives import OBJECTIVES, Objective

CONFIG = TrainConfig(seconds=1.024, codec=TINY_CODEC, network=tiny_network(), loop=LoopConfig(batch_size=3))


class Counting:
    """A network that notes batch size and mode of every evaluation."""

    def __init__(self, network) -> None:
        self.network, self.calls = network, []
        self.condition = network.condition

    def __call__(self, z, t, r, condition):
        self.calls.append((len(z), torch.is_grad_enabled()))
        return self.network(z, t, r, condition)


@pytest.mark.parametrize("interval", ["absolute", "relative"])
def test_the_public_codes_way_computes_our_loss_with_more_work(interval):
    config = ObjectiveConfig(interval_fraction=constant(0.5), dropped_rows="release")
    x, text, null, results = normals(4, 6, LATENT_DIM), random_text([3, 5, 2, 4]), random_text([1], seed=9), []
    objective = Objective(config)
    draws = objective.draw(x.shape, progress=1.0, generator=torch.Generator().manual_seed(1))
    draws = replace(draws, keep=torch.tensor([True, False, True, False]))  # one row of each kind: r < t or not, with text or not
    for loss in (objective.loss, lambda *args, **options: public_mean_flow(*args, **options, config=config)):
        net = Counting(fill(make_network(tiny_network(interval=interval)), std=0.15))
        per_sample = loss(net, x, text, null, draws, progress=1.0).per_sample
        per_sample.mean().backward()
        results.append((per_sample, [p.grad for p in net.network.parameters()], net.calls))
    (ours, our_gradients, our_calls), (theirs, their_gradients, their_calls) = results
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert our_calls == [(4, True), (4 + 3, False), (2, False)]
    assert their_calls == [(4, True)] * 3


@pytest.fixture
def here(monkeypatch):
    """Peaks are measured in this process."""
    monkeypatch.setattr(module, "peak_memory", lambda make, *args: module._peak_memory(make, args, 1))


def test_every_way_is_measured_in_turn(here):
    cost = training_cost(CONFIG, repeats=2, against="public")
    ours = [f"{o}, {p}" for p in ("float32", "bf16") for o in ("flow matching", "mean flow")]
    assert list(cost.costs) == [PUBLIC, *ours, "mean flow, bf16, activations computed twice"]
    for one in cost.costs.values():
        assert len(one.seconds) == 2
        assert min(one.seconds) > 0
        assert one.peak_memory > 1e7
    lines = cost.to_text().splitlines()
    assert "batch 3, 16 latents, 16 text tokens" in lines[0]
    assert [line.split("  ")[0] for line in lines[2:]] == list(cost.costs)


def test_every_objective_is_measured_beside_flow_matching(here, monkeypatch):
    """Each makes the network evaluations that docs/methods.md says: rows with a graph, and rows without one."""
    cost = training_cost(CONFIG, repeats=1, against="objectives")
    assert list(cost.costs)[0] == "flow matching"
    assert {name.removesuffix(", guided").replace(" ", "_") for name in cost.costs} == set(OBJECTIVES)
    assert cost.speed_up("flow matching") == 1
    way = module.variants(CONFIG, "objectives")["guidance distillation"]
    rows = []
    forward = type(way.objective.teacher).forward
    monkeypatch.setattr(type(way.objective.teacher), "forward", lambda self, z, *rest: rows.append(len(z)) or forward(self, z, *rest))
    module.Bench(CONFIG.model_copy(update={"loop": LoopConfig(batch_size=50)}), 3).step(way, 0)
    assert 90 <= rows[0] <= 100  # text and, where it was kept, null
    assert rows[1] == 50


def test_padding_that_is_attended_to_counts(here):
    config = CONFIG.model_copy(update={"network": tiny_network(mask_text=False)})
    assert f"{config.text.max_tokens} text tokens" in training_cost(config, repeats=1).title


def test_ratios_are_of_the_same_round():
    """A machine that is twice as slow in the second half changes no ratio."""
    cost = TrainingCost("", {"first": Cost([4.0, 8.0, 8.0], 100), "second": Cost([2.0, 4.0, 4.0], 25)})
    assert cost.speed_up("second") == 2
    assert cost.speed_up("first") == 1
    assert cost.memory_share("second") == 0.25


def test_a_step_trains_and_depends_on_its_seed_alone():
    bench, way = module.Bench(CONFIG, 5), module.variants(CONFIG, against="public")["mean flow, float32"]
    losses = []

    def loss(*args, **options):
        found = way.loss(*args, **options)
        losses.append(found.logs["loss"])
        return found

    before = [p.clone() for p in bench.network.parameters()]
    for seed in (1, 1, 2):
        with torch.no_grad():
            for p, value in zip(bench.network.parameters(), before, strict=True):
                p.copy_(value)
        bench.step(module.Variant(loss, "float32"), seed)
    assert losses[0] == losses[1] != losses[2]
    assert any(not torch.equal(p, value) for p, value in zip(bench.network.parameters(), before, strict=True))


def test_a_process_of_its_own_measures_memory():
    """The peak of a child does not hold what its parent holds."""
    ballast = torch.ones(400_000_000)
    config = CONFIG.model_copy(update={"loop": LoopConfig(batch_size=1)})
    name = "mean flow, float32"
    peak = module.peak_memory(module._bench_of, config, 4, name, "public")
    assert 5e7 < peak < ballast.nbytes


def test_the_verb_prints_the_table(run, here, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("seconds: 1.024\nnetwork: {preset: tiny}\nloop: {batch_size: 2}\n", encoding="utf-8")
    code, out, err = run("benchmark-training", "-c", path, "--repeats", 1, "--against", "public", "--tokens", 3)
    assert code == 0, err
    assert "3 text tokens" in out
    assert PUBLIC in out
    code, out, err = run("benchmark-training", "-c", path, "--repeats", 1, "--set", "loop.precision=bf16")
    assert code == 0, err
    assert "flow matching, bf16" in out and "mean flow, bf16" in out
    assert "public" not in out
    code, out, err = run("benchmark-training", "-c", path, "--repeats", 1, "--against", "objectives")
    assert code == 0, err
    assert "interval splitting, guided" in out
