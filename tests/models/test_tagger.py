"""The tagger: any length in, one row of logits out, and folders that are refused."""

import pytest
import torch
from fakes import LATENT_DIM, fill, normals

from meanaudio.checkpoint import read_json, save_weights, write_json
from meanaudio.config import TaggerCheckpointConfig
from meanaudio.errors import InputError
from meanaudio.models.tagger import TAGGER_FILE, load_tagger, make_tagger

CONFIG = TaggerCheckpointConfig(codec_hash="a" * 64, classes=("dog", "rain", "bell"), latent_dim=LATENT_DIM, width=16, blocks=2)


@pytest.fixture
def folder(tmp_path):
    save_weights(tmp_path / TAGGER_FILE, fill(make_tagger(CONFIG), std=0.2).state_dict())
    write_json(tmp_path / "config.json", CONFIG.model_dump(mode="json"))
    return tmp_path


@pytest.mark.parametrize("length", [1, 2, 17, 200])
def test_any_length_gives_one_row_of_logits(folder, length):
    tagger = load_tagger(folder, {"a" * 64})
    logits = tagger(normals(2, length, LATENT_DIM))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()
    assert not logits.requires_grad
    assert tagger.classes == CONFIG.classes


def test_latents_are_normalised_by_the_stored_statistics(folder):
    tagger, x = load_tagger(folder, {"a" * 64}), normals(2, 9, LATENT_DIM)
    moved = load_tagger(folder, {"a" * 64})
    moved.mean += 3
    moved.std *= 2
    torch.testing.assert_close(moved((x - tagger.mean) / tagger.std * moved.std + moved.mean), tagger(x), atol=1e-5, rtol=1e-5)


def test_folders_of_another_codec_or_with_other_weights_are_refused(folder):
    with pytest.raises(InputError, match="hears latents of codec aaaaaaaaaaaa, this network makes those of bbbbbbbbbbbb"):
        load_tagger(folder, {"b" * 64})
    write_json(folder / "config.json", read_json(folder / "config.json") | {"classes": ["dog", "rain"]})
    with pytest.raises(InputError, match="weights of another network"):
        load_tagger(folder, {"a" * 64})
    write_json(folder / "config.json", read_json(folder / "config.json") | {"classes": ["dog"]})
    with pytest.raises(InputError, match="classes"):
        load_tagger(folder, {"a" * 64})
    with pytest.raises(InputError, match="no such file"):
        load_tagger(folder / "nowhere", {"a" * 64})
