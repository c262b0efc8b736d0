"""Arithmetic of metrics, on arrays that somebody else extracted. All in float64. Definitions and traps: docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from meanaudio.errors import InputError

KL_FLOOR = 1e-6  # added to the output's probabilities, as the field's suites do: one pair counts 13.8 at most
SPLITS, SPLIT_SEED = 10, 2020  # of the inception score, as everywhere


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Fréchet distance of two normals: |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2); means [D], covariances [D, D]."""
    return _distance_of_factors(mean_a.double(), _factor(cov_a), mean_b.double(), _factor(cov_b))


def frechet_distance_of_samples(a: Tensor, b: Tensor) -> float:
    """The same of the normals fitted to samples [N, D] and [M, D]; no D x D matrix is made, so it is quick where N and M are below D."""
    if min(len(a), len(b)) < 2:
        raise InputError(f"a Fréchet distance of {len(a)} and {len(b)} samples: at least 2 are needed on either side")
    (mean_a, factor_a), (mean_b, factor_b) = _centred(a), _centred(b)
    return _distance_of_factors(mean_a, factor_a, mean_b, factor_b)


def _centred(samples: Tensor) -> tuple[Tensor, Tensor]:
    mean = samples.double().mean(0)
    return mean, (samples.double() - mean) / (len(samples) - 1) ** 0.5


def _factor(cov: Tensor) -> Tensor:
    """F [R, D] of rank R with F^T F = cov; eigenvalues within rounding of zero are left out."""
    values, vectors = torch.linalg.eigh(cov.double())
    kept = values > values.max().clamp_min(0) * len(values) * torch.finfo(torch.float64).eps
    return (vectors[:, kept] * values[kept].sqrt()).T


def _distance_of_factors(mean_a: Tensor, a: Tensor, mean_b: Tensor, b: Tensor) -> float:
    """With A = a^T a and B = b^T b, A B has the squared singular values of a b^T as eigenvalues: their sum is tr (A B)^1/2."""
    cross = torch.linalg.svdvals(a @ b.T).sum() if len(a) and len(b) else torch.zeros(())
    return float((mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of samples [N, D] and [M, D] under (x . y / D + 1)^3; unbiased, so it may be below zero.

    The kernel inception distance's kernel, over all samples at once in place of random subsets. Its expectation does not depend on N.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"a kernel distance of {len(a)} and {len(b)} samples: at least 2 are needed on either side")
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def kl_divergences(reference: Tensor, made: Tensor, *, sigmoid: bool = False, floor: float = KL_FLOOR) -> Tensor:
    """KL(reference || made) of every pair of logits [N, K], [N].

    Probabilities are softmaxes. With `sigmoid` they are sigmoids that sum to anything, summed over classes all the same: the field's
    "KL sigmoid", which is no divergence and may be below zero.
    """
    p, log_p, log_q = _probabilities(reference, made, sigmoid, floor)
    return (p * (log_p - log_q)).sum(1)


def unrelated_kl(logits: Tensor, captions: Sequence[str], *, sigmoid: bool = False, floor: float = KL_FLOOR) -> float | None:
    """Mean KL(p_i || p_j) over all pairs of other captions: what outputs that ignore their text would get. None without such pairs."""
    p, log_p, log_q = _probabilities(logits, logits, sigmoid, floor)
    return _mean_of_unrelated((p * log_p).sum(1, keepdim=True) - p @ log_q.T, captions)


def unrelated_cosine(embeddings: Tensor, texts: Tensor, captions: Sequence[str]) -> float | None:
    """Mean cosine of embeddings [N, D] with the texts [N, D] of other captions. None without other captions."""
    return _mean_of_unrelated(_unit(embeddings) @ _unit(texts).T, captions)


def _probabilities(reference: Tensor, made: Tensor, sigmoid: bool, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """p, log p and log(q + floor), [N, K]."""
    reference, made = reference.double(), made.double()
    if sigmoid:
        return reference.sigmoid(), torch.nn.functional.logsigmoid(reference), (made.sigmoid() + floor).log()
    return reference.softmax(1), reference.log_softmax(1), (made.softmax(1) + floor).log()


def _mean_of_unrelated(values: Tensor, captions: Sequence[str]) -> float | None:
    number = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    codes = torch.tensor([number[c] for c in captions])
    other = codes[:, None] != codes[None]
    return float(values[other].mean()) if other.any() else None


def inception_score(logits: Tensor, *, splits: int = SPLITS, seed: int = SPLIT_SEED) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))) of logits [N, K]: mean and deviation over `splits` parts of a seeded shuffle. 1 ... K, higher is better.

    With fewer than `splits` rows every row is a part by itself and the score is 1.
    """
    order = np.random.RandomState(seed).permutation(len(logits))  # noqa: NPY002  the generator that published numbers used
    logits = logits.double()[torch.from_numpy(order)]
    p, log_p = logits.softmax(1), logits.log_softmax(1)
    splits, scores = min(splits, len(logits)), []
    for i in range(splits):
        part = slice(i * len(p) // splits, (i + 1) * len(p) // splits)
        marginal = p[part].mean(0, keepdim=True)
        scores.append((p[part] * (log_p[part] - marginal.log())).nan_to_num(0.0).sum(1).mean().exp())
    return float(torch.stack(scores).mean()), float(torch.stack(scores).std(correction=0))


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every pair of rows [N, D], [N]: a CLAP score is their mean over clips and captions."""
    return (_unit(a) * _unit(b)).sum(1)


def cosine_distances(embeddings: Tensor, captions: Sequence[str]) -> tuple[float | None, float | None]:
    """Mean cosine distance of embeddings [N, D] within a caption (diversity between seeds) and across captions; None without pairs."""
    distances = 1 - _unit(embeddings) @ _unit(embeddings).T
    across = _mean_of_unrelated(distances, captions)
    groups: dict[str, list[int]] = {}
    for k, caption in enumerate(captions):
        groups.setdefault(caption, []).append(k)
    within = [distances[i, j] for rows in groups.values() for i in rows for j in rows if i < j]
    return (float(torch.stack(within).mean()) if within else None), across


def near_duplicates(embeddings: Tensor, least: float) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of rows [N, D] whose cosine is at least `least`."""
    alike = torch.triu(_unit(embeddings) @ _unit(embeddings).T >= least, diagonal=1)
    return [(int(i), int(j)) for i, j in alike.nonzero()]


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.double(), dim=1)
