"""Several gloo processes are one process: gradients, states, and how they end together."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fakes import fill, tiny_network
from runs import assert_same_run, outcomes, rows, run, start, state_of, step_of, tiny_run, with_loop

from meanaudio import distributed
from meanaudio.checkpoint import load_weights, save_weights
from meanaudio.config import LoRAConfig, MatchingConfig, ObjectiveConfig, constant
from meanaudio.data.order import epoch_order
from meanaudio.distributed import Environment, process_group
from meanaudio.errors import InputError, RankLost, TrainingDiverged
from meanaudio.models.layers import SequenceConv
from meanaudio.models.transformer import NETWORK_FILE, make_network
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.loop import Loop
from meanaudio.training.parallel import whole
from meanaudio.training.posthoc import Snapshot

KINDS = {
    "flow_matching": {"network": tiny_network(interval="none"), "objective": ObjectiveConfig(kind="flow_matching")},
    # One row of four has an interval, so that of two processes one computes a derivative and one does not.
    "mean_flow": {"network": tiny_network(), "objective": ObjectiveConfig(interval_fraction=constant(0.25))},
    "preconditioned": {"network": tiny_network(preconditioned=True), "objective": ObjectiveConfig(interval_fraction=constant(0.25))},
}


@pytest.fixture
def config(tmp_path):
    return tiny_run(tmp_path)


class Filled(GeneratorTask):
    """Its network starts with no weight at zero."""

    def blank(self):
        return fill(super().blank(), 3, 0.2)


def save_gradients(config, path) -> dict[str, float]:
    """Write the gradients of one step; return what the step would log."""
    with process_group(torch.device("cpu"), 10.0):
        task = Filled(config)

        def backward(name, losses):
            for loss, _ in losses:
                loss.backward()

        logs = task.step(2, 0.5, backward)
        gradients = {
            f"{part} {name}": whole(parameter.grad)
            for part, network in task.networks.items()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        if distributed.is_main():
            save_weights(path, gradients)
        return logs


def lively_export(config, folder) -> Path:
    """The checkpoint of a run in `folder`, with no weight at zero: what others start from or are taught by."""
    run(with_loop(config, steps=1), folder)
    save_weights(folder / "export" / NETWORK_FILE, fill(make_network(config.network), 3, 0.2).state_dict())
    return folder / "export"


def assert_ran(processes) -> None:
    found = outcomes(processes)
    assert all(isinstance(logs, dict) for logs in found), found


def assert_same_gradients(a, b, within=2e-5):
    first, second = load_weights(a), load_weights(b)
    assert first.keys() == second.keys()
    assert sum(value.abs().sum() > 0 for value in first.values()) > 0.9 * len(first)
    for name, value in first.items():
        assert (value - second[name]).abs().max() <= within * value.abs().max(), name


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_with_twice_the_batch(config, tmp_path, kind):
    config = config.model_copy(update=KINDS[kind])
    save_gradients(config, tmp_path / "one")
    for parallel in ("ddp", "fsdp"):
        assert_ran(start(save_gradients, with_loop(config, parallel=parallel), tmp_path / parallel, ranks=2))
        assert_same_gradients(tmp_path / "one", tmp_path / parallel)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_parts_are_the_whole_batch(config, tmp_path, kind):
    config = config.model_copy(update=KINDS[kind])
    save_gradients(config, tmp_path / "one")
    save_gradients(with_loop(config, accumulate=4), tmp_path / "parts")
    assert_same_gradients(tmp_path / "one", tmp_path / "parts")
    for parallel in ("ddp", "fsdp"):
        assert_ran(start(save_gradients, with_loop(config, parallel=parallel, accumulate=2), tmp_path / parallel, ranks=2))
        assert_same_gradients(tmp_path / "one", tmp_path / parallel)


def test_a_students_and_its_critics_gradients_on_two_processes(config, tmp_path):
    export = lively_export(config, tmp_path / "base")
    matching = MatchingConfig(critic_steps=2, rehearsal=0.25)
    objective = ObjectiveConfig(kind="distribution_matching", teacher=str(export), matching=matching)
    config = config.model_copy(update={"objective": objective, "init_from": str(export)})
    save_gradients(config, tmp_path / "one")
    assert {name.split()[0] for name in load_weights(tmp_path / "one")} == {"network", "critic"}
    save_gradients(with_loop(config, accumulate=2), tmp_path / "parts")
    # The student's come from a difference of two like estimates, which loses digits.
    assert_same_gradients(tmp_path / "one", tmp_path / "parts", within=5e-4)
    assert_ran(start(save_gradients, with_loop(config, parallel="ddp", accumulate=2), tmp_path / "ddp", ranks=2))
    assert_same_gradients(tmp_path / "one", tmp_path / "ddp", within=5e-4)


def test_adapters_and_activations_computed_twice_on_two_processes(config, tmp_path):
    export = lively_export(config, tmp_path / "base")
    lora = config.model_copy(update={"init_from": str(export), "lora": LoRAConfig(rank=2)})
    save_gradients(lora, tmp_path / "one")
    assert all(name.endswith((".up.weight", ".down.weight")) for name in load_weights(tmp_path / "one"))
    for parallel in ("ddp", "fsdp"):
        twice = with_loop(lora, parallel=parallel, checkpoint_activations=True)
        assert_ran(start(save_gradients, twice, tmp_path / parallel, ranks=2))
        assert_same_gradients(tmp_path / "one", tmp_path / parallel)


def save_traced_gradients(config, path) -> dict[str, float]:
    """With torch's compiler up to the code it would generate, which takes minutes to make and is torch's own matter."""
    torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    SequenceConv.forward = SequenceConv.as_product  # as on a GPU
    return save_gradients(config, path)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["none", "ddp", "fsdp"])
def test_compiled_gradients_are_the_eager_ones(config, tmp_path, parallel):
    config = with_loop(config.model_copy(update=KINDS["mean_flow"]), parallel=parallel)
    ranks = None if parallel == "none" else 2
    assert_ran(start(save_gradients, config, tmp_path / "eager", ranks=ranks))
    assert_ran(start(save_traced_gradients, with_loop(config, compile=True), tmp_path / "compiled", ranks=ranks))
    assert_same_gradients(tmp_path / "eager", tmp_path / "compiled")


@pytest.mark.slow
def test_compiled_student_and_critic_have_the_eager_gradients(config, tmp_path):
    """Four networks, compiled, in two modes; none falls back to eager code for having been made too often."""
    export = lively_export(config, tmp_path / "base")
    objective = ObjectiveConfig(kind="distribution_matching", teacher=str(export), matching=MatchingConfig(rehearsal=0.25))
    config = config.model_copy(update={"objective": objective, "init_from": str(export)})
    assert_ran(start(save_gradients, config, tmp_path / "eager"))
    assert_ran(start(save_traced_gradients, with_loop(config, compile=True), tmp_path / "compiled"))
    assert_same_gradients(tmp_path / "eager", tmp_path / "compiled", within=5e-4)


# ---------------------------------------------------------------- states


class Act(GeneratorTask):
    """Does `act` on rank `on` before it computes step `at`."""

    def __init__(self, config, device, *, act, on, at):
        super().__init__(config, device)
        self.act, self.on, self.at = act, on, at

    def step(self, step, progress, update):
        if step == self.at and distributed.rank() in self.on:
            self.act(self)
        return super().step(step, progress, update)


def run_with(act, on, at, config, folder, until=None):
    """`run`, with something happening on ranks `on` before step `at`."""
    with process_group(torch.device("cpu"), config.loop.rank_timeout):
        Loop(Act(config, "cpu", act=act, on=on, at=at), config, folder).run(until=until, progress_bar=False)


def die(task):
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_stop(task):
    os.kill(os.getpid(), signal.SIGTERM)


def spoil(task):
    batch, x, draws = task.draw(task.at)
    task.draw = lambda step: (batch, x * float("nan"), draws)


def refuse(task):
    raise InputError("no such file: here")


def resumed_state(config, folder, path):
    """What a run continues with, put together and written to `path`."""
    with process_group(torch.device("cpu"), 10.0):
        loop = Loop(GeneratorTask(config), config, folder)
        loop.resume()
        tensors = {name: whole(value).clone() for name, value in loop.tensors().items()}
        if distributed.is_main():
            save_weights(path, tensors)
        return loop.step


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ten_steps_equal_six_and_a_kill_and_four(config, tmp_path, parallel):
    """All processes are killed in step 8, in the middle of an epoch; the last state is of step 6."""
    config = with_loop(config, parallel=parallel, save_every=3)
    assert outcomes(start(run, config, tmp_path / "whole", ranks=2)) == [None, None]
    assert outcomes(start(run_with, die, (0, 1), 7, config, tmp_path / "killed", ranks=2)) == [-signal.SIGKILL] * 2
    assert step_of(tmp_path / "killed") == 6
    assert outcomes(start(run, config, tmp_path / "killed", ranks=2)) == [None, None]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert len(list((tmp_path / "whole" / "state").glob("*.safetensors"))) == 2


def test_a_state_can_be_read_by_any_number_of_processes(config, tmp_path):
    two, one = with_loop(config, parallel="fsdp"), with_loop(config, parallel="none", accumulate=2)
    assert outcomes(start(run, two, tmp_path / "by two", 6, ranks=2)) == [None, None]
    run(one, tmp_path / "by one", 6)
    assert resumed_state(one, tmp_path / "by two", tmp_path / "read") == 6
    assert_equal(load_weights(tmp_path / "read"), state_of(tmp_path / "by two"))
    assert outcomes(start(resumed_state, two, tmp_path / "by one", tmp_path / "read", ranks=2)) == [6, 6]
    assert_equal(load_weights(tmp_path / "read"), state_of(tmp_path / "by one"))
    run(one, tmp_path / "by two")
    run(one, tmp_path / "by one")
    a, b = state_of(tmp_path / "by two"), state_of(tmp_path / "by one")
    for name in a:
        assert torch.dist(a[name], b[name]) <= 1e-3 * a[name].norm(), name
    # What two processes gathered of averages and held-out clips is what one would have written.
    early = Snapshot(5, 0.10).name
    a, b = (load_weights(tmp_path / folder / "snapshots" / early) for folder in ("by two", "by one"))
    for name in a:
        assert torch.dist(a[name].float(), b[name].float()) <= 2e-3 * b[name].float().norm(), name
    a, b = (next(row for row in rows(tmp_path / folder) if "held_out/error" in row) for folder in ("by two", "by one"))
    assert a == pytest.approx(b, rel=1e-2)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert [name for name, value in a.items() if not torch.equal(value, b[name])] == []


def test_a_signal_to_one_process_stops_all_at_the_same_step(config, tmp_path):
    config = with_loop(config, parallel="ddp")
    assert outcomes(start(run_with, ask_to_stop, (1,), 2, config, tmp_path / "run", ranks=2)) == [None, None]
    assert step_of(tmp_path / "run") == 3


def run_in_a_row(config, folders) -> None:
    with process_group(torch.device("cpu"), 10.0):
        for folder in folders:
            run(config, folder)


def test_runs_in_a_row_stay_in_one_group(config, tmp_path):
    config = with_loop(config, parallel="ddp", steps=3)
    folders = [tmp_path / "first", tmp_path / "second"]
    assert outcomes(start(run_in_a_row, config, folders, ranks=2)) == [None, None]
    assert_same_run(*folders)


def test_torchrun_and_the_command_line_make_the_same_run(config, tmp_path):
    config = with_loop(config, parallel="ddp")
    assert outcomes(start(run, config, tmp_path / "whole", ranks=2)) == [None, None]
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for until in (["--until", "6"], []):
        command = [
            *torchrun,
            "train.py",
            "--config",
            tmp_path / "config.yaml",
            "-o",
            tmp_path / "run",
            "--device",
            "cpu",
            "--quiet",
            *until,
        ]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("lost", [0, 1])
def test_a_dead_process_ends_the_others_and_is_named(config, tmp_path, lost):
    config = with_loop(config, parallel="ddp", rank_timeout=2.0)
    processes = start(run_with, die, (lost,), 3, config, tmp_path / "run", ranks=2)
    assert processes[lost].outcome() == -signal.SIGKILL
    began = time.monotonic()
    told = processes[1 - lost].outcome()
    assert time.monotonic() - began < 12
    assert isinstance(told, RankLost), told
    assert f"rank {lost} (" in str(told)


def test_a_process_that_fails_ends_the_others_with_its_words(config, tmp_path):
    config = with_loop(config, parallel="fsdp", rank_timeout=5.0)
    own, other = outcomes(start(run_with, refuse, (0,), 3, config, tmp_path / "run", ranks=2))
    assert isinstance(own, InputError)
    assert isinstance(other, RankLost), other
    assert "rank 0 (" in str(other)
    assert "InputError: no such file: here" in str(other)


def test_nan_on_one_process_stops_all_with_the_ids(config, tmp_path):
    config = with_loop(config, parallel="ddp")
    found = outcomes(start(run_with, spoil, (1,), 3, config, tmp_path / "run", ranks=2))
    assert all(isinstance(one, TrainingDiverged) for one in found), found
    assert str(found[0]) == str(found[1])
    order = epoch_order(11, 4, 3, config.loop.seed)
    assert str(found[0]).endswith(f"batch: train{order[1]}, train{order[3]}")


@pytest.mark.parametrize(
    ("change", "told"),
    [({"parallel": "none"}, "loop.parallel 'none'"), ({"parallel": "ddp", "batch_size": 3}, "multiple of 2")],
)
def test_what_several_processes_cannot_do_is_refused(config, tmp_path, change, told):
    for found in outcomes(start(run, with_loop(config, **change), tmp_path / "run", ranks=2)):
        assert isinstance(found, InputError | RankLost)
        assert told in str(found)


def test_half_of_torchruns_environment_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    for size in (None, "two", "2"):
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
            monkeypatch.setenv("LOCAL_RANK", "0")
        with pytest.raises(InputError, match="WORLD_SIZE"):
            Environment.read()
