"""Outputs that a scorer chose from candidates: how they are compared, and that nobody mistakes its own word for a judgement."""

import pytest
import torch
from fakes import LATENT_DIM, normals

from meanaudio.checkpoint import read_json
from meanaudio.errors import InputError
from meanaudio.evaluation.text_match import own_ranks, text_match
from meanaudio.pipeline import MeanAudio


def test_ranks_count_the_nearer_centres():
    centres = torch.tensor([[0.0], [1.0], [5.0]])
    found = torch.tensor([[[0.2], [0.9]], [[1.1], [-3.0]], [[9.0], [0.4]]])
    assert own_ranks(found, centres).tolist() == [[0, 1], [0, 1], [0, 2]]


def test_text_agreement_is_of_wholes(scored_checkpoint, fast_text, tiny_manifest):
    with pytest.raises(InputError, match="no option of generation that can be set here: by_event; there are classifier"):
        text_match(scored_checkpoint, tiny_manifest, count=3, options={"by_event": True})


def test_text_agreement_of_ranked_outputs_is_that_of_those_with_the_best_score(scored_checkpoint, fast_text, tiny_manifest, monkeypatch):
    made = []
    monkeypatch.setattr(MeanAudio, "sample_latents", lambda self, text, seeds, n, **options: made.append(seeds) or latents(seeds, n))
    monkeypatch.setattr(MeanAudio, "score", lambda self, found, text: -found[:, 0, 0])

    def latents(seeds, n):
        return torch.stack([normals(n, LATENT_DIM, seed=seed % 2**32) for seed in seeds])

    found = text_match(scored_checkpoint, tiny_manifest, count=3, outputs=2, options={"num_candidates": 4})
    assert "3 training captions, 2 outputs each, 1 step(s)" in found.to_text() and "the best of 4 by its scorer" in found.to_text()
    assert [len(seeds) for seeds in made] == [24]
    plain = text_match(scored_checkpoint, tiny_manifest, count=3, outputs=2)
    assert "by its scorer" not in plain.to_text()
    assert made[0][::4] == made[1]  # each clip's own seed is among its candidates
    assert torch.equal(found.floor["latents"].ranks, plain.floor["latents"].ranks)


def test_a_table_says_that_the_scorer_judged_its_own_choice(run, fast_text, scored_checkpoint, tiny_manifest, tmp_path):
    common = ("evaluate", "-m", scored_checkpoint, "-r", tiny_manifest, "--split", "train", "--extractor", f"scorer={scored_checkpoint}")
    common = (*common, "--shown", 0, "--device", "cpu", "--quiet")
    code, out, _ = run(*common, "-o", tmp_path / "plain")
    assert code == 0
    assert "learned from the recordings that its checkpoint learned from" in out
    assert "ranked" not in out
    code, out, _ = run(*common, "--with", "num_candidates=3", "-o", tmp_path / "ranked")
    assert code == 0
    assert "scorer: scored, 1 step was ranked by a scorer; what it says of its own choice is not to be reported" in out
    code, _, err = run(*common, "--with", "keep=2", "-o", tmp_path / "kept")
    assert (code, "keep" in err) == (2, True)
    results = read_json(tmp_path / "ranked" / "results.json")
    row = next(row for row in results["rows"] if row["kind"] == "outputs")
    assert -1 <= row["numbers"]["scorer"]["clap"] <= 1
