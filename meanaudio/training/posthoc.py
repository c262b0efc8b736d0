"""Any average of the weights, after the run (Karras et al., arXiv 2312.02696, section 3.2).

A run stores snapshots of a few power-function averages. The shares that each gives to the run's steps are known, so the shares of
another average are fitted by least squares, and the snapshots added up in that proportion.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meanaudio.checkpoint import WORDS_FILE, load_weights, read_json, save_weights
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE
from meanaudio.config import TrainConfig, parse
from meanaudio.errors import InputError
from meanaudio.evaluation.judge import JUDGE_FILE
from meanaudio.models.lora import LORA_FILE
from meanaudio.models.scorer import SCORER_FILE
from meanaudio.models.tagger import TAGGER_FILE
from meanaudio.models.transformer import NETWORK_FILE
from meanaudio.training.ema import gamma_of

SNAPSHOTS = "snapshots"  # folder of a run
# by task, in the run's export/
TRAINED_FILE = {
    "generator": NETWORK_FILE,
    "vae": VAE_FILE,
    "vocoder": VOCODER_FILE,
    "decoder": VAE_FILE,
    "tagger": TAGGER_FILE,
    "scorer": SCORER_FILE,
    "judge": JUDGE_FILE,
}


@dataclass(frozen=True, order=True)
class Snapshot:
    """An average of relative width `sigma_rel` as it stood after optimiser step `step`."""

    step: int
    sigma_rel: float

    @property
    def name(self) -> str:
        return f"{self.step:07d}-{self.sigma_rel:g}.safetensors"


def snapshot_steps(steps: int, count: int) -> set[int]:
    """`count` steps, evenly spaced, the last one among them."""
    return {round(steps * i / count) for i in range(1, count + 1)} - {0} if count else set()


def save_snapshot(run: Path, snapshot: Snapshot, averages: dict[str, Tensor]) -> None:
    """In 16 bits: 11 of precision, more than bf16 inference sees of the sum."""
    save_weights(run / SNAPSHOTS / snapshot.name, averages, torch.float16)


def list_snapshots(run: Path) -> list[Snapshot]:
    found = []
    for path in sorted((run / SNAPSHOTS).glob("*.safetensors")):
        step, _, sigma = path.stem.partition("-")
        try:
            found.append(Snapshot(int(step), float(sigma)))
        except ValueError:
            raise InputError(f"{path}: not a snapshot's name; they look like {Snapshot(400, 0.05).name}") from None
    return found


def shares(sigma_rel: float, step: int, first: int, last: int) -> np.ndarray:
    """Shares of steps first+1 ... last in the average after `step`: exactly what `PowerEMA` gives them; zero after `step`."""
    edges = np.minimum(np.arange(first, last + 1, dtype=np.float64) / step, 1)
    return np.diff(edges ** (gamma_of(sigma_rel) + 1))


def fit(snapshots: Sequence[Snapshot], sigma_rel: float, step: int, chunk: int = 8192) -> tuple[np.ndarray, float]:
    """Weights, one a snapshot and 1 in sum, of the nearest sum to the average (`sigma_rel`, `step`); and the error's relative size.

    Least squares over all steps; a QR decomposition that takes in the steps chunk by chunk keeps it exact and small.
    """
    *others, base = snapshots  # all shares are told as differences from one snapshot's: that one takes what the others leave of 1
    end = max(snapshot.step for snapshot in snapshots)
    triangle: np.ndarray = np.empty((0, len(snapshots)))
    size = 0.0
    for first in range(0, end, chunk):
        last = min(first + chunk, end)
        wanted, left_over = shares(sigma_rel, step, first, last), shares(base.sigma_rel, base.step, first, last)
        rows = [shares(snapshot.sigma_rel, snapshot.step, first, last) - left_over for snapshot in others]
        triangle = np.linalg.qr(np.vstack([triangle, np.stack([*rows, wanted - left_over], 1)]), mode="r")  # type: ignore[assignment]
        size += (wanted**2).sum()
    left, right = triangle[:, :-1], triangle[:, -1]
    weights = np.linalg.lstsq(left, right, rcond=None)[0] if others else np.empty(0)
    return np.append(weights, 1 - weights.sum()), float(np.linalg.norm(left @ weights - right) / size**0.5)


def reconstruct(run: Path, sigma_rel: float, out: Path, *, step: int | None = None) -> str:
    """Write to `out` the run's export with the average of width `sigma_rel` after `step` (the last snapshot's if None); a line that tells.

    Raises InputError if the run has no snapshots, if they are damaged, or if no average has this width.
    """
    if not 0 < sigma_rel < 0.28:
        raise InputError(f"sigma-rel {sigma_rel} must lie between 0 and 0.28")
    config = parse(TrainConfig, read_json(run / "train_config.json"), str(run / "train_config.json"))
    snapshots = list_snapshots(run)
    if not snapshots:
        raise InputError(f"{run}: no snapshots of averages; they need optim.ema_snapshots > 0 and a run that reached one")
    last = max(snapshots).step
    step = last if step is None else step
    if not 0 < step <= last:
        raise InputError(f"step {step} must lie between 1 and {last}, the last snapshot's")
    if out.resolve() in (run.resolve(), (run / "export").resolve()):
        raise InputError(f"{out} is the run's own; name a new folder")
    weights, error = fit(snapshots, sigma_rel, step)

    file = LORA_FILE if config.lora is not None else TRAINED_FILE[config.task]
    total = load_weights(run / "export" / file)  # what is not averaged, such as statistics, stays as the export has it
    averaged: dict[str, Tensor] = {}
    for weight, snapshot in zip(weights, snapshots, strict=True):
        for key, value in load_weights(run / SNAPSHOTS / snapshot.name).items():
            averaged[key] = averaged.get(key, 0) + float(weight) * value.float()
    if unknown := sorted(averaged.keys() - total.keys()):
        raise InputError(f"{run / SNAPSHOTS}: {unknown[0]!r} is no weight of {run / 'export' / file}")
    shutil.copytree(run / "export", out, ignore=shutil.ignore_patterns(file, WORDS_FILE), dirs_exist_ok=True)
    save_weights(out / file, total | averaged)
    return f"{out}: sigma_rel {sigma_rel:g} after step {step}, from {len(snapshots)} snapshots; relative error of the fit {error:.1e}"
