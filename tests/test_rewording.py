"""Prompts in the words that a network knows best: which are changed, into what, and what that does to what is generated."""

import shutil
from pathlib import Path

import pytest
import torch
from fakes import WordHash, write_scorer
from safetensors.torch import save_file

from meanaudio.audio import read_metadata
from meanaudio.checkpoint import WORDS_FILE, load_weights, read_json, save_weights, write_json
from meanaudio.errors import InputError
from meanaudio.models.scorer import load_scorer
from meanaudio.models.tagger import Tagger
from meanaudio.models.transformer import NETWORK_FILE
from meanaudio.pack import blend, pack
from meanaudio.pipeline import MeanAudio
from meanaudio.rewording import HEARD, JOINING, KnownWords, load_words, made_for, qualifiers, sparse, stems

KNOWN = {"a horse neighs": 2, "a brown horse neighs": 2, "a horse gallops": 1, "rain falls": 3, "a large fire burns": 1}
# An output of "a horse neighs" is taken for rain, one of "a brown horse neighs" for a horse that neighs.
HEARD_AS = torch.eye(5)
HEARD_AS[:2] = torch.tensor([[0.1, 0.0, 0.0, 0.9, 0.0], [0.6, 0.3, 0.1, 0.0, 0.0]])


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path) -> Path:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "words"))
    settings = read_json(folder / "config.json")
    config = write_scorer(folder, tiny_checkpoint, KNOWN, outside=-1.0)
    write_json(folder / "config.json", settings | {"scorer": config.model_dump(mode="json")})
    write_table(folder, sparse(HEARD_AS))
    return folder


def write_table(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, folder / WORDS_FILE, made_for(folder, list(KNOWN)))


@pytest.fixture
def model(checkpoint, fast_text) -> MeanAudio:
    return MeanAudio.from_pretrained(checkpoint, device="cpu")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("slams", "slamming"), ("drips", "dripping"), ("hiss", "hisses"), ("tap", "tapping"), ("cries", "crying"), ("glass", "glasses"),
        ("falls", "falling"), ("strikes", "striking"), ("bus", "buses"), ("echo", "echoes"), ("dogs", "dog"), ("barked", "barks"),
    ],
)  # fmt: skip
def test_words_without_their_endings(one, other):
    assert stems(one) == stems(other) != set()


def test_words_that_say_little_are_left_out_but_not_those_that_join_or_deny():
    assert stems("the small sound of a bell that is being heard twice in there") == {"bel"}
    assert len(stems(" ".join(JOINING))) == len(JOINING)
    assert qualifiers("two small bells without a distant echo") == {"two", "smal", "distant"}


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a horse neighs", "a horse neighs"),  # a known caption is what it is
        ("A horse neighs.", "A horse neighs."),
        ("a horse neighs loudly", "a brown horse neighs"),
        ("a horse neighs in a barn", "a brown horse neighs"),  # no caption knows barns
        ("a horse gallops fast", "a horse gallops"),  # no other gallops
        ("a horse neighs in the rain", "a horse neighs in the rain"),  # another sound
        ("a horse neighs and a trombone plays", "a horse neighs and a trombone plays"),
        ("a horse neighs while a trombone plays", "a horse neighs while a trombone plays"),
        ("no horse neighs", "no horse neighs"),
        ("rain", "rain falls"),
        ("a large fire burns fiercely", "a large fire burns"),
        ("a small fire burns", "a small fire burns"),
        ("a fire burns", "a fire burns"),
        ("a dog", "a dog"),  # no caption is near enough
        ("ein Pferd wiehert", "ein Pferd wiehert"),
        ("?!", "?!"),
    ],
)
def test_a_prompt_takes_the_words_that_are_heard_as_what_it_means(model, prompt, said):
    assert model.words([prompt], model.encode_text([prompt]).pooled) == [said]
    among = ["rain falls", prompt, "a horse gallops"]
    assert model.words(among, model.encode_text(among).pooled)[1] == said


def test_what_is_generated_is_what_the_other_words_give(model):
    found = model.generate(["a horse neighs loudly", "rain falls"], seed=3)
    assert [told.get("in_words") for told in found.parameters] == ["a brown horse neighs", None]
    assert [told["prompt"] for told in found.parameters] == ["a horse neighs loudly", "rain falls"]
    exactly = model.generate(["a brown horse neighs", "rain falls"], seed=3, known_words=False)
    torch.testing.assert_close(found.samples, exactly.samples)
    assert [told["known_words"] for told in exactly.parameters] == [False, False]
    as_said = model.generate("a horse neighs loudly", seed=3, known_words=False)
    assert not torch.allclose(as_said.samples[0], found.samples[0])
    torch.testing.assert_close(model.generate("a horse neighs loudly", seed=3).samples[0], found.samples[0], atol=1e-4, rtol=1e-4)


def test_candidates_are_reworded_and_events_are_not_in_a_batch_either(model):
    prompts = ["rain falls, then a horse neighs loudly", "a horse neighs loudly"]
    options = {"by_event": True, "duration": 1.2, "seed": 4, "num_candidates": 2}
    found = model.generate(prompts, **options)
    assert [told.get("in_words") for told in found.parameters] == [None, "a brown horse neighs"]
    exactly = model.generate([prompts[0], "a brown horse neighs"], known_words=False, **options)
    torch.testing.assert_close(found.samples, exactly.samples)
    torch.testing.assert_close(model.generate(prompts[0], **options).samples[0], found.samples[0], atol=1e-4, rtol=1e-4)
    assert found.parameters[1]["chosen_seed"] == exactly.parameters[1]["chosen_seed"]


def test_a_classifier_looks_for_its_classes_in_the_prompts_own_words(model):
    tagger = Tagger(classes=("neighs", "rain"), latent_dim=model.config.network.latent_dim, width=8, blocks=1).eval()
    found = model.generate("a horse neighs loudly", seed=3, steps=2, classifier=tagger)
    assert "in_words" not in found.parameters[0]


def test_without_a_table_nothing_is_reworded(scored_checkpoint, fast_text):
    model = MeanAudio.from_pretrained(scored_checkpoint, device="cpu")
    assert "in_words" not in model.generate("a dog barks", seed=1).parameters[0]
    with pytest.raises(InputError, match=r"scored has not learned in which words it makes what best \(`meanaudio learn-words`; not with"):
        model.generate("a dog barks", seed=1, known_words=True)


def test_a_table_of_other_weights_or_captions_is_refused(checkpoint, scored_checkpoint, fast_text):
    scorer = MeanAudio.from_pretrained(checkpoint, device="cpu").scorer
    other = "words.safetensors was made for another network or other captions; delete it, or make it again: meanaudio learn-words"
    with pytest.raises(InputError, match=other):
        load_words(checkpoint, MeanAudio.from_pretrained(scored_checkpoint, device="cpu").scorer)
    for broken in ({"heard": torch.zeros(4, 4)}, {"heard": torch.zeros(4), "heard_as": torch.zeros(4)}):
        write_table(checkpoint, broken)
        with pytest.raises(InputError, match="which is no table of known words"):
            load_words(checkpoint, scorer)
    write_table(checkpoint, sparse(HEARD_AS) | {"heard_as": torch.full((5, 5), 9, dtype=torch.int32)})
    with pytest.raises(InputError, match="speaks of captions that are not among the 5 known"):
        load_words(checkpoint, scorer)
    write_table(checkpoint, sparse(HEARD_AS))
    state = load_weights(checkpoint / NETWORK_FILE)
    save_weights(checkpoint / NETWORK_FILE, {name: values + 1 for name, values in state.items()})
    with pytest.raises(InputError, match=other):
        MeanAudio.from_pretrained(checkpoint, device="cpu")


def test_the_likeliest_are_kept():
    heard = torch.rand(40, 40, generator=torch.Generator().manual_seed(0))
    state = sparse(heard)
    assert state["heard"].shape == (40, HEARD)
    dense = torch.zeros(40, 40).scatter_(1, state["heard_as"].long(), state["heard"].float())
    kept = dense > 0
    torch.testing.assert_close(dense[kept], heard[kept], atol=1e-3, rtol=1e-3)
    assert heard[~kept].view(40, -1).amax(1).le(torch.where(kept, heard, 2.0).amin(1) + 1e-3).all()


def test_other_weights_do_not_inherit_the_table(checkpoint, tmp_path, fast_text):
    blend([checkpoint, checkpoint], tmp_path / "blended")
    shutil.copytree(checkpoint, tmp_path / "packed")
    pack(checkpoint, tmp_path / "packed")
    for name in ("blended", "packed"):
        assert not (tmp_path / name / WORDS_FILE).exists()
    assert MeanAudio.from_pretrained(tmp_path / "blended", device="cpu").words is None


def test_from_the_command_line(run, checkpoint, fast_text, tmp_path):
    shared = ("generate", "a horse neighs loudly", "-m", checkpoint, "--device", "cpu", "--seed", 1)
    for option, told in (([], "a brown horse neighs"), (["--known-words"], "a brown horse neighs"), (["--as-said"], None)):
        code, out, err = run(*shared, "-o", tmp_path / "out.wav", *option)
        assert code == 0, err
        assert ("made as 'a brown horse neighs'" in out) == (told is not None)
        assert read_metadata(tmp_path / "out.wav").get("in_words") == told


def test_sentence_vectors_decide_not_the_order_of_captions(checkpoint, fast_text):
    scorer = load_scorer(checkpoint, MeanAudio.from_pretrained(checkpoint, device="cpu").config.scorer)
    words = KnownWords(scorer, HEARD_AS)
    prompts = ["a horse neighs loudly", "rain falls", "a horse gallops"]
    assert words(prompts, WordHash()(prompts).pooled) == ["a brown horse neighs", "rain falls", "a horse gallops"]
    assert words(prompts[::-1], WordHash()(prompts[::-1]).pooled) == ["a horse gallops", "rain falls", "a brown horse neighs"]
