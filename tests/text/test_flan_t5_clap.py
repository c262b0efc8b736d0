"""FLAN-T5 and CLAP, on tiny random ones: what they give, where their files are looked for, and what is said when one is missing."""

import shutil
from pathlib import Path

import pytest
import torch
from release_fakes import tiny_clap, tiny_t5, write_tokenizer
from safetensors.torch import load_file, save_file

from meanaudio.errors import InputError
from meanaudio.text import make_encoder

CAPTIONS = ["rain on the roof", "a dog barks", ""]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(folder of a checkpoint, the T5 encoder, the CLAP tower)"""
    folder = tmp_path_factory.mktemp("checkpoint")
    t5, clap = tiny_t5(folder / "flan_t5"), tiny_clap()
    clap.save_pretrained(folder / "clap")
    write_tokenizer(folder / "clap" / "tokenizer.json", ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    return folder, t5, clap


@pytest.fixture
def folder(models, tmp_path) -> Path:
    return Path(shutil.copytree(models[0], tmp_path / "checkpoint"))


def encoder(folder: Path, max_tokens: int = 77):
    return make_encoder("flan_t5+clap", max_tokens=max_tokens, folder=folder)


def test_features_are_those_of_transformers(models):
    folder, t5, clap = models
    text = encoder(folder)(CAPTIONS)
    assert text.sequence.shape == (3, 77, 48)
    assert text.mask.sum(1).tolist() == [5, 4, 1]
    pad, end = 0, 1
    ids = torch.full((1, 77), pad)
    ids[0, :4] = torch.tensor([4 + 1, 5 + 1, 6 + 1, end])  # "a dog barks": words stand after three special tokens
    expected = t5(input_ids=ids, attention_mask=(torch.arange(77)[None] < 4).long()).last_hidden_state
    torch.testing.assert_close(text.sequence[1:2], expected, atol=1e-5, rtol=1e-4)
    assert text.sequence[1, 4:].abs().sum() > 0  # the states at padding are T5's own
    ids = torch.full((1, 77), 1)
    ids[0, :5] = torch.tensor([0, 6, 7, 8, 2])
    expected = clap(input_ids=ids, attention_mask=(torch.arange(77)[None] < 5).long()).text_embeds
    torch.testing.assert_close(text.pooled[1:2], expected / expected.norm(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text.pooled.norm(dim=1), torch.ones(3))


def test_a_caption_is_the_same_alone_and_in_a_batch(models):
    encode = encoder(models[0])
    alone, together = encode(CAPTIONS[:1]), encode(CAPTIONS)[:1]
    torch.testing.assert_close(together.sequence, alone.sequence, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.pooled, alone.pooled, atol=1e-5, rtol=1e-4)


def test_a_long_caption_is_cut_with_a_warning(models):
    with pytest.warns(UserWarning, match=r"1 text\(s\) longer than 6 tokens"):
        text = encoder(models[0], max_tokens=6)(["rain " * 50, "wind"])
    assert text.mask.sum(1).tolist() == [6, 2]
    assert text.sequence.shape[1] == 6


def test_nothing_is_read_before_the_first_caption_and_a_folder_is_needed(tmp_path):
    encoder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="checkpoint's folder"):
        make_encoder("flan_t5+clap", max_tokens=77)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("flan_t5/model.safetensors", r"put model\.safetensors into .*flan_t5 .*google/flan-t5-large.*hf download"),
        ("flan_t5/tokenizer.json", r"put tokenizer\.json into .*flan_t5 .*google/flan-t5-large"),
        ("clap/tokenizer.json", r"put tokenizer\.json into .*clap .*FacebookAI/roberta-base"),
        ("clap/model.safetensors", r"put model\.safetensors into .*clap, by `meanaudio convert"),
    ],
)
def test_a_missing_file_is_named_with_its_place(folder, tmp_path, monkeypatch, file, told):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    (folder / file).unlink()
    with pytest.raises(InputError, match=told):
        encoder(folder)(["rain"])


def test_the_hub_cache_is_looked_into(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    snapshot = cache / "models--google--flan-t5-large" / "snapshots" / "0123"
    shutil.move(folder / "flan_t5", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert encoder(folder)(["rain"]).sequence.shape == (1, 77, 48)


@pytest.mark.parametrize("part", ["flan_t5", "clap"])
def test_damaged_and_incomplete_weights_are_refused(folder, part):
    path = folder / part / "model.safetensors"
    state = load_file(path)
    key = next(k for k in state if k.endswith(("SelfAttention.q.weight", "query.weight")) and not k.startswith("decoder"))
    save_file({k: v for k, v in state.items() if k != key}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"missing.* {key}"):
        encoder(folder)(["rain"])
    save_file(state | {key: torch.zeros(2, 2)}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=part):
        encoder(folder)(["rain"])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=part):
        encoder(folder)(["rain"])
    path.write_text("{}")
    (folder / part / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=part):
        encoder(folder)(["rain"])


def test_text_that_is_no_unicode_is_refused(models):
    with pytest.raises(InputError, match="udcff"):
        encoder(models[0])(["rain \udcff"])
