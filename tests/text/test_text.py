"""Text encoders: the real MiniLM."""

import re

import pytest
import torch

from meanaudio.errors import InputError
from meanaudio.text import ENCODERS, make_encoder


@pytest.fixture(scope="module")
def minilm():
    return make_encoder("minilm", max_tokens=16)


def test_features_have_the_promised_shapes_and_hide_padding(minilm):
    text = minilm(["a dog barks", "heavy rain falls on a tin roof", ""])
    assert text.sequence.shape == (3, text.mask.shape[1], minilm.sequence_dim)
    assert text.pooled.shape == (3, minilm.pooled_dim)
    assert text.mask.sum(1).tolist() == [6, 9, 2]  # with the tokens for start and end
    assert text.sequence[~text.mask].abs().sum() == 0
    torch.testing.assert_close(text.pooled.square().mean(1), torch.ones(3))


def test_a_caption_is_the_same_alone_and_in_a_batch(minilm):
    together = minilm(["rain", "a very long sentence about a dog and a cat"])
    alone = minilm(["rain"])
    tokens = alone.sequence.shape[1]
    torch.testing.assert_close(together.sequence[:1, :tokens], alone.sequence, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.pooled[:1], alone.pooled, atol=1e-4, rtol=1e-4)


def test_like_captions_lie_nearer_than_unlike_ones(minilm):
    pooled = minilm(["a dog barks", "a puppy is barking", "rain falls on a roof"]).pooled
    cosines = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    assert cosines[0] > cosines[1] + 0.2


def test_a_long_caption_is_cut_with_a_warning(minilm):
    with pytest.warns(UserWarning, match=r"1 text\(s\) longer than 16 tokens"):
        text = minilm(["rain " * 100, "rain"])
    assert text.sequence.shape[1] == 16


def test_odd_characters_are_encoded(minilm):
    text = minilm(["雨 ☔ é", "\t\n", "\x00", "a\u202eb"])
    assert torch.isfinite(text.sequence).all()


def test_text_that_is_no_unicode_is_refused(minilm):
    with pytest.raises(InputError, match="udcff"):
        minilm(["rain \udcff"])


def test_an_unknown_encoder_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=f"'oracle'.*{re.escape(', '.join(ENCODERS))}"):
        make_encoder("oracle", max_tokens=16)
