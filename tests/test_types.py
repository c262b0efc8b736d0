"""Text features and posteriors as values: padding, mixing, joining, drawing."""

import pytest
import torch
from fakes import normals, random_text

from meanaudio.types import Gaussian, LatentBatch, TextFeatures, read_together


def same(a: TextFeatures, b: TextFeatures) -> bool:
    return torch.equal(a.sequence, b.sequence) and torch.equal(a.pooled, b.pooled) and torch.equal(a.mask, b.mask)


def test_padding_adds_masked_zeros_and_never_cuts():
    text = random_text([2, 3])
    padded = text.pad_to(5)
    assert padded.sequence.shape[1] == padded.mask.shape[1] == 5
    assert padded.mask.sum(1).tolist() == [2, 3]
    assert padded.sequence[:, 3:].abs().sum() == 0
    assert same(text.pad_to(1), text)


def test_rows_are_taken_from_one_or_the_other():
    ours, other = random_text([2, 3, 4]), random_text([6], seed=1)
    mixed = ours.where(torch.tensor([True, False, True]), other)
    assert len(mixed) == 3
    for i, source in enumerate((ours[0:1], other, ours[2:3])):
        assert same(mixed[i : i + 1], source.pad_to(6))
    batch = random_text([1, 1, 7], seed=2)
    assert same(ours.where(torch.zeros(3, dtype=torch.bool), batch), batch)


def test_joined_batches_are_padded_to_the_longest():
    a, b = random_text([2, 3]), random_text([5], seed=1)
    joined = TextFeatures.cat([a, b])
    assert joined.mask.sum(1).tolist() == [2, 3, 5]
    assert same(joined[:2], a.pad_to(5))
    assert same(joined[2:], b)


def test_texts_that_are_read_together_have_all_their_tokens_and_no_padding_between():
    first, second, third = (random_text([2, 5, 3], seed=k)[k : k + 1] for k in range(3))  # padded to 5 tokens each
    together = read_together(TextFeatures.cat([first, second, third]))
    assert together.mask.all()
    assert torch.equal(together.sequence[0], torch.cat([first.sequence[0, :2], second.sequence[0], third.sequence[0, :3]]))
    torch.testing.assert_close(together.pooled, first.pooled / 2 + (second.pooled + third.pooled) / 4)
    assert together.places[0].tolist() == [0, 1, *range(5), *range(3)]
    alone = read_together(first)
    assert same(alone.pad_to(5), first)
    assert alone.places.tolist() == [[0, 1]]


def test_texts_that_were_read_together_keep_their_places_beside_one_that_was_not():
    own = random_text([4], seed=3)
    together = read_together(TextFeatures.cat([random_text([2], seed=1), random_text([3], seed=2)]))
    both = TextFeatures.cat([own, together])
    assert both.places.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]
    assert both[1:].places.tolist() == together.places.tolist()
    mixed = both.where(torch.tensor([True, False]), own)
    assert mixed.places.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert both.where(torch.tensor([False, True]), own).places[1].tolist() == together.places[0].tolist()
    assert together.expand(2).pad_to(7).to(torch.float64).places.tolist() == [[0, 1, 0, 1, 2, 0, 0]] * 2


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_rows_are_picked_alike_from_all_three(index):
    text = random_text([2, 3, 4])
    picked = text[index]
    assert same(picked, TextFeatures(text.sequence[index], text.pooled[index], text.mask[index]))
    assert len(picked) == 2


def test_a_caption_expands_to_a_batch_and_casts_but_for_its_mask():
    text = random_text([3])
    wide = text.expand(4).to(torch.float64)
    assert wide.sequence.shape == (4, 3, 16)
    assert wide.pooled.dtype == torch.float64
    assert wide.mask.dtype == torch.bool


def test_draws_have_the_posteriors_mean_and_deviation():
    mean, std = normals(2, 3, 4), normals(2, 3, 4, seed=1).abs()
    batch = LatentBatch(mean, std, random_text([1, 1]), ["a", "b"])
    draws = torch.stack([batch.sample(torch.Generator().manual_seed(i)) for i in range(3000)])
    torch.testing.assert_close(draws.mean(0), mean, atol=0.15, rtol=0)
    torch.testing.assert_close(draws.std(0), std, atol=0.1, rtol=0.1)
    assert torch.equal(draws[5], Gaussian(mean, std).sample(torch.Generator().manual_seed(5)))
    assert torch.equal(Gaussian(mean, torch.zeros_like(mean)).sample(), mean)
