"""Training the scorer: clips find their captions, near captions are no counterexamples, and a run resumes exactly."""

import pytest
import torch
from fakes import LATENT_DIM, WordHash
from runs import assert_same_run, rows, write_kinds

from meanaudio.checkpoint import read_json, write_json
from meanaudio.config import LoopConfig, OptimConfig, ScorerCheckpointConfig, ScorerConfig, TextConfig, TrainConfig, parse
from meanaudio.data.shards import CAPTIONS
from meanaudio.errors import InputError
from meanaudio.models.scorer import load_scorer
from meanaudio.training.loop import Loop
from meanaudio.training.scorer import ScorerTask, alike, chosen_captions, contrastive_loss, own_ranks

KINDS = ("dog", "rain", "bell", "wind", "gun", "door", "horn", "frog")


@pytest.fixture
def config(tmp_path, fast_text) -> TrainConfig:
    for name, count, seed in (("train", 64, 0), ("val", 24, 1)):
        text = WordHash()([KINDS[i % len(KINDS)] for i in range(count)])
        write_kinds(tmp_path / name, KINDS, count, seed, text, text[:1], TextConfig().model_dump())
        write_json(tmp_path / name / CAPTIONS, {kind: k + 1 for k, kind in enumerate(KINDS)})
    return TrainConfig(
        task="scorer",
        data=str(tmp_path),
        scorer=ScorerConfig(width=16, blocks=1, dim=8, known=5),
        optim=OptimConfig(lr=1e-2, warmup=2),
        loop=LoopConfig(steps=60, batch_size=16, log_every=10, sample_every=30, save_every=20),
    )


def run(config, folder, **options):
    Loop(ScorerTask(config), config, folder).run(progress_bar=False, **options)


def test_it_learns_resumes_and_is_loaded_again(config, tmp_path):
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", until=20)
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    found = [row for row in rows(tmp_path / "whole") if "held_out/loss" in row]
    assert found[-1]["held_out/loss"] < found[0]["held_out/loss"]
    assert found[-1]["held_out/first_of_50"] > 0.9  # chance: an eighth
    export = tmp_path / "whole" / "export"
    scorer = load_scorer(export, parse(ScorerCheckpointConfig, read_json(export / "config.json")))
    assert scorer.known == {"frog": 8, "horn": 7, "door": 6, "gun": 5, "wind": 4}
    assert [row[0][0] for row in scorer.nearest(WordHash()(["horn", "gun"]).pooled)] == ["horn", "gun"]
    x = torch.zeros(8, 12, LATENT_DIM)
    for i in range(8):
        x[i, 2:7, i] = 2
    assert (scorer.hear(x) @ scorer.read(WordHash()(KINDS).pooled).T).argmax(1).tolist() == [*range(8)]


def test_captions_that_say_nearly_the_same_are_no_counterexamples():
    pooled = torch.tensor([[1.0, 0], [3, 0.1], [0, 1]])
    assert alike(pooled, 0.9).tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert not alike(pooled, 1.0).any()
    cosines, scale = torch.tensor([[0.5, 0.9, 0.0], [0.9, 0.5, 0.0], [0.0, 0.0, 0.5]]), torch.zeros(1)
    loss, found = contrastive_loss(cosines, alike(pooled, 0.9), scale)
    assert found == 1  # 0.9 beats 0.5, but does not take part
    expected = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.5, 0.0, 0.0][:2]])
    each = -torch.log_softmax(expected, 1)[:2, 0]
    last = -torch.log_softmax(torch.tensor([0.5, 0.0, 0.0]), 0)[0]
    assert loss.item() == pytest.approx((each.sum() + last).item() / 3)
    everything, _ = contrastive_loss(cosines, torch.zeros(3, 3, dtype=torch.bool), scale)
    assert everything > loss


def test_no_scale_grows_without_bound():
    cosines = torch.eye(2)
    at_bound, beyond = (contrastive_loss(cosines, torch.zeros(2, 2, dtype=torch.bool), torch.tensor([x]).log())[0] for x in (50.0, 5000.0))
    assert at_bound == beyond


def test_ranks_are_among_the_next_captions_that_are_not_ignored():
    cosines = torch.tensor([[0.5, 0.9, 0.1], [0.6, 0.5, 0.7], [0.0, 0.1, 0.2]])
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    assert own_ranks(cosines, nothing).tolist() == [1, 2, 0]
    assert own_ranks(cosines, nothing, among=2).tolist() == [1, 1, 0]
    assert own_ranks(cosines, torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]).bool()).tolist() == [0, 2, 0]


def test_the_most_frequent_captions_are_kept_and_of_equals_an_even_choice():
    captions = {f"c{i}": 1 for i in range(10)} | {"often": 5, "twice": 2}
    assert list(chosen_captions(captions, 99))[:2] == ["often", "twice"]
    assert len(chosen_captions(captions, 99)) == 12
    assert chosen_captions(captions, 4) == {"often": 5, "twice": 2, "c0": 1, "c5": 1}
    assert chosen_captions(captions, 2) == {"often": 5, "twice": 2}


def test_shards_of_another_text_encoder_or_without_their_captions_are_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"train: made with text .*'max_tokens': 64.*the config says .*'max_tokens': 9"):
        ScorerTask(config.model_copy(update={"text": TextConfig(max_tokens=9)}))
    index = read_json(tmp_path / "train" / "index.json")
    write_json(tmp_path / "train" / "index.json", index | {"text_fingerprint": "other"})
    with pytest.raises(InputError, match="train: made with text encoder other, here is word-hash"):
        ScorerTask(config)
    (tmp_path / "train" / CAPTIONS).unlink()
    with pytest.raises(InputError, match=r"no captions.json, made by an earlier version; run meanaudio prepare again"):
        ScorerTask(config)
