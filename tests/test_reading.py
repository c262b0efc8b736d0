"""With which known captions prompts are read, and what that does to what is generated."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fakes import write_scorer
from safetensors.torch import save_file

from meanaudio.checkpoint import WORDS_FILE, load_weights, read_json, save_weights, write_json
from meanaudio.errors import InputError
from meanaudio.knows import ask_known
from meanaudio.models.scorer import Scorer
from meanaudio.models.transformer import NETWORK_FILE
from meanaudio.pack import blend, pack
from meanaudio.pipeline import MeanAudio
from meanaudio.reading import HEARD, JOINING, Company, load_heard, made_for, sparse, stems
from meanaudio.types import TextFeatures, read_together

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


@pytest.fixture
def alone(checkpoint, tmp_path, fast_text) -> MeanAudio:
    """The same, but nobody has listened."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "unheard"))
    (folder / WORDS_FILE).unlink()
    return MeanAudio.from_pretrained(folder, device="cpu")


ALL = list(KNOWN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("slams", "slamming"), ("drips", "dripping"), ("hiss", "hisses"), ("tap", "tapping"), ("cries", "crying"), ("glass", "glasses"),
        ("falls", "falling"), ("strikes", "striking"), ("bus", "buses"), ("echo", "echoes"), ("dogs", "dog"), ("barked", "barks"),
    ],
)  # fmt: skip
def test_words_without_their_endings(one, other):
    assert stems(one) == stems(other) != set()


def test_words_that_do_not_say_what_sounds_are_left_out():
    assert stems("the small sound of a bell that is being heard twice in there") == {"bel"}
    assert stems(" ".join(JOINING)) == set()


HORSES = ["a horse neighs", "a brown horse neighs", "a horse gallops"]


@pytest.mark.parametrize(
    ("prompt", "company"),
    [
        ("a horse neighs", HORSES),  # the nearest first
        ("a horse neighs loudly", HORSES),
        ("rain", ["rain falls"]),
        ("a large fire burns fiercely", ["a large fire burns"]),
        ("a horse neighs and a trombone plays", []),  # no caption says "and"
        ("a horse neighs while rain falls", []),
        ("no horse neighs", []),
        ("ein Pferd wiehert", []),  # none is near enough
        ("?!", []),
    ],
)
def test_a_prompt_is_read_with_captions_that_say_nearly_the_same(alone, prompt, company):
    choose = alone.company
    assert choose([prompt], alone.encode_text([prompt]).pooled, 5) == [company]
    assert choose([prompt], alone.encode_text([prompt]).pooled, 1) == [company[:1]]
    among = ["rain falls", prompt, "a horse gallops"]
    assert choose(among, alone.encode_text(among).pooled, 5)[1] == company


def company_of(captions: Sequence[str]) -> Company:
    """Its captions' vectors are nearly one."""
    count = len(captions)
    scorer = Scorer(latent_dim=4, pooled_dim=32, dim=4, width=4, blocks=1, outside=0.0, known=dict.fromkeys(captions, 1))
    scorer.known_text.copy_(torch.nn.functional.normalize(torch.ones(count, 32) + 0.1 * torch.eye(count, 32), dim=-1))
    return Company(scorer)


def test_captions_that_join_sounds_as_the_prompt_does_are_its_company():
    known = ["rain falls", "rain falls while birds sing", "rain falls while wind blows with force"]
    prompts = ["heavy rain", "rain falls while thunder rumbles", "rain falls while thunder rumbles with an echo", "no rain"]
    found = company_of(known)(prompts, torch.ones(4, 32), 3)
    assert [sorted(row) for row in found] == [sorted(known[first:]) for first in (0, 1, 2, 3)]


def test_captions_that_share_no_word_with_the_prompt_are_company_only_if_none_does():
    known = ["a large fire burns", "a firework explodes", "a small fire"]
    found = company_of(known)(["fireworks go off", "a small blaze"], torch.ones(2, 32), 3)
    assert found[0] == ["a firework explodes"]
    assert sorted(found[1]) == sorted(known)  # "small" does not say what sounds


def test_of_what_says_the_same_those_are_read_that_are_heard_as_what_it_means(model, alone):
    prompt = ["a horse neighs loudly"]
    pooled = model.encode_text(prompt).pooled
    assert alone.company(prompt, pooled, 1) == [["a horse neighs"]]
    assert model.company(prompt, pooled, 1) == [["a brown horse neighs"]]  # the other's outputs are heard as rain
    assert model.company(prompt, pooled, 2)[0][0] == "a brown horse neighs"
    prompts = ["rain falls", *prompt, "a horse gallops"]
    found = model.company(prompts, model.encode_text(prompts).pooled, 1)
    assert found == [["rain falls"], ["a brown horse neighs"], ["a horse gallops"]]
    backwards = model.company(prompts[::-1], model.encode_text(prompts[::-1]).pooled, 1)
    assert backwards == found[::-1]


def test_who_asks_what_is_known_is_told_what_a_prompt_is_read_with(checkpoint, fast_text):
    config = read_json(checkpoint / "config.json")
    asked = ["a horse neighs, then rain falls", "une chanson"]
    assert not any("read" in line for line in ask_known(checkpoint, asked).splitlines())
    write_json(checkpoint / "config.json", config | {"known_captions": 1, "by_event": True})
    told = [line for line in ask_known(checkpoint, asked).splitlines() if line.startswith("  ")]
    assert told[:2] == ["  'a horse neighs' is read with 'a brown horse neighs'", "  'rain falls' is read with 'rain falls'"]
    assert len(told) == 3 and told[2].startswith("  'une chanson' is read ")
    write_json(checkpoint / "config.json", config | {"known_captions": 1})
    assert ask_known(checkpoint, ["a horse that neighs while the rain never falls"]).splitlines()[1].endswith(" is read alone")


def test_what_is_generated_is_what_the_texts_together_give(model):
    prompts = ["a horse neighs loudly", "rain falls"]
    found = model.generate(prompts, seed=3, known_captions=1)
    assert [(told["prompt"], told["known_captions"]) for told in found.parameters] == [(prompt, 1) for prompt in prompts]
    texts = [read_together(model.encode_text(row)) for row in (["a horse neighs loudly", "a brown horse neighs"], ["rain falls"] * 2)]
    latents = model.sample_latents(TextFeatures.cat(texts), [3, 4], 16)
    torch.testing.assert_close(found.samples, model._sound(latents, found.samples.shape[1], -18.0), atol=1e-4, rtol=1e-4)
    as_said = model.generate(prompts, seed=3)
    assert not torch.allclose(as_said.samples[0], found.samples[0])
    torch.testing.assert_close(as_said.samples[1], found.samples[1], atol=1e-4, rtol=1e-4)  # a text twice is the text


def test_a_table_of_other_weights_or_captions_is_refused(checkpoint, fast_text):
    other = "words.safetensors was made for another network or other captions; delete it, or make it again: meanaudio learn-words"
    with pytest.raises(InputError, match=other):
        load_heard(checkpoint, ALL[1:])
    for broken in ({"heard": torch.zeros(4, 4)}, {"heard": torch.zeros(4), "heard_as": torch.zeros(4)}):
        write_table(checkpoint, broken)
        with pytest.raises(InputError, match="which is no table of known captions"):
            load_heard(checkpoint, ALL)
    write_table(checkpoint, sparse(HEARD_AS) | {"heard_as": torch.full((5, 5), 9, dtype=torch.int32)})
    with pytest.raises(InputError, match="speaks of captions that are not among the 5 known"):
        load_heard(checkpoint, ALL)
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
    assert MeanAudio.from_pretrained(tmp_path / "blended", device="cpu").company.heard is None
