"""Arithmetic of metrics, on arrays that somebody else extracted. All in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Fréchet distance of two normals: |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2); means [D], covariances [D, D].

    tr (A B)^1/2 is the sum of the square roots of the eigenvalues of A^1/2 B A^1/2, which is symmetric.
    """
    mean_a, cov_a, mean_b, cov_b = (x.double() for x in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)
