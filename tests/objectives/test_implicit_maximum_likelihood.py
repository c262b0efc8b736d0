"""Implicit maximum likelihood: one noise makes the mean of all recordings, several cover them; the nearest output alone learns.
What is rehearsed stays."""

import pytest
import torch
from fakes import LATENT_DIM, random_text
from hypothesis import given
from hypothesis import strategies as st
from test_distribution_matching import Affine
from test_objectives import LENGTH, NULL, TEXT, network

from meanaudio.config import ObjectiveConfig
from meanaudio.objectives import Objective
from meanaudio.objectives.one_step import rehearsing_rows


def config(noises: int, text_dropout: float = 0.0, **changes) -> ObjectiveConfig:
    return ObjectiveConfig(kind="implicit_maximum_likelihood", noises=noises, text_dropout=text_dropout, **changes)


def drawn(objective, shape, seed=0):
    return objective.draw(shape, progress=0.0, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("noises", "least", "most"), [(1, -0.15, 0.15), (4, 0.8, 1.2)])
def test_several_noises_keep_the_deviation_that_regression_loses(noises, least, most):
    """Recordings are normal with mean 0.5 and deviation 1, and noise tells nothing of them."""
    objective, student, text = Objective(config(noises)), Affine(-1.0, 0.5), random_text([1] * 256)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    for step in range(300):
        x = 0.5 + torch.randn(256, 1, 1, generator=torch.Generator().manual_seed(1000 + step))
        loss = objective.loss(student, x, text, NULL, drawn(objective, x.shape, step), progress=0.0)
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        optimizer.step()
    assert student.mean.item() == pytest.approx(0.5, abs=0.1)
    assert least < student.std.item() < most


def test_the_loss_is_the_least_of_all_distances():
    objective, student = Objective(config(4)), Affine(0.2, 0.9)
    x = torch.randn(6, LENGTH, LATENT_DIM)
    draws = drawn(objective, x.shape)
    noises = torch.cat([draws.noise[:, None], draws.others], 1)
    distances = (0.2 + 0.9 * noises - x[:, None]).square().flatten(2).mean(2)
    loss = objective.loss(student, x, random_text([1] * 6), NULL, draws, progress=0.0)
    torch.testing.assert_close(loss.per_sample, distances.amin(1))
    assert loss.logs["typical"] == pytest.approx(distances.mean().item())
    assert loss.logs["error"] == pytest.approx(loss.per_sample.mean().item())


def test_rows_are_drawn_the_same_in_any_part_of_a_batch():
    objective = Objective(config(3))
    whole = drawn(objective, (4, LENGTH, LATENT_DIM))
    assert whole.others.shape == (4, 2, LENGTH, LATENT_DIM)
    net, x = network(), torch.randn(4, LENGTH, LATENT_DIM)
    together = objective.loss(net, x, TEXT, NULL, whole, progress=0.0).per_sample
    alone = torch.cat(
        [objective.loss(net, x[i : i + 1], TEXT[i : i + 1], NULL, whole[i : i + 1], progress=0.0).per_sample for i in range(4)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_rows_that_lose_their_text_learn_without():
    objective, net, x = Objective(config(2, text_dropout=0.999999)), network(), torch.randn(4, LENGTH, LATENT_DIM)
    draws = drawn(objective, x.shape)
    assert not draws.keep.any()
    found = [objective.loss(net, x, text, NULL, draws, progress=0.0).per_sample for text in (TEXT, random_text([3] * 4))]
    torch.testing.assert_close(*found)


# ---------------------------------------------------------------- rehearsal


def recall(seeds):
    """Known prompts of four lengths, none of them in the batch."""
    return RECALLED[seeds % len(RECALLED)]


RECALLED = random_text([2, 4, 1, 3], seed=7)


@given(batch=st.integers(1, 64), share=st.floats(0.0, 1.0))
def test_a_share_of_the_rows_rehearses_but_at_least_one(batch, share):
    rows = rehearsing_rows(batch, share)
    assert rows.shape == (batch,)
    assert rows.sum() == (0 if share == 0 else max(1, round(batch * share)))
    assert rehearsing_rows(batch, 1.0).all()


def test_rehearsing_rows_add_their_distance_from_what_was_made_of_known_prompts():
    net, before, x = network(), network(width=48), torch.randn(4, LENGTH, LATENT_DIM)
    alone = Objective(config(2))
    objective = Objective(config(2, rehearsal=0.5, anchor=0.3), before=before, recall=recall)
    draws = drawn(objective, x.shape)
    rehearsing = draws.rehearsing
    assert 0 < rehearsing.sum() < 4
    loss = objective.loss(net, x, TEXT, NULL, draws, progress=0.0)
    without = alone.loss(net, x, TEXT, NULL, drawn(alone, x.shape), progress=0.0)
    text, ones = recall(draws.seeds), torch.ones(4)
    made, held = (n(draws.noise, ones, 0 * ones, n.condition(text)) for n in (net, before))
    forgotten = (made - held).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.per_sample, without.per_sample + 0.3 * forgotten * rehearsing, rtol=1e-4, atol=1e-5)
    assert loss.logs["forgotten"] == pytest.approx(forgotten[rehearsing].mean().item(), rel=1e-3)
    assert loss.logs["error"] == pytest.approx(without.logs["error"], rel=1e-4)
    gradients = torch.autograd.grad(loss.per_sample.sum(), list(net.parameters()), allow_unused=True)
    assert sum(g.abs().sum() for g in gradients if g is not None) > 0
    assert all(p.grad is None for p in before.parameters())


def test_who_has_not_moved_has_forgotten_nothing():
    net, x = network(), torch.randn(4, LENGTH, LATENT_DIM)
    objective = Objective(config(1, rehearsal=1.0), before=net, recall=recall)
    draws = drawn(objective, x.shape)
    assert draws.rehearsing.all()
    assert objective.loss(net, x, TEXT, NULL, draws, progress=0.0).logs["forgotten"] < 1e-10


def test_rehearsal_is_the_same_in_any_part_of_a_batch():
    net, x = network(), torch.randn(4, LENGTH, LATENT_DIM)
    objective = Objective(config(2, rehearsal=0.5), before=network(width=48), recall=recall)
    whole = drawn(objective, x.shape)
    together = objective.loss(net, x, TEXT, NULL, whole, progress=0.0).per_sample
    parts = [objective.loss(net, x[i::2], TEXT[i::2], NULL, whole[i::2], progress=0.0).per_sample for i in range(2)]
    torch.testing.assert_close(together, torch.stack(parts, 1).flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mean_flow", "rehearsal": 0.5}, "rehearsal is for implicit_maximum_likelihood, not mean_flow"),
        ({"kind": "implicit_maximum_likelihood", "rehearsed": "prompts.txt"}, "rehearsal is 0"),
        ({"kind": "implicit_maximum_likelihood", "rehearsal": 1.5}, "less than or equal to 1"),
    ],
)
def test_rehearsals_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**changes)
