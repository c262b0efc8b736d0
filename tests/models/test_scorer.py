"""The scorer: unit vectors of clips of any length and of texts, what it knows, and folders that are refused."""

import pytest
import torch
from fakes import LATENT_DIM, WordHash, normals, write_scorer

from meanaudio.checkpoint import read_json, write_json
from meanaudio.config import ScorerCheckpointConfig, parse
from meanaudio.errors import InputError
from meanaudio.models.scorer import KNOWN_FILE, Scorer, load_scorer

KNOWN = {"a dog barks": 3, "rain falls": 2, "a bell": 1}


@pytest.fixture
def folder(tmp_path, tiny_checkpoint):
    write_scorer(tmp_path, tiny_checkpoint, KNOWN)
    return tmp_path


def load(folder) -> Scorer:
    return load_scorer(folder, parse(ScorerCheckpointConfig, read_json(folder / "config.json")))


@pytest.mark.parametrize("length", [1, 2, 17, 200])
def test_any_length_gives_unit_vectors_and_a_score_that_is_their_cosine(folder, length):
    scorer, latents, text = load(folder), normals(2, length, LATENT_DIM), normals(2, 384, seed=1)
    heard, read = scorer.hear(latents), scorer.read(text)
    assert heard.shape == read.shape == (2, 16)
    torch.testing.assert_close(heard.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(read.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(scorer(latents, text), torch.nn.functional.cosine_similarity(heard, read))
    assert not heard.requires_grad


def test_how_long_a_sentence_vector_is_says_nothing(folder):
    scorer, text = load(folder), normals(2, 384)
    torch.testing.assert_close(scorer.read(7 * text), scorer.read(text))
    assert [name for (name, _), *_ in scorer.nearest(7 * text)] == [name for (name, _), *_ in scorer.nearest(text)]


def test_what_it_knows_is_nearest_to_itself(folder):
    near = load(folder).nearest(WordHash()(["rain falls", "a dog barks"]).pooled, 2)
    assert [[caption for caption, _ in row][0] for row in near] == ["rain falls", "a dog barks"]
    assert all(row[0][1] == pytest.approx(1, abs=1e-5) and row[1][1] < 0.9 for row in near)
    assert [len(row) for row in load(folder).nearest(normals(2, 384), 9)] == [3, 3]


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({"a dog barks": 3}, r"misshaped known_text"),
        ({}, "number of its recordings"),
        ({"a": 0, "b": 1, "c": 1}, "number of its recordings"),
    ],
)
def test_a_list_that_is_not_the_weights_own_is_refused(folder, known, told):
    write_json(folder / KNOWN_FILE, known)
    with pytest.raises(InputError, match=told):
        load(folder)
    (folder / KNOWN_FILE).unlink()
    with pytest.raises(InputError, match=r"no such file: .*known.json"):
        load(folder)
