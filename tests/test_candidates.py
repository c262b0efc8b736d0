"""Several clips a prompt, ranked by the checkpoint's scorer; prompts unlike all that was taught; the list of what was."""

import json
import shutil
import warnings

import pytest
import torch
from fakes import floats, write_scorer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meanaudio.audio import read_metadata
from meanaudio.checkpoint import read_json, write_json
from meanaudio.convert.hub import OWN_FILES
from meanaudio.errors import InputError, OutsideKnowledge
from meanaudio.models.scorer import SCORER_FILE, CaptionClassifier
from meanaudio.pack import pack
from meanaudio.pipeline import MAX_PROMPT, MeanAudio

PROMPTS = ["rain", "a dog barks", "wind in the trees"]


@pytest.fixture
def model(scored_checkpoint, fast_text) -> MeanAudio:
    return MeanAudio.from_pretrained(scored_checkpoint, device="cpu")


def test_the_best_of_the_candidates_is_kept_and_made_again_by_its_own_seed(model):
    chosen = model.generate(PROMPTS, seed=5, num_candidates=4)
    assert chosen.samples.shape == model.generate(PROMPTS, seed=5).samples.shape
    for k, (prompt, told) in enumerate(zip(PROMPTS, chosen.parameters, strict=True)):
        assert (told["prompt"], told["seed"], told["num_candidates"]) == (prompt, 5 + k, 4)
        text, seeds = model.encode_text([prompt]), [5 + k + 2_654_435_769 * j for j in range(4)]
        scores = model.score(model.sample_latents(text.expand(4), seeds, 16), text.expand(4))
        assert told["chosen_seed"] == seeds[scores.argmax()]
        assert told["score"] == pytest.approx(scores.max().item(), abs=1e-3)
        again = model.generate(prompt, seed=told["chosen_seed"])
        torch.testing.assert_close(again.samples[0], chosen.samples[k], atol=1e-4, rtol=1e-4)
    assert chosen.evaluations == 4


def test_a_clip_is_the_same_alone_and_in_a_batch_with_candidates_too(model):
    together = model.generate(PROMPTS, seed=5, num_candidates=3, guidance_scale=2.0, steps=2)
    for k, prompt in enumerate(PROMPTS):
        alone = model.generate(prompt, seed=5 + k, num_candidates=3, guidance_scale=2.0, steps=2)
        torch.testing.assert_close(alone.samples[0], together.samples[k], atol=1e-4, rtol=1e-4)
        assert alone.parameters[0]["chosen_seed"] == together.parameters[k]["chosen_seed"]


def test_events_have_candidates_of_their_own(model):
    """Each of successive sounds is the best of its own candidates, made again by its own seed."""
    prompt = "a dog barks, then rain falls"
    chosen = model.generate(prompt, by_event=True, duration=1.2, seed=5, num_candidates=4, keep=2)
    assert [told["rank"] for told in chosen.parameters] == [1, 2]
    length = 10000  # samples of each, 800 of which overlap
    scores = []
    for place, event in enumerate(["a dog barks", "rain falls"]):
        text, seeds = model.encode_text([event]), [5 + place * 1_779_033_703 + 2_654_435_769 * j for j in range(4)]
        found = model.score(model.sample_latents(text.expand(4), seeds, 10), text.expand(4))
        assert [told["chosen_seed"][place] for told in chosen.parameters] == [seeds[i] for i in found.argsort(descending=True)[:2]]
        scores.append(found.max().item())
        again = model.generate(event, duration=length / 16000, seed=chosen.parameters[0]["chosen_seed"][place])
        part = slice(0, 9200) if place == 0 else slice(800, length)
        start = place * (length - 800)
        torch.testing.assert_close(chosen.samples[0, start + part.start : start + part.stop], again.samples[0, part], atol=1e-4, rtol=1e-4)
    assert chosen.parameters[0]["score"] == pytest.approx(sum(scores) / 2, abs=1e-3)
    assert chosen.evaluations == 4


def test_candidates_of_clips_of_one_and_of_several_sounds_share_a_batch(model):
    """And each sound is guided by a classifier that looks for its own words."""
    prompts = ["rain", "a dog barks, then rain falls", "wind", "rain, then wind, then a dog barks"]
    options = {"by_event": True, "duration": 1.6, "num_candidates": 3, "keep": 2, "classifier": CaptionClassifier(model.scorer), "steps": 2}
    together = model.generate(prompts, seed=5, **options)
    assert together.samples.shape == (8, 25600)
    for k, prompt in enumerate(prompts):
        alone = model.generate(prompt, seed=5 + k, **options)
        torch.testing.assert_close(alone.samples, together.samples[2 * k : 2 * k + 2], atol=1e-4, rtol=1e-4)
        assert alone.parameters == together.parameters[2 * k : 2 * k + 2]


def test_several_can_be_kept_the_best_first_and_only_they_are_decoded(model, monkeypatch):
    decoded = []
    decode = model.codec.decode
    monkeypatch.setattr(model.codec, "decode", lambda latents: decoded.append(len(latents)) or decode(latents))
    kept = model.generate(PROMPTS[:2], seed=5, num_candidates=4, keep=2)
    assert decoded == [4]
    assert [told["rank"] for told in kept.parameters] == [1, 2, 1, 2]
    assert [told["prompt"] for told in kept.parameters] == ["rain", "rain", "a dog barks", "a dog barks"]
    scores = [told["score"] for told in kept.parameters]
    assert scores[0] >= scores[1]
    assert scores[2] >= scores[3]
    best = model.generate(PROMPTS[:2], seed=5, num_candidates=4)
    torch.testing.assert_close(kept.samples[::2], best.samples, atol=1e-4, rtol=1e-4)
    all_ = model.generate("rain", seed=5, num_candidates=4, keep=4)
    assert len({told["chosen_seed"] for told in all_.parameters}) == 4


def test_the_same_prompt_several_times_has_no_candidate_twice(model):
    kept = model.generate(["rain"] * 3, seed=5, num_candidates=4, keep=4)
    assert len({told["chosen_seed"] for told in kept.parameters}) == 12


def test_one_candidate_is_what_was_before(model, tiny_checkpoint):
    plain = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu").generate("rain", seed=3)
    one = model.generate("rain", seed=3, num_candidates=1)
    assert torch.equal(one.samples, plain.samples)
    assert "score" not in one.parameters[0]


def test_a_checkpoint_without_a_scorer_refuses_to_rank(tiny_checkpoint, fast_text):
    plain = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu")
    with pytest.raises(InputError, match="num_candidates = 2: tiny has no scorer"):
        plain.generate("rain", num_candidates=2)
    with pytest.raises(InputError, match="tiny has no scorer"):
        plain.score(torch.zeros(1, 4, 8), plain.encode_text(["rain"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.generate("une chanson", seed=0)


def test_prompts_outside_are_told_once_a_call_and_sound_all_the_same(model):
    with pytest.warns(OutsideKnowledge, match="outside what scored knows: 'une chanson'") as told:
        audio = model.generate(["rain", "une chanson"], seed=0, num_candidates=2)
    assert len(told) == 1
    assert audio.samples.std() > 1e-3
    with pytest.warns(OutsideKnowledge, match="'une chanson'"):
        model.edit(torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1, "une chanson", steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(PROMPTS, seed=0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=MAX_PROMPT + 10))
def test_any_text_is_a_sound_or_a_refusal(model, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if prompt.strip() and len(prompt) <= MAX_PROMPT:
            assert torch.isfinite(model.generate(prompt, seed=0, duration=0.1, num_candidates=2).samples).all()
        else:
            with pytest.raises(InputError, match="empty prompt|characters"):
                model.generate(prompt, seed=0)


# ---------------------------------------------------------------- the command line


def test_files_of_candidates_are_numbered_by_rank_and_say_their_score(run, fast_text, scored_checkpoint, tmp_path):
    common = ("-m", scored_checkpoint, "--device", "cpu", "--seed", 1, "--candidates", 3)
    code, out, err = run("generate", "rain", "wind", *common, "--keep", 2, "-o", tmp_path / "several")
    assert code == 0
    assert err.count("\n") == 1
    assert "outside what scored knows: 'wind'" in err
    names = ["00-rain-1.wav", "00-rain-2.wav", "01-wind-1.wav", "01-wind-2.wav"]
    assert sorted(path.name for path in (tmp_path / "several").iterdir()) == names
    assert out.count("score") == 4
    found = read_metadata(tmp_path / "several" / names[1])
    assert (found["seed"], found["num_candidates"], found["keep"], found["rank"]) == (1, 3, 2, 2)
    assert -1 <= found["score"] <= 1
    assert run("generate", "rain", *common, "-o", tmp_path / "one.flac")[0] == 0
    assert (tmp_path / "one.flac").is_file()
    assert run("generate", "rain", *common, "--keep", 2, "-o", tmp_path / "two.flac")[0] == 0
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two-1.flac", "two-2.flac"]
    code, _, err = run("generate", "rain", *common, "--keep", 4, "-o", tmp_path / "x")
    assert (code, err) == (2, "error: keep = 4: must be from 1 to num_candidates, which is 3\n")


def test_a_checkpoint_says_what_it_knows(run, fast_text, scored_checkpoint, tiny_checkpoint, tmp_path):
    code, out, _ = run("knows", "-m", scored_checkpoint)
    assert code == 0
    assert out.startswith("scored was taught 3 captions by 8 recordings")
    assert "others (8): a dog barks 2, rain 5, wind in the trees 1" in out
    code, out, _ = run("knows", "-m", scored_checkpoint, "-o", tmp_path / "CONCEPTS.md")
    assert code == 0
    assert "| others | 8 | a dog barks 2, rain 5, wind in the trees 1 |" in (tmp_path / "CONCEPTS.md").read_text()
    code, out, _ = run("knows", "rain", "une chanson", "-m", scored_checkpoint)
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith("'rain': known; nearest: 'rain' 1.00, ")
    assert second.startswith("'une chanson': outside; nearest: ")
    for arguments, told in (
        (("knows", "-m", tiny_checkpoint), "tiny keeps no list of what it was taught"),
        (("knows", "rain", "-m", tiny_checkpoint), "tiny keeps no list of what it was taught"),
        (("knows", "rain", "-m", scored_checkpoint, "-o", tmp_path / "x.md"), "is for the whole list"),
        (("knows", "rain", " ", "-m", scored_checkpoint), "empty prompt ' '"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert told in err


# ---------------------------------------------------------------- prompts read with known captions


def test_a_prompt_is_read_with_the_captions_that_say_nearly_the_same(model):
    text, _ = model.steer(["heavy rain"], known_captions=2)
    parts = [model.encode_text([words]) for words in ("heavy rain", "rain")]
    assert text.sequence.shape[1] == sum(part.mask.sum() for part in parts)  # other captions are too far
    torch.testing.assert_close(text.pooled, parts[0].pooled / 2 + parts[1].pooled / 2)
    latents = model.sample_latents(text, [3], 16)
    read, alone = (model.generate("heavy rain", seed=3, known_captions=count) for count in (2, 0))
    torch.testing.assert_close(read.samples, model._sound(latents, read.samples.shape[1], -18.0), atol=1e-4, rtol=1e-4)
    assert (read.samples - alone.samples).abs().max() > 1e-3
    assert read.parameters[0]["known_captions"] == 2
    assert read.parameters[0]["prompt"] == "heavy rain"
    assert torch.equal(alone.samples, model.generate("heavy rain", seed=3).samples)
    joined = "heavy rain while a dog barks"  # no caption says "while"
    read, alone = (model.generate(joined, seed=3, known_captions=count) for count in (2, 0))
    assert torch.equal(read.samples, alone.samples)


def test_read_with_captions_a_clip_is_the_same_alone_and_in_a_batch_and_scored_by_its_own_words(model):
    prompts = ["rain", "a small dog barks, then rain falls heavily", "leaves"]
    options = {"known_captions": 2, "num_candidates": 2, "by_event": True, "duration": 1.2}
    together = model.generate(prompts, seed=5, **options)
    for k, prompt in enumerate(prompts):
        alone = model.generate(prompt, seed=5 + k, **options)
        torch.testing.assert_close(alone.samples[0], together.samples[k], atol=1e-4, rtol=1e-4)
    told = together.parameters[0]
    text, _ = model.steer(["rain"], known_captions=2)
    score = model.score(model.sample_latents(text, [told["chosen_seed"]], 19), model.encode_text(["rain"]))
    assert told["score"] == pytest.approx(score.item(), abs=1e-3)


def test_a_checkpoint_says_with_how_many_captions_its_prompts_are_read(run, fast_text, scored_checkpoint, tiny_checkpoint, model, tmp_path):
    assert run("pack", scored_checkpoint, "-o", tmp_path / "read", "--weights", "float32", "--known-captions", 2)[0] == 0
    other = MeanAudio.from_pretrained(tmp_path / "read", device="cpu")
    assert torch.equal(other.generate("rain", seed=1).samples, model.generate("rain", seed=1, known_captions=2).samples)
    assert torch.equal(other.generate("rain", seed=1, known_captions=0).samples, model.generate("rain", seed=1).samples)
    assert "known_captions" not in other.generate("rain", seed=1).parameters[0]
    code, _, err = run("generate", "rain", "-m", tiny_checkpoint, "--known-captions", 1, "-o", tmp_path / "x.wav")
    assert code == 2
    assert "known_captions = 1: tiny has no scorer" in err
    with pytest.raises(InputError, match="known_captions = -1: must be 0 or more"):
        model.generate("rain", known_captions=-1)


# ---------------------------------------------------------------- packing


def test_a_scorer_is_packed_in_half_precision_and_stays_when_packed_again(run, fast_text, tiny_checkpoint, tmp_path):
    write_scorer(tmp_path / "scorer", tiny_checkpoint, {"rain": 2, "a dog barks": 1})
    assert run("pack", tiny_checkpoint, "--scorer", tmp_path / "scorer", "-o", tmp_path / "one")[0] == 0
    pack(tmp_path / "one", tmp_path / "two")
    pack(tiny_checkpoint, tmp_path / "three", scorer=tmp_path / "one")  # from a checkpoint
    assert read_json(tmp_path / "three" / "config.json") == read_json(tmp_path / "one" / "config.json")
    assert torch.equal(
        floats(tmp_path / "three" / SCORER_FILE)["audio_out.weight"], floats(tmp_path / "one" / SCORER_FILE)["audio_out.weight"]
    )
    with pytest.raises(InputError, match="without a scorer"):
        pack(tiny_checkpoint, tmp_path / "four", scorer=tiny_checkpoint)
    full, one, two = (floats(folder / SCORER_FILE) for folder in (tmp_path / "scorer", tmp_path / "one", tmp_path / "two"))
    assert full.keys() == one.keys() == two.keys()
    for key, value in full.items():
        assert torch.equal(one[key], value.half().float())
        assert torch.equal(one[key], two[key])
    assert read_json(tmp_path / "two" / "known.json") == {"rain": 2, "a dog barks": 1}
    model = MeanAudio.from_pretrained(tmp_path / "two", device="cpu")
    assert model.generate("rain", num_candidates=2, seed=0).parameters[0]["num_candidates"] == 2
    assert {"known.json", "*.safetensors"} <= set(OWN_FILES)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"codec_hash": "b" * 64}, "listens to latents of codec bbbbbbbbbbbb, this network makes those of "),
        ({"text": {"encoder": "minilm", "max_tokens": 9}}, "trained with text {'encoder': 'minilm', 'max_tokens': 9}, this network with"),
        ({"width": 9}, "weights of another network"),
    ],
)
def test_a_scorer_that_does_not_fit_is_not_packed(run, fast_text, tiny_checkpoint, tmp_path, change, told):
    write_scorer(tmp_path / "scorer", tiny_checkpoint, {"rain": 2})
    write_json(tmp_path / "scorer" / "config.json", read_json(tmp_path / "scorer" / "config.json") | change)
    code, _, err = run("pack", tiny_checkpoint, "--scorer", tmp_path / "scorer", "-o", tmp_path / "out")
    assert code == 2
    assert told in err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_its_list_is_refused(scored_checkpoint, fast_text, tmp_path):
    folder = shutil.copytree(scored_checkpoint, tmp_path / "copy")
    (folder / "known.json").write_text(json.dumps(["rain"]), encoding="utf-8")
    with pytest.raises(InputError, match="known.json"):
        MeanAudio.from_pretrained(folder, device="cpu")
