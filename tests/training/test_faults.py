"""Runs that are killed, that find the disk full, or that meet another config: what is left is whole, and the rest follows from it."""

import os
import random
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from runs import assert_same_run, outcomes, rows, run, start, step_of, tiny_run, with_loop

from meanaudio.checkpoint import load_weights
from meanaudio.errors import InputError, RankLost
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.log import read_notes
from meanaudio.training.loop import Loop
from meanaudio.training.posthoc import list_snapshots
from meanaudio.training.state import find_training_state


@pytest.fixture
def config(tmp_path):
    return tiny_run(tmp_path)


def timed(config, folder) -> tuple[float, float]:
    """`run`; the process's CPU seconds before and after."""
    before = time.process_time()
    run(config, folder)
    return before, time.process_time()


def run_and_die_after(seconds: float, config, folder) -> None:
    """`run`, killed when the process has used so much CPU time: an independent clock, whatever else the machine does."""

    def watch() -> None:
        while time.process_time() < seconds:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    run(config, folder)


def test_ten_kills_at_random_moments_change_nothing(config, tmp_path):
    """More than twenty with those of test_prepare_faults.py. A run that ends before it is killed is compared and begun anew."""
    config = with_loop(config, steps=60, save_every=3, sample_every=10)
    [(before, after)] = outcomes(start(timed, config, tmp_path / "whole"))
    random_moments, kills, folder = random.Random(0), 0, tmp_path / "killed-0"
    while kills < 10:  # on average a tenth of the run each
        seconds = before + random_moments.uniform(0.0, 0.2) * (after - before)
        [end] = outcomes(start(run_and_die_after, seconds, config, folder))
        assert end in (-signal.SIGKILL, None)
        kills += end == -signal.SIGKILL
        if end is None:
            assert_same_run(tmp_path / "whole", folder)
            folder = tmp_path / f"killed-{kills}"
    assert outcomes(start(run, config, folder)) == [None]
    assert_same_run(tmp_path / "whole", folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".state")] == []


def run_and_die_at_rename(number: int, config, folder: Path) -> None:
    """`run`, killed just before its rename of a folder number `number`."""
    rename, calls = Path.rename, []

    def counted(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) > number:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = counted
    run(config, folder)


@pytest.mark.parametrize(("number", "step"), [(1, 2), (2, 2), (3, 4)])
def test_a_kill_while_states_change_places_leaves_one(config, tmp_path, number, step):
    """The first state is renamed once; each later one after the one before it was put aside."""
    config = with_loop(config, save_every=2)
    assert outcomes(start(run, config, tmp_path / "whole")) == [None]
    assert outcomes(start(run_and_die_at_rename, number, config, tmp_path / "run")) == [-signal.SIGKILL]
    state = find_training_state(tmp_path / "run")
    assert load_facts(state)["step"] == step
    assert outcomes(start(run, config, tmp_path / "run")) == [None]  # all in children: they compute on as many threads
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def run_and_die_at_replace(name: str, config, folder: Path) -> None:
    """`run`, killed when a file of this name is written and not yet in its place."""
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        if Path(target).match(name):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = watched
    run(config, folder)


@pytest.mark.parametrize("name", ["snapshots/*", "best/best.json", "export/network.safetensors"])
def test_what_a_killed_process_had_begun_to_write_is_gone_when_the_next_ends(config, tmp_path, name):
    assert outcomes(start(run, config, tmp_path / "whole")) == [None]
    assert outcomes(start(run_and_die_at_replace, name, config, tmp_path / "run")) == [-signal.SIGKILL]
    [left] = (tmp_path / "run").rglob(".*.part")
    assert outcomes(start(run, config, tmp_path / "run")) == [None]
    assert not left.exists()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def load_facts(state):
    from meanaudio.checkpoint import read_json

    return read_json(state / "facts.json")


# ---------------------------------------------------------------- a full disk


def run_with_full_disk(config, folder, size: int) -> None:
    """`run`, in a process that the kernel lets write no file larger than `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    run(config, folder)


@pytest.mark.parametrize("ranks", [None, 2])
@pytest.mark.parametrize("size", [40_000, 3_000_000])
def test_a_full_disk_leaves_the_state_before_and_says_so(config, tmp_path, ranks, size):
    """Snapshots and exports are the first not to fit, then states; an export is made before its state."""
    config = with_loop(config, parallel="ddp" if ranks else "none", rank_timeout=5.0)
    assert set(outcomes(start(run, config, tmp_path / "whole", ranks=ranks))) == {None}
    assert set(outcomes(start(run, config, tmp_path / "run", 4, ranks=ranks))) == {None}
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.safetensors") if path.parent.name != "export"}
    for found in outcomes(start(run_with_full_disk, config, tmp_path / "run", size, ranks=ranks)):
        assert isinstance(found, OSError | RankLost), found
        assert "File too large" in str(found)
        assert "untouched" in str(found)
    assert step_of(tmp_path / "run") == 4
    assert {path: path.read_bytes() for path in before} == before
    assert set(outcomes(start(run, config, tmp_path / "run", ranks=ranks))) == {None}
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_cannot_fit_says_so_before_it_starts(config, tmp_path):
    with pytest.raises(InputError, match=r"loop\.keep_bytes = 1e\+03: states and exports of this run take"):
        run(with_loop(config, keep_bytes=1000.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_disk_budget_is_kept_by_storing_fewer_snapshots(config, tmp_path):
    run(config, tmp_path / "free")
    assert len(list_snapshots(tmp_path / "free")) == 20  # two averages after each of 10 steps
    weights = sum(value.numel() for value in load_weights(tmp_path / "free" / "export" / "network.safetensors").values())
    # Two states of the weights, AdamW's two averages and two more; three exports; three times two snapshots in 16 bits; a little room.
    budget = weights * 4 * (2 * 5 + 3) + weights * 2 * 2 * 3 + 5000
    run(with_loop(config, keep_bytes=budget), tmp_path / "tight")
    assert [snapshot.step for snapshot in list_snapshots(tmp_path / "tight")] == [3, 3, 7, 7, 10, 10]
    weights = [path for path in (tmp_path / "tight").rglob("*.safetensors") if "vae" not in path.name]
    assert sum(path.stat().st_size for path in weights) <= budget


# ---------------------------------------------------------------- another config


def test_changes_are_allowed_if_one_says_so_and_are_in_the_log(config, tmp_path):
    run(config, tmp_path / "run", 6)
    faster = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 1e-2, "clip": 0.5})})
    with pytest.raises(InputError, match="optim.clip: 1.0 -> 0.5; optim.lr: 0.003 -> 0.01"):
        run(faster, tmp_path / "run")
    Loop(GeneratorTask(faster), faster, tmp_path / "run").run(progress_bar=False, allow_changes=True)
    assert read_notes(tmp_path / "run") == [{"step": 6, "note": "resumed with changes: optim.clip: 1.0 -> 0.5; optim.lr: 0.003 -> 0.01"}]
    run(config, tmp_path / "same")
    assert rows(tmp_path / "run")[:3] == rows(tmp_path / "same")[:3]
    assert rows(tmp_path / "run")[-1] != rows(tmp_path / "same")[-1]
    run(faster, tmp_path / "run")  # the state is of the new config now
    with pytest.raises(InputError, match="optim.lr: 0.01 -> 0.003"):
        run(config, tmp_path / "run")


def test_another_network_is_refused_even_so(config, tmp_path):
    run(config, tmp_path / "run", 2)
    wider = config.model_copy(update={"network": config.network.model_copy(update={"width": 64})})
    with pytest.raises(InputError, match="other tensors than this run's: average/0.05/audio_in"):
        Loop(GeneratorTask(wider), wider, tmp_path / "run").run(progress_bar=False, allow_changes=True)
    assert step_of(tmp_path / "run") == 2
