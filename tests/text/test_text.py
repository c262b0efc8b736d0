"""Text encoders: the real MiniLM."""

import re

import pytest
import torch

from meanaudio.checkpoint import load_weights, save_weights
from meanaudio.errors import InputError
from meanaudio.text import ENCODERS, make_encoder
from meanaudio.text.minilm import load_bert


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


def test_states_are_those_of_transformers_bert(minilm):
    from transformers import BertModel

    captions = ["rain", "a very long sentence about a dog and a cat", "雨 ☔ é", ""]
    encodings = minilm.tokenizer.encode_batch(captions)
    tokens, mask = (torch.tensor([getattr(e, name) for e in encodings]) for name in ("ids", "attention_mask"))
    theirs = BertModel.from_pretrained(minilm.folder, local_files_only=True, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask).last_hidden_state * mask[..., None]
    torch.testing.assert_close(minilm(captions).sequence, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer.3.output.dense.bias": None}, "missing encoder.layer.3.output.dense.bias"),
        ({"embeddings.LayerNorm.weight": torch.ones(7)}, r"norm.weight \(7,\) instead of \(384,\)"),
    ],
)
def test_weights_of_another_bert_are_refused(minilm, tmp_path, change, message):
    weights = load_weights(minilm.folder / "model.safetensors", finite=False) | change
    save_weights(tmp_path / "model.safetensors", {k: v for k, v in weights.items() if v is not None})
    with pytest.raises(InputError, match=f"model.safetensors: weights of another.*{message}"):
        load_bert(tmp_path / "model.safetensors")


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
