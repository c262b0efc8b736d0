"""The one training loop. A task draws batches and computes losses; the loop updates, averages, logs, saves and resumes.

Everything random is a pure function of (seed, step), and so is the learning rate: a resumed run repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from meanaudio import distributed
from meanaudio.checkpoint import read_json, remove_unfinished, require_space, write_json
from meanaudio.config import OptimConfig, TrainConfig, parse
from meanaudio.errors import InputError, TrainingDiverged
from meanaudio.training.ema import PowerEMA
from meanaudio.training.log import RunLog, mean_numbers, open_log
from meanaudio.training.parallel import whole
from meanaudio.training.posthoc import Snapshot, save_snapshot, snapshot_steps
from meanaudio.training.state import FACTS, changes, find_training_state, load_training_state, save_training_state

# update(name, losses): one optimiser step of a network. losses: scalars to be summed up, each with the ids of its rows; a loss is asked
# for only when the gradient of the one before it is done.
Update = Callable[[str, Iterable[tuple[Tensor, list[str]]]], None]


class Task(Protocol):
    """What the loop needs to know of a training task.

    networks: everything trained, by name; each gets its own AdamW. averaged: the one whose EMA is evaluated and exported.
    best: the held-out number that says which network was best: the lowest wins.
    """

    networks: dict[str, nn.Module]
    averaged: str
    best: str

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        """Draw batch number `step`, call `update` once or more a network, return numbers to log."""
        ...

    def blank(self) -> nn.Module:
        """A network like the averaged one, whole on this process; its weights will be replaced."""
        ...

    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Return held-out numbers of the averaged network. All processes call it; the main one writes samples and pictures to `folder`."""
        ...

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the averaged network as a self-describing checkpoint part."""
        ...


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimiser step `step` (0-based) of `steps`: linear warm-up times the decay's pure function of progress."""
    warmup = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    progress = step / steps
    if config.decay == "cosine":
        factor = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.decay == "steps":  # the paper's: a tenth at 80 % and again at 90 %
        factor = 0.1 ** ((progress >= 0.8) + (progress >= 0.9))
    else:
        factor = 1.0
    return config.lr * warmup * factor


class Loop:
    """Runs `task` as `config` says, in `folder`: log.jsonl, state/, samples/<step>/, snapshots/, export/ and best/."""

    def __init__(self, task: Task, config: TrainConfig, folder: Path) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.optimizers = {name: make_optimizer(network, config.optim) for name, network in task.networks.items()}
        self.averages = [PowerEMA(task.networks[task.averaged], sigma_rel) for sigma_rel in config.optim.ema]
        self.step = 0
        self.best: tuple[int, float] | None = None  # step and held-out number
        self.stop = False
        self.gradient_norms: dict[str, float] = {}

    # ---------------------------------------------------------------- one optimiser step

    def update(self, name: str, losses: Iterable[tuple[Tensor, list[str]]]) -> None:
        """One optimiser step of network `name`, clipped. Raises TrainingDiverged, on all processes, before a weight is spoilt."""
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optim, self.step, self.config.loop.steps)
        optimizer.zero_grad(set_to_none=True)
        seen: list[str] = []
        for loss, ids in losses:
            self._alarm(f"the loss of {name!r}", loss.item(), ids)
            loss.backward()
            seen += ids
        norm = whole(nn.utils.clip_grad_norm_(self.task.networks[name].parameters(), self.config.optim.clip)).item()
        self._alarm(f"the gradient of {name!r}", norm, seen)
        optimizer.step()
        self.gradient_norms[name] = norm

    def _alarm(self, what: str, value: float, ids: list[str]) -> None:
        if not distributed.any_rank(not math.isfinite(value)):
            return
        bad = [(value, ids) for value, ids in distributed.gather((value, ids)) if not math.isfinite(value)]
        names = ", ".join(name for _, ids in bad for name in ids)
        raise TrainingDiverged(f"step {self.step}: {what} is {bad[0][0]}; batch: {names}")

    # ---------------------------------------------------------------- state

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the training state, by name: the live ones, so that loading fills them."""
        found: dict[str, Tensor] = {}
        for name, network in self.task.networks.items():
            found |= {f"network/{name}/{key}": value for key, value in network.state_dict().items()}
            for key, parameter in network.named_parameters():
                state = self.optimizers[name].state.get(parameter, {})
                found |= {f"optimizer/{name}/{key}/{kind}": value for kind, value in state.items()}
        for ema in self.averages:
            found |= {f"average/{ema.sigma_rel:g}/{key}": value for key, value in ema.averages.items()}
        return {key: value if value.ndim else value.view(1) for key, value in found.items()}

    def save(self) -> None:
        facts = {"step": self.step, "best": self.best, "processes": distributed.size(), "config": self.config.model_dump(mode="json")}
        save_training_state(self.folder, self.tensors(), facts)

    def resume(self, *, allow_changes: bool = False) -> list[str]:
        """Continue from the folder's state if there is one; what the config changes is returned, or raised as InputError."""
        state = find_training_state(self.folder)
        if state is None:
            return []
        facts = read_json(state / FACTS)
        changed = changes(facts["config"], self.config, str(state))
        if changed and not allow_changes:
            raise InputError(
                f"{self.folder} was started with another config; use a new folder, undo, or say --allow-changes: {'; '.join(changed)}"
            )
        load_training_state(state, self.tensors())
        self.step, self.best = facts["step"], facts["best"] and tuple(facts["best"])
        if best_by(parse(TrainConfig, facts["config"], str(state))) != best_by(self.config):
            self.best = None  # a number of another kind: nothing to compare with
        return changed

    # ---------------------------------------------------------------- the run

    def run(self, *, until: int | None = None, progress_bar: bool = True, allow_changes: bool = False) -> None:
        """Train to the config's last step (or `until`), resuming first. SIGINT and SIGTERM save and return."""
        loop = self.config.loop
        snapshots = self._prepare_folder()
        changed = self.resume(allow_changes=allow_changes)
        if distributed.is_main():
            write_json(self.folder / "train_config.json", self.config.model_dump(mode="json"))
        last = loop.steps if until is None else min(until, loop.steps)
        log = open_log(self.folder, from_step=self.step)
        if changed:
            log.note(self.step, f"resumed with changes: {'; '.join(changed)}")
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        shown = progress_bar and distributed.is_main()
        bar = tqdm(total=loop.steps, initial=self.step, disable=not shown, unit="step", dynamic_ncols=True, mininterval=5)
        try:
            began, counted, stopping = time.perf_counter(), self.step, False
            while self.step < last and not stopping:
                logs = self.task.step(self.step, self.step / loop.steps, self.update)
                self.step += 1
                for ema in self.averages:
                    ema.update(self.task.networks[self.task.averaged], self.step)
                bar.update()
                stopping = distributed.any_rank(self.stop)  # the signal reaches each process at its own time
                if self.step % loop.log_every == 0 or self.step == last:
                    seconds = (time.perf_counter() - began) / (self.step - counted)
                    rate = learning_rate(self.config.optim, self.step - 1, loop.steps)
                    norms = {f"gradient_norm/{name}": norm for name, norm in self.gradient_norms.items()}
                    numbers = {**logs, **norms, "learning_rate": rate, "seconds_per_step": seconds}
                    log.write(self.step, mean_numbers(distributed.gather(numbers)))
                    began, counted = time.perf_counter(), self.step
                sampling, saving = self.step % loop.sample_every == 0, self.step % loop.save_every == 0
                if self.step in snapshots:
                    self._save_snapshots()
                if sampling or self.step == loop.steps:
                    self._evaluate(log)
                if saving or self.step == last:  # before the state, which says that this step is done with
                    self._export(self.averaged(), "export")
                if saving or self.step == last or stopping:
                    self.save()
                if sampling or saving:
                    began, counted = time.perf_counter(), self.step
        finally:
            bar.close()
            log.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self.stop = True

    def _prepare_folder(self) -> set[int]:
        """Make the run's folder, see that the disk has room for it, and say after which steps snapshots are stored.

        Raises InputError if the room, or `loop.keep_bytes`, is too small, or if the processes do not share the folder.
        """
        count, per_snapshot = self.config.optim.ema_snapshots, 2 * sum(a.numel() for e in self.averages for a in e.averages.values())
        network = sum(value.nbytes for value in self.task.networks[self.task.averaged].state_dict().values())
        # While it is written a new state or export stands beside the old one; best/ is a second export.
        needed = 2 * sum(value.nbytes for value in self.tensors().values()) + 3 * network
        limit = self.config.loop.keep_bytes
        if limit is not None:
            if limit < needed:
                raise InputError(f"loop.keep_bytes = {limit:.3g}: states and exports of this run take {needed:.3g} bytes without snapshots")
            count = min(count, int((limit - needed) / per_snapshot))
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.folder)
            if find_training_state(self.folder) is None:
                require_space(self.folder, needed + count * per_snapshot)
        distributed.barrier()
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: made by rank 0 and not seen by rank {distributed.rank()}; a run's folder must be shared")
        return snapshot_steps(self.config.loop.steps, count)

    # ---------------------------------------------------------------- what a run leaves

    def averaged(self) -> nn.Module:
        """The averaged network, whole. All processes call it."""
        network = self.task.blank()
        state = {**self.task.networks[self.task.averaged].state_dict(), **self.averages[0].averages}
        network.load_state_dict({key: whole(value) for key, value in state.items()})
        return network.eval().requires_grad_(False)

    def _save_snapshots(self) -> None:
        for ema in self.averages:
            if ema.sigma_rel == 0:
                continue
            averages = {key: whole(value) for key, value in ema.averages.items()}
            if distributed.is_main():
                save_snapshot(self.folder, Snapshot(self.step, ema.sigma_rel), averages)

    def _evaluate(self, log: RunLog) -> None:
        network, key = self.averaged(), self.config.loop.best or self.task.best
        samples = self.folder / "samples" / f"{self.step:07d}"
        found = self.task.evaluate(network, samples)
        log.show(self.step, samples)
        log.write(self.step, {f"held_out/{k}": v for k, v in found.items()})
        if key not in found:
            raise InputError(f"loop.best = {key!r} is none of the held-out numbers: {', '.join(found)}")
        if math.isfinite(found[key]) and (self.best is None or found[key] < self.best[1]):
            self.best = self.step, found[key]
            self._export(network, "best")
            if distributed.is_main():
                write_json(self.folder / "best" / "best.json", {"step": self.step, key: found[key]})

    def _export(self, network: nn.Module, name: str) -> None:
        if distributed.is_main():
            self.task.export(network, self.folder / name)


def best_by(config: TrainConfig) -> tuple[object, ...]:
    """What the held-out number that picks best/ depends on, and a run that goes on may change."""
    return config.loop.best, config.evaluation.extractor, config.evaluation.clips


def make_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW of what is trained in `network`. Its state exists from the start, so that there is always the same to save and to load."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    for p in trained:
        optimizer.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer
