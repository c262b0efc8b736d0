"""Metrics against their closed forms."""

import pytest
import torch
from fakes import normals

from meanaudio.evaluation.latents import held_out_distance, summary
from meanaudio.evaluation.metrics import frechet_distance


def test_the_frechet_distance_of_diagonal_normals_is_the_sum_over_axes():
    mean_a, mean_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 2.0, 3.0])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 1.0])
    found = frechet_distance(mean_a, (std_a**2).diag(), mean_b, (std_b**2).diag())
    assert found == pytest.approx(float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()), abs=1e-5)


def test_the_frechet_distance_is_zero_to_itself_symmetric_and_turns_with_the_axes():
    a, b = (normals(5, 5, seed=seed).double() for seed in (0, 1))
    a, b, zero = a @ a.T, b @ b.T, torch.zeros(5)
    turn = torch.linalg.qr(normals(5, 5, seed=2).double())[0]
    assert frechet_distance(zero, a, zero, a) == pytest.approx(0, abs=1e-9)
    forward = frechet_distance(zero, a, zero, b)
    assert forward > 0.1
    assert frechet_distance(zero, b, zero, a) == pytest.approx(forward)
    assert frechet_distance(zero, turn @ a @ turn.T, zero, turn @ b @ turn.T) == pytest.approx(forward)


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
