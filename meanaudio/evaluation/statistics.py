"""Mean and covariance of feature rows: one pass in float64 over rows that need not fit in memory, merged across processes, stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from meanaudio.checkpoint import load_weights, write_beside
from meanaudio.errors import InputError
from meanaudio.evaluation.metrics import frechet_distance

KEYS = ("count", "mean", "scatter")


@dataclass(frozen=True)
class FeatureStatistics:
    """count: rows seen. mean: [D]. scatter: [D, D], the sum of (row - mean)(row - mean)^T. float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(rows: Tensor) -> FeatureStatistics:
        """Of rows [N, D]. Raises InputError for NaN or infinite ones."""
        rows = rows.double()
        if not torch.isfinite(rows).all():
            raise InputError("features hold NaN or infinite numbers")
        mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
        return FeatureStatistics(len(rows), mean, (rows - mean).T @ (rows - mean))

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Of both sets of rows together; equal to one pass over all of them up to float64 rounding [Chan, Golub, LeVeque 1979]."""
        if self.mean.shape != other.mean.shape:
            raise InputError(f"statistics of {len(self.mean)} and of {len(other.mean)} dimensions cannot be merged")
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / count)
        return FeatureStatistics(count, self.mean + shift * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """Unbiased, [D, D]. Raises InputError for fewer than two rows."""
        if self.count < 2:
            raise InputError(f"a covariance of {self.count} row(s): at least 2 are needed")
        return self.scatter / (self.count - 1)

    def frechet_distance(self, other: FeatureStatistics) -> float:
        if self.mean.shape != other.mean.shape:
            raise InputError(f"features of {len(self.mean)} and of {len(other.mean)} dimensions cannot be compared")
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write as safetensors. facts: what the rows are of, so that they are never compared with others by mistake."""
        tensors = {"count": torch.tensor(self.count), "mean": self.mean.contiguous(), "scatter": self.scatter.contiguous()}
        write_beside(path, lambda p: save_file(tensors, p, metadata={"facts": json.dumps(facts, sort_keys=True)}))

    @staticmethod
    def load(path: Path) -> tuple[FeatureStatistics, dict[str, Any]]:
        """Statistics and their facts. Raises InputError if the file is missing, damaged or something else."""
        state = load_weights(path)
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
            count, mean, scatter = (state[key] for key in KEYS)
        except (KeyError, json.JSONDecodeError, SafetensorError) as error:
            raise InputError(f"{path}: holds no reference statistics ({error})") from None
        fits = mean.ndim == 1 and scatter.shape == (len(mean), len(mean)) and mean.dtype == scatter.dtype == torch.float64
        if count.numel() != 1 or not fits or not isinstance(facts, dict):
            raise InputError(f"{path}: holds no reference statistics")
        return FeatureStatistics(int(count), mean, scatter), facts


class RunningStatistics:
    """Collects rows block by block; a block is merged when `rows_at_once` have come together, so that many small blocks cost little."""

    def __init__(self, dim: int, rows_at_once: int = 1024) -> None:
        self.rows_at_once = rows_at_once
        self.merged = FeatureStatistics.of(torch.zeros(0, dim))
        self.waiting: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """rows: [N, D]."""
        self.waiting.append(rows.double())
        if sum(map(len, self.waiting)) >= self.rows_at_once:
            self._merge()

    def finish(self) -> FeatureStatistics:
        if self.waiting:
            self._merge()
        return self.merged

    def _merge(self) -> None:
        self.merged = self.merged.merge(FeatureStatistics.of(torch.cat(self.waiting)))
        self.waiting = []
