"""Training the tagger: it learns what captions name, resumes exactly, and counts what it cannot use."""

import pytest
import torch
from fakes import LATENT_DIM, random_text
from runs import assert_same_run, rows, write_kinds, write_vae

from meanaudio.checkpoint import file_hash, read_json, write_json
from meanaudio.codec.codec import VAE_FILE
from meanaudio.config import LoopConfig, OptimConfig, TaggerConfig, TrainConfig, parse
from meanaudio.errors import InputError
from meanaudio.models.tagger import load_tagger
from meanaudio.training.channels import latent_scale
from meanaudio.training.loop import Loop
from meanaudio.training.tagger import TaggerTask

KINDS = ("a dog barks", "rain falls", "a bell", "silence")  # the last names no class
CLASSES = ("dog", "rain", "bell")


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    for name, count, seed in (("train", 40, 0), ("val", 16, 1)):
        write_kinds(tmp_path / name, KINDS, count, seed, random_text([2] * count), random_text([1]), {})
    return TrainConfig(
        task="tagger",
        data=str(tmp_path),
        tagger=TaggerConfig(words=CLASSES, width=16, blocks=1),
        optim=OptimConfig(lr=1e-2, warmup=2),
        loop=LoopConfig(steps=40, batch_size=10, log_every=10, sample_every=20, save_every=10),
    )


def run(config, folder, **options):
    Loop(TaggerTask(config), config, folder).run(progress_bar=False, **options)


def test_it_learns_resumes_and_is_heard_again(config, tmp_path):
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", until=20)
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    last = rows(tmp_path / "whole")[-1]
    assert last["held_out/agreement"] > 0.9
    assert last["held_out/chance"] == pytest.approx(1 / 3, abs=0.01)
    assert last["held_out/share_of_items"] == 0.75  # a quarter of the captions names no class
    tagger = load_tagger(tmp_path / "whole" / "export", {"c" * 64})
    x = torch.zeros(3, 10, LATENT_DIM)
    for i in range(3):
        x[i, 2:6, i] = 2
    assert tagger(x).argmax(1).tolist() == [0, 1, 2]


def test_only_items_with_a_class_are_taught_and_several_classes_share(config):
    task = TaggerTask(config.model_copy(update={"tagger": TaggerConfig(words=("dog", "barks", "rain"))}))
    indices, targets = task.taught
    assert [task.train.captions[i] for i in indices] == [c for c in task.train.captions if c in KINDS[:2]]
    assert targets[0].tolist() == [0.5, 0.5, 0]
    assert targets[1].tolist() == [0, 0, 1]


def test_classes_that_captions_name_together_are_related(config):
    related = TaggerTask(config.model_copy(update={"tagger": TaggerConfig(words=("dog", "barks", "rain"))})).networks["tagger"].related
    assert related.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_classes_are_the_most_frequent_words_unless_they_are_stated(config):
    task = TaggerTask(config.model_copy(update={"tagger": TaggerConfig(count=4)}))
    assert task.described.classes == ("barks", "bell", "dog", "falls")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tuba", "harp"), "no caption names one of the classes tuba, harp"),
        (("dog",), "1 classes"),
        (("dog", "tuba", "rain"), "tagger.words: no training caption names tuba; what the most of them name: barks, bell, dog"),
    ],
)
def test_classes_that_no_caption_names_are_refused(config, words, told):
    with pytest.raises(InputError, match=told):
        TaggerTask(config.model_copy(update={"tagger": TaggerConfig(words=words)}))


def test_it_may_hear_channels_by_what_they_are_worth(config, tmp_path):
    """`latent_gain`, with the VAE that the shards were made with; its noise is on the same scale."""
    codec = tmp_path / "codec"
    write_vae(codec)
    weighted = parse(TrainConfig, {**config.model_dump(mode="json"), "latent_gain": 0.5, "codec_from": str(codec)})
    with pytest.raises(InputError, match="made with codec cccccccccccc, codec_from holds [0-9a-f]{12}$"):
        TaggerTask(weighted)
    for split in ("train", "val"):
        index = read_json(tmp_path / split / "index.json")
        write_json(tmp_path / split / "index.json", index | {"codec_hash": file_hash(codec / VAE_FILE)})
    task = TaggerTask(weighted)
    scale = latent_scale(weighted, task.train)
    assert torch.equal(task.networks["tagger"].std, scale)
    assert torch.equal(task.std, scale)
    assert (scale / task.train.statistics.std).std() > 0.1
    with pytest.raises(InputError, match="latent_gain is for networks that see latents, and needs codec_from"):
        parse(TrainConfig, {**config.model_dump(mode="json"), "latent_gain": 0.5})
