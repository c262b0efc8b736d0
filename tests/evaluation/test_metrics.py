"""Metrics against their closed forms."""

import math

import numpy as np
import pytest
import torch
from fakes import normals
from hypothesis import given, settings
from hypothesis import strategies as st

from meanaudio.errors import InputError
from meanaudio.evaluation import metrics
from meanaudio.evaluation.latents import held_out_distance, summary
from meanaudio.evaluation.metrics import frechet_distance, frechet_distance_of_samples


def covariance(dim: int, rank: int, seed: int) -> torch.Tensor:
    a = normals(dim, rank, seed=seed).double()
    return a @ a.T / rank


def by_sqrtm(mean_a, cov_a, mean_b, cov_b) -> float:
    """The textbook formula with scipy's matrix square root."""
    linalg = pytest.importorskip("scipy.linalg")
    root = linalg.sqrtm((cov_a @ cov_b).numpy())
    return float((mean_a - mean_b).square().sum() + (cov_a + cov_b).trace() - 2 * np.trace(root).real)


# ---------------------------------------------------------------- Fréchet distance


def test_the_frechet_distance_of_diagonal_normals_is_the_sum_over_axes():
    mean_a, mean_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 2.0, 3.0])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 1.0])
    found = frechet_distance(mean_a, (std_a**2).diag(), mean_b, (std_b**2).diag())
    assert found == pytest.approx(float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()), abs=1e-5)


def test_the_frechet_distance_is_zero_to_itself_symmetric_and_turns_with_the_axes():
    a, b, zero = covariance(5, 5, 0), covariance(5, 5, 1), torch.zeros(5)
    turn = torch.linalg.qr(normals(5, 5, seed=2).double())[0]
    assert frechet_distance(zero, a, zero, a) == pytest.approx(0, abs=1e-9)
    forward = frechet_distance(zero, a, zero, b)
    assert forward > 0.1
    assert frechet_distance(zero, b, zero, a) == pytest.approx(forward)
    assert frechet_distance(zero, turn @ a @ turn.T, zero, turn @ b @ turn.T) == pytest.approx(forward)


@pytest.mark.parametrize("rank", [40, 64, 128])
def test_the_frechet_distance_equals_the_matrix_square_root(rank):
    """Also where fewer clips than dimensions make the covariances singular."""
    mean_a, mean_b = normals(64, seed=1).double(), normals(64, seed=2).double()
    cov_a, cov_b = covariance(64, rank, 3), 1.5 * covariance(64, rank, 4)
    if rank < 64:  # the textbook formula cannot take a root of a singular product; a little on the diagonal moves it by less than 1e-4
        cov_a, cov_b = (c + 1e-12 * torch.eye(64) for c in (cov_a, cov_b))
    expected = by_sqrtm(mean_a, cov_a, mean_b, cov_b)
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("n", "m"), [(30, 50), (300, 20), (200, 300)])
def test_samples_and_their_moments_have_one_frechet_distance(n, m):
    a, b = normals(n, 48, seed=1) * 2 + 1, normals(m, 48, seed=2)
    moments = [f(x.double()) for x in (a, b) for f in (lambda x: x.mean(0), lambda x: torch.cov(x.T))]
    assert frechet_distance_of_samples(a, b) == pytest.approx(frechet_distance(*moments), rel=1e-9)


def test_a_constant_set_has_a_distance_and_one_clip_has_none():
    a = normals(10, 4)
    constant = torch.ones(5, 4)
    expected = (a.double().mean(0) - 1).square().sum() + torch.cov(a.double().T).trace()
    assert frechet_distance_of_samples(a, constant) == pytest.approx(float(expected))
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance_of_samples(a, a[:1])


def test_few_clips_lift_the_frechet_distance_and_not_the_kernel_distance():
    """Both sets come from one distribution: the true distances are 0."""
    frechet, kernel = {}, {}
    for n in (20, 80, 320):
        sets = [(normals(n, 64, seed=2 * k), normals(n, 64, seed=2 * k + 1)) for k in range(20)]
        frechet[n] = sum(frechet_distance_of_samples(a, b) for a, b in sets) / 20
        kernel[n] = sum(metrics.kernel_distance(a, b) for a, b in sets) / 20
    assert frechet[20] > 2 * frechet[80] > 4 * frechet[320] > 0
    assert all(abs(value) < 0.02 for value in kernel.values())
    assert metrics.kernel_distance(normals(80, 64) + 0.5, normals(80, 64, seed=1)) > 0.5


def test_the_kernel_distance_is_the_mean_over_pairs():
    a, b = normals(4, 3), normals(5, 3, seed=1)

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_b = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(x, y) for x in a for y in b) / 20
    assert metrics.kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across, rel=1e-5)


# ---------------------------------------------------------------- Kullback-Leibler divergence


def logits_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_kl_is_its_sum_and_has_a_direction():
    p, q = [0.5, 0.25, 0.25], [0.8, 0.1, 0.1]
    forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    backward = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert metrics.kl_divergences(logits_of(p), logits_of(q), floor=0).item() == pytest.approx(forward)
    assert metrics.kl_divergences(logits_of(q), logits_of(p), floor=0).item() == pytest.approx(backward)
    assert abs(forward - backward) > 0.01


def test_kl_of_uniform_and_one_hot():
    uniform, one_hot = torch.zeros(1, 8), torch.tensor([[1000.0] + [0.0] * 7])
    assert metrics.kl_divergences(uniform, uniform, floor=0).item() == pytest.approx(0, abs=1e-12)
    assert metrics.kl_divergences(one_hot, uniform, floor=0).item() == pytest.approx(math.log(8))
    bound = -math.log(metrics.KL_FLOOR)  # without the floor it would be infinite
    assert metrics.kl_divergences(uniform, one_hot).item() == pytest.approx(7 / 8 * bound - math.log(8), rel=1e-3)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_kl_is_never_negative_and_adding_a_constant_changes_nothing(seed, scale):
    a, b = normals(3, 6, seed=seed) * scale, normals(3, 6, seed=seed + 1) * scale
    found = metrics.kl_divergences(a, b, floor=0)
    assert (found >= -1e-12).all()
    torch.testing.assert_close(metrics.kl_divergences(a + 3, b - 2, floor=0), found, rtol=1e-4, atol=1e-4)


def test_the_sigmoid_form_sums_over_classes_without_normalising():
    p, q = torch.tensor([[0.9, 0.2]]), torch.tensor([[0.6, 0.4]])
    expected = 0.9 * math.log(0.9 / 0.6) + 0.2 * math.log(0.2 / 0.4)
    assert metrics.kl_divergences(p.logit(), q.logit(), sigmoid=True).item() == pytest.approx(expected, abs=1e-5)
    assert metrics.kl_divergences(q.logit(), torch.tensor([[0.99, 0.99]]).logit(), sigmoid=True).item() < 0


def test_unrelated_pairs_are_those_of_other_captions():
    logits, captions = normals(4, 5), ["a", "b", "a", "c"]
    pairs = [(i, j) for i in range(4) for j in range(4) if captions[i] != captions[j]]
    one_by_one = [metrics.kl_divergences(logits[i : i + 1], logits[j : j + 1]).item() for i, j in pairs]
    assert metrics.unrelated_kl(logits, captions) == pytest.approx(sum(one_by_one) / len(pairs))
    texts = normals(4, 5, seed=1)
    one_by_one = [metrics.cosines(logits[i : i + 1], texts[j : j + 1]).item() for i, j in pairs]
    assert metrics.unrelated_cosine(logits, texts, captions) == pytest.approx(sum(one_by_one) / len(pairs))
    assert metrics.unrelated_kl(logits, ["a"] * 4) is None


# ---------------------------------------------------------------- inception score and the rest


def test_the_inception_score_is_1_where_all_are_alike_and_the_number_of_classes_where_each_is_sure():
    alike = normals(1, 6).expand(60, 6)
    assert metrics.inception_score(alike) == pytest.approx((1, 0), abs=1e-9)
    sure = 1000 * torch.eye(6).repeat(200, 1)
    mean, deviation = metrics.inception_score(sure, splits=1)
    assert mean == pytest.approx(6)
    assert deviation == 0
    assert metrics.inception_score(torch.zeros(60, 6))[0] == pytest.approx(1)
    assert metrics.inception_score(sure)[0] == pytest.approx(6, rel=0.04)  # a shuffled tenth does not hold all classes evenly


def test_the_inception_score_is_the_mean_over_shuffled_tenths():
    logits = normals(47, 5) * 3
    order = np.random.RandomState(2020).permutation(47)
    scores = []
    for k in range(10):
        p = logits.double().softmax(1).numpy()[order][k * 47 // 10 : (k + 1) * 47 // 10]
        scores.append(math.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
    assert metrics.inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)))
    assert metrics.inception_score(logits[:3])[0] == pytest.approx(1)  # every row by itself


def test_diversity_is_within_captions_and_spread_across():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    same, across = metrics.cosine_distances(torch.stack([x, 2 * x, y, -y]), ["a", "a", "b", "b"])
    assert same == pytest.approx((0 + 2) / 2)
    assert across == pytest.approx(1)
    assert metrics.cosine_distances(torch.stack([x, y]), ["a", "b"]) == (None, pytest.approx(1))
    assert metrics.cosine_distances(torch.stack([x, y]), ["a", "a"]) == (pytest.approx(1), None)


def test_near_duplicates_are_found_whatever_their_level():
    rows = torch.stack([normals(8), normals(8, seed=1), 0.1 * normals(8)])
    assert metrics.near_duplicates(rows, 0.9999) == [(0, 2)]


# ---------------------------------------------------------------- latents


def test_summaries_are_level_spread_and_change():
    latents = torch.tensor([[[0.0], [2.0], [0.0], [2.0]]])
    torch.testing.assert_close(summary(latents), torch.tensor([[1.0, (4 / 3) ** 0.5, 2.0]]))


def test_held_out_distances_know_a_match_from_chance():
    reference = normals(64, 20, 4) + normals(64, 1, 4, seed=1) * 3
    same = held_out_distance(reference, reference)
    assert same["frechet"] == pytest.approx(0, abs=1e-6)
    assert same["match"] == pytest.approx(0, abs=1e-6)
    shuffled = held_out_distance(reference.roll(1, 0), reference)
    assert shuffled["frechet"] == pytest.approx(0, abs=1e-6)
    assert shuffled["match"] == pytest.approx(1, abs=0.15)
    assert held_out_distance(reference + 1, reference)["frechet"] == pytest.approx(4, rel=1e-3)  # a shift of 1 in 4 channels
    assert held_out_distance(reference[:1], reference[:1] + 1).keys() == {"match"}
