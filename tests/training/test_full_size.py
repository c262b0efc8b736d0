"""The paper's configs at their full size: what they build, how it is shared out over processes, and that it trains."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import outcomes, start

from meanaudio.config import PRESETS, TrainConfig, load_config
from meanaudio.models.transformer import make_network
from meanaudio.objectives import Objective
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.loading import random_set
from meanaudio.training.loop import Loop
from meanaudio.training.parallel import LossModule, local, spread

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("audiocaps_*.yaml"))
SIZES = {"s": 120, "l": 479}  # millions of weights


def config_of(name: str, *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, ROOT / "configs" / name, overrides)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_of_one_of_the_papers_sizes_and_both_can_be_had(name):
    assert config_of(name).network.width == PRESETS["l" if name.endswith("_l.yaml") else "s"]["width"]
    for size, millions in SIZES.items():
        network = config_of(name, f"network.preset={size}").network
        with torch.device("meta"):
            found = sum(p.numel() for p in make_network(network).parameters()) / 1e6
        assert found == pytest.approx(millions, abs=1)


def shares(name: str, size: str) -> tuple[int, list[int]]:
    """Weights of the network, and how many of them rank 0, 3 and 7 of eight hold between steps, by FSDP. No other process is needed."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    config, held = config_of(name, f"network.preset={size}"), []
    for rank in (0, 3, 7):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=8)
        with torch.device("meta"):
            network = make_network(config.network)
        module = LossModule(network.to_empty(device="cpu"), Objective(config.objective))
        total = sum(p.numel() for p in module.parameters())
        held.append(sum(local(p.data).numel() for p in spread(module, "fsdp").parameters()))
        dist.destroy_process_group()
    return total, held


@pytest.mark.parametrize("size", SIZES)
def test_each_of_eight_processes_holds_an_eighth(size):
    [(total, held)] = outcomes(start(shares, "audiocaps_mean.yaml", size))
    assert all(0.99 * total / 8 < count < 1.01 * total / 8 for count in held), held


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audiocaps_flow.yaml", "audiocaps_mean.yaml", "audiocaps_curriculum.yaml"])
def test_two_steps_are_made_on_random_latents(name, tmp_path):
    """Of two rows, one with an interval where the objective knows any; the first is logged, the weights move, all is finite.

    In float32: on a CPU without 16-bit arithmetic a step in the config's bf16 takes minutes.
    """
    changes = ("loop.precision=float32", "loop.batch_size=2", "objective.interval_fraction=0.5", "optim.warmup=0", "optim.ema=0.05")
    config = config_of(name, *changes)
    config = random_set(config, tmp_path, 32)
    loop = Loop(GeneratorTask(config), config, tmp_path / "run")
    network = loop.task.networks["network"]
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(SIZES["s"], abs=1)
    before = network.out.weight.detach().clone()
    for step in range(2):
        logs = loop.task.step(step, 1.0, loop.update)
        assert math.isfinite(logs["loss"])
        assert math.isfinite(loop.gradient_norms["network"])
        assert ("derivative_norm" in logs) == (name != "audiocaps_flow.yaml")
    assert network.out.weight.isfinite().all()
    assert not torch.equal(network.out.weight, before)
