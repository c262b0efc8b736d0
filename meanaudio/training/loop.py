"""The one training loop. A task draws batches and computes losses; the loop updates, averages, logs, saves and resumes.

Everything random is a pure function of (seed, step), and so is the learning rate: a resumed run repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from meanaudio.checkpoint import load_training_state, save_training_state, write_json
from meanaudio.config import OptimConfig, TrainConfig, parse
from meanaudio.errors import InputError, TrainingDiverged
from meanaudio.training.ema import PowerEMA
from meanaudio.training.log import RunLog

Update = Callable[[str, Tensor, list[str]], None]


class Task(Protocol):
    """What the loop needs to know of a training task.

    networks: everything trained, by name; each gets its own AdamW. averaged: the one whose EMA is evaluated and exported.
    """

    networks: dict[str, nn.Module]
    averaged: str

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        """Draw batch number `step`, call update(name, scalar loss, ids) once a network, return numbers to log."""
        ...

    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Write samples and pictures of the averaged network into `folder`; return held-out numbers."""
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
    """Runs `task` as `config` says, in `folder`: log.jsonl, state.pt, samples/<step>/, export/."""

    def __init__(self, task: Task, config: TrainConfig, folder: Path) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.optimizers = {
            name: torch.optim.AdamW(
                network.parameters(), lr=config.optim.lr, betas=config.optim.betas, weight_decay=config.optim.weight_decay
            )
            for name, network in task.networks.items()
        }
        self.ema = PowerEMA(task.networks[task.averaged], config.optim.ema)
        self.step = 0
        self.stop = False
        self.gradient_norms: dict[str, float] = {}

    @property
    def state_path(self) -> Path:
        return self.folder / "state.pt"

    def update(self, name: str, loss: Tensor, ids: list[str]) -> None:
        """One optimiser step of network `name`, clipped. Raises TrainingDiverged before a weight is spoilt."""
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"step {self.step}: the loss of {name!r} is {loss.item()}; batch: {', '.join(ids)}")
        optimizer, network = self.optimizers[name], self.task.networks[name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optim, self.step, self.config.loop.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.config.optim.clip)
        if not torch.isfinite(norm):
            raise TrainingDiverged(f"step {self.step}: the gradient of {name!r} is {norm.item()}; batch: {', '.join(ids)}")
        optimizer.step()
        self.gradient_norms[name] = norm.item()

    def save(self) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "config": self.config.model_dump(mode="json"),
            "networks": {name: network.state_dict() for name, network in self.task.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": self.ema.network.state_dict(),
        }
        save_training_state(self.state_path, state)

    def resume(self) -> bool:
        """Continue from the folder's state if there is one. Raises InputError if it was made with another config."""
        if not self.state_path.exists():
            return False
        state = load_training_state(self.state_path)
        earlier = parse(TrainConfig, state["config"], str(self.state_path))  # fills in keys that are newer than the state
        before, now = _flatten(earlier.model_dump(mode="json")), _flatten(self.config.model_dump(mode="json"))
        # How often to log, sample and save does not change what is computed.
        free = {"loop.log_every", "loop.sample_every", "loop.save_every"}
        changed = [f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in now.keys() | before.keys() if before.get(k) != now.get(k)]
        changed = [line for line in changed if line.split(":")[0] not in free]
        if changed:
            raise InputError(f"{self.folder} was started with another config; use a new folder or undo: {'; '.join(sorted(changed))}")
        for name, network in self.task.networks.items():
            network.load_state_dict(state["networks"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        self.ema.network.load_state_dict(state["ema"])
        self.step = state["step"]
        return True

    def run(self, *, until: int | None = None, progress_bar: bool = True) -> None:
        """Train to the config's last step (or `until`), resuming first. SIGINT and SIGTERM save and return."""
        loop = self.config.loop
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        write_json(self.folder / "train_config.json", self.config.model_dump(mode="json"))
        last = loop.steps if until is None else min(until, loop.steps)
        log = RunLog(self.folder, from_step=self.step)
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        bar = tqdm(total=loop.steps, initial=self.step, disable=not progress_bar, unit="step", dynamic_ncols=True, mininterval=5)
        try:
            began, counted = time.perf_counter(), self.step
            while self.step < last and not self.stop:
                logs = self.task.step(self.step, self.step / loop.steps, self.update)
                self.step += 1
                self.ema.update(self.task.networks[self.task.averaged], self.step)
                bar.update()
                if self.step % loop.log_every == 0 or self.step == last:
                    seconds = (time.perf_counter() - began) / (self.step - counted)
                    rate = learning_rate(self.config.optim, self.step - 1, loop.steps)
                    norms = {f"gradient_norm/{name}": norm for name, norm in self.gradient_norms.items()}
                    log.write(self.step, {**logs, **norms, "learning_rate": rate, "seconds_per_step": seconds})
                    began, counted = time.perf_counter(), self.step
                sampling, saving = self.step % loop.sample_every == 0, self.step % loop.save_every == 0
                if sampling or self.step == loop.steps:
                    found = self.task.evaluate(self.ema.network, self.folder / "samples" / f"{self.step:07d}")
                    log.write(self.step, {f"held_out/{k}": v for k, v in found.items()})
                if saving or self.step == last:
                    self.save()
                    self.task.export(self.ema.network, self.folder / "export")
                if sampling or saving:
                    began, counted = time.perf_counter(), self.step
            if self.stop:
                self.save()
        finally:
            bar.close()
            log.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self.stop = True


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
