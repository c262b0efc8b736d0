"""What options mean for a checkpoint: distilled guidance, weaker networks, taggers, edits; what each costs, and what is refused."""

import json

import pytest
import torch
from fakes import LATENT_DIM, fill, tiny_network, write_scorer
from test_guidance import Judge

from meanaudio.audio import high_pass, limit_peak, match_level
from meanaudio.checkpoint import file_hash, load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE
from meanaudio.config import TaggerCheckpointConfig
from meanaudio.errors import InputError
from meanaudio.guidance import DecodedClassifier
from meanaudio.models.scorer import CaptionClassifier, Scorer
from meanaudio.models.tagger import TAGGER_FILE, make_tagger
from meanaudio.models.transformer import NETWORK_FILE, make_network
from meanaudio.pack import pack
from meanaudio.pipeline import MeanAudio
from meanaudio.steering import Steering, steered_field, wanted_classes


@pytest.fixture
def model(tiny_checkpoint, fast_text) -> MeanAudio:
    return MeanAudio.from_pretrained(tiny_checkpoint, device="cpu")


def change(folder, seed=7, std=0.2, guidance_range=None, **network):
    """Another network in a copy of the tiny checkpoint."""
    config = tiny_network(sequence_dim=384, pooled_dim=384, **network)
    save_weights(folder / NETWORK_FILE, fill(make_network(config), seed, std).state_dict())
    values = read_json(folder / "config.json") | {"network": config.model_dump(mode="json"), "guidance_range": guidance_range}
    write_json(folder / "config.json", values)
    return folder


@pytest.fixture
def distilled(checkpoint_copy, fast_text) -> MeanAudio:
    folder = change(checkpoint_copy, guidance_embedding=True, guidance_range=[1.0, 6.0])
    return MeanAudio.from_pretrained(folder, device="cpu")


# ---------------------------------------------------------------- guidance as an input


def test_a_distilled_checkpoint_is_guided_at_one_evaluation_a_step(distilled):
    sounds = {}
    for scale in (1.0, 2.0, 6.0):
        made = distilled.generate("rain", steps=3, guidance_scale=scale, seed=0)
        assert made.evaluations == 3
        sounds[scale] = made.samples
    assert (sounds[1.0] - sounds[2.0]).abs().max() > 1e-3
    assert (sounds[2.0] - sounds[6.0]).abs().max() > 1e-3


def test_the_scale_reaches_the_network_and_is_one_outside_its_limits(distilled):
    text, seen = distilled.encode_text(["rain"]), []
    network = distilled.network
    network.register_forward_pre_hook(lambda module, args: seen.append((args[1].item(), args[4].tolist())))
    steering = Steering(scale=4.0, limits=(0.3, 0.8))
    distilled.sample_latents(text, [0], 8, steps=4, steering=steering)
    assert seen == [(1.0, [1.0]), (0.75, [4.0]), (0.5, [4.0]), (0.25, [1.0])]


def test_a_network_that_takes_limits_gets_them(checkpoint_copy, fast_text):
    folder = change(checkpoint_copy, guidance_embedding=True, guidance_limits=True, guidance_range=[2.0, 6.0])
    model, seen = MeanAudio.from_pretrained(folder, device="cpu"), []
    model.network.register_forward_pre_hook(lambda module, args: seen.append(args[4]))
    made = model.generate("rain", steps=2, guidance_scale=3.0, guidance_limits=(0.25, 0.75), seed=0)
    assert made.evaluations == 2
    assert all(torch.equal(guidance, torch.tensor([[3.0, 0.25, 0.75]])) for guidance in seen)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"guidance_scale": 7.0}, "guidance_scale = 7: copy takes it as an input and was trained from 1 to 6"),
        ({"guidance_scale": 0.5}, "guidance_scale = 0.5"),
        ({"guidance_scale": 3.0, "negative_prompt": "hum"}, "negative_prompt 'hum': copy has learned to move away from no text"),
        ({"guidance_scale": 3.0, "guide_with": "tiny"}, "guide_with: copy has learned its guidance"),
        ({"guidance_scale": 3.0, "guidance_limits": (0.6, 0.4)}, "0 <= low < high <= 1"),
    ],
)
def test_a_distilled_checkpoint_refuses_what_it_was_not_trained_for(distilled, options, told):
    with pytest.raises(InputError) as error:
        distilled.generate("rain", **options)
    assert told in str(error.value)


def test_a_range_above_one_has_no_outside(checkpoint_copy, fast_text):
    model = MeanAudio.from_pretrained(change(checkpoint_copy, guidance_embedding=True, guidance_range=[2.0, 6.0]), device="cpu")
    with pytest.raises(InputError, match="outside them the scale is 1, and copy was trained from 2"):
        model.generate("rain", guidance_scale=3.0, guidance_limits=(0.0, 0.5))
    with pytest.raises(InputError, match="guidance_scale = 1: copy takes it as an input and was trained from 2 to 6"):
        model.generate("rain")


def test_a_checkpoint_must_say_its_range(checkpoint_copy, fast_text):
    change(checkpoint_copy, guidance_embedding=True)
    with pytest.raises(InputError, match="guidance_range None"):
        MeanAudio.from_pretrained(checkpoint_copy, device="cpu")


# ---------------------------------------------------------------- limits, another network, fresh noise


@pytest.mark.parametrize(("limits", "evaluations"), [((0.0, 1.0), 8), ((0.3, 0.8), 6)])
def test_limits_save_evaluations(model, limits, evaluations):
    made = model.generate(["rain", "wind"], steps=4, guidance_scale=3.0, guidance_limits=limits, seed=0)
    assert made.evaluations == evaluations
    assert not torch.equal(made.samples, model.generate(["rain", "wind"], steps=4, seed=0).samples)


@pytest.mark.parametrize(("steps", "limits"), [(4, (0.9, 0.95)), (1, (0.2, 0.8))])
def test_limits_in_which_no_step_begins_are_refused(model, steps, limits):
    with pytest.raises(InputError, match=rf"guidance_limits = .*none of {steps} step"):
        model.generate("rain", steps=steps, guidance_scale=3.0, guidance_limits=limits, seed=0)


def test_autoguidance_moves_away_from_the_weaker_network(model, checkpoint_copy):
    folder = change(checkpoint_copy, seed=11)
    made = model.generate("rain", steps=2, guidance_scale=2.0, guide_with=folder, seed=0)
    assert made.evaluations == 4
    weak = MeanAudio.from_pretrained(folder, device="cpu")
    text, noise = model.encode_text(["rain"]), torch.randn(1, 16, LATENT_DIM, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([1.0, 0.5, 0.0])
    z = noise
    for t, r in zip(times[:-1], times[1:], strict=True):
        u, v = (m.network(z, t[None], r[None], m.network.condition(text)) for m in (model, weak))
        z = z - (t - r) * (v + 2 * (u - v))
    expected = match_level(high_pass(model.decode(z * model.std + model.mean, 16384), 16000), -18.0, 16000)
    torch.testing.assert_close(made.samples, limit_peak(expected), atol=1e-3, rtol=1e-2)
    other = model.generate("rain", steps=2, guidance_scale=2.0, guide_with=folder, negative_prompt="hum", seed=0)
    assert (other.samples - made.samples).abs().max() > 1e-3


def test_a_network_is_no_guide_for_itself(model, tiny_checkpoint):
    alone = model.generate("rain", steps=2, seed=0).samples
    torch.testing.assert_close(
        model.generate("rain", steps=2, guidance_scale=3.0, guide_with=tiny_checkpoint, seed=0).samples, alone, atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"codec_hash": "0" * 64}, "trained on latents of codec 000000000000"),
        ({"text": {"encoder": "flan_t5", "max_tokens": 16}}, "trained with text encoder 'flan_t5', this network with 'minilm'"),
        ({"latent_std": [2.0] * LATENT_DIM}, "normalised otherwise"),
    ],
)
def test_a_guide_of_another_codec_text_or_scale_is_refused(model, checkpoint_copy, values, told):
    write_json(checkpoint_copy / "config.json", read_json(checkpoint_copy / "config.json") | values)
    (checkpoint_copy / VAE_FILE).unlink()
    with pytest.raises(InputError, match=told):
        model.generate("rain", guidance_scale=2.0, guide_with=checkpoint_copy)


def test_a_packed_checkpoint_goes_with_networks_and_taggers_of_its_own_and_of_the_original_codec(
    tiny_checkpoint, tagger, tmp_path, fast_text
):
    """Packing rounds the VAE to 16 bits, so the file has another hash than the one the network was trained with."""
    pack(tiny_checkpoint, tmp_path / "packed")
    packed = MeanAudio.from_pretrained(tmp_path / "packed", device="cpu")
    assert file_hash(tmp_path / "packed" / VAE_FILE) != packed.config.codec_hash
    for name in (packed.config.codec_hash, file_hash(tmp_path / "packed" / VAE_FILE)):
        write_json(tagger / "config.json", read_json(tagger / "config.json") | {"codec_hash": name})
        packed.generate("rain", classifier=tagger)
    for model, guide in ((packed, tiny_checkpoint), (MeanAudio.from_pretrained(tiny_checkpoint, device="cpu"), tmp_path / "packed")):
        model.generate("rain", guidance_scale=2.0, guide_with=guide)


def test_a_guide_must_know_mean_velocities_and_scale_one(model, checkpoint_copy):
    with pytest.raises(InputError, match="knows velocities only"):
        model.generate("rain", guidance_scale=2.0, guide_with=change(checkpoint_copy, interval="none"))
    change(checkpoint_copy, guidance_embedding=True, guidance_range=[2.0, 6.0])
    with pytest.raises(InputError, match="it must know scale 1"):
        model.generate("rain", guidance_scale=2.0, guide_with=checkpoint_copy)
    with pytest.raises(InputError, match="guide_with has no effect at guidance_scale 1"):
        model.generate("rain", guide_with=checkpoint_copy)
    with pytest.raises(InputError, match="unknown model 'nonesuch'"):
        model.generate("rain", guidance_scale=2.0, guide_with="nonesuch")


def test_stochastic_sampling_costs_the_same_and_belongs_to_its_seed(model):
    made = model.generate(["rain", "wind"], steps=4, stochastic=True, seed=3)
    assert made.evaluations == 4
    plain = model.generate(["rain", "wind"], steps=4, seed=3)
    assert (made.samples - plain.samples).abs().max() > 1e-3
    alone = model.generate("wind", steps=4, stochastic=True, seed=4)
    torch.testing.assert_close(alone.samples[0], made.samples[1], atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------- a classifier


@pytest.fixture
def tagger(tmp_path, model):
    config = TaggerCheckpointConfig(
        codec_hash=model.config.codec_hash, classes=("rain", "dog", "bell"), latent_dim=LATENT_DIM, width=16, blocks=1
    )
    folder = tmp_path / "tagger"
    save_weights(folder / TAGGER_FILE, fill(make_tagger(config), std=0.5).state_dict())
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return folder


class Sure(Judge):
    """A classifier that always hears rain."""

    classes, related = ("rain", "dog", "bell"), None

    def __call__(self, latents):
        self.seen.append(latents)
        return torch.tensor([[20.0, 0.0, 0.0]]).expand(len(latents), 3)


class Wrong(Sure):
    """One that always hears a dog."""

    def __call__(self, latents):
        return super().__call__(latents).roll(1, dims=1)


def test_a_sure_classifier_changes_nothing_and_costs_nothing(model):
    sure = Sure([[1.0]])
    alone = model.generate(["rain", "more rain"], steps=3, seed=0)
    heard = model.generate(["rain", "more rain"], steps=3, seed=0, classifier=sure)
    assert torch.equal(alone.samples, heard.samples)
    assert heard.evaluations == alone.evaluations == 3
    assert len(sure.seen) == 3


def test_the_classifier_hears_the_codecs_latents_of_the_one_jump_estimate(model):
    sure = Sure([[1.0]])
    model.generate("rain", steps=1, seed=0, classifier=sure)
    expected = model.sample_latents(model.encode_text(["rain"]), [0], 16)
    torch.testing.assert_close(sure.seen[0], expected, atol=1e-4, rtol=1e-4)


def test_a_mistaken_clip_moves_away_from_what_it_is_mistaken_for(model):
    made = model.generate("rain", steps=1, seed=0, classifier=Wrong([[1.0]]), classifier_scale=4.0, classifier_reference="rival")
    assert made.evaluations == 2
    negative = model.generate("rain", steps=1, seed=0, guidance_scale=4.0, negative_prompt="dog")
    torch.testing.assert_close(made.samples, negative.samples, atol=1e-3, rtol=1e-2)


def test_with_another_guidance_there_are_still_two_evaluations_a_step(model, checkpoint_copy):
    """Confident rows are guided as without the classifier, mistaken ones move away from the class; the weaker network sees it."""
    folder = change(checkpoint_copy, seed=11)
    for options in ({}, {"guide_with": folder}):
        base = model.generate("rain", steps=2, seed=0, guidance_scale=3.0, **options)
        sure = model.generate("rain", steps=2, seed=0, guidance_scale=3.0, classifier=Sure([[1.0]]), **options)
        torch.testing.assert_close(sure.samples, base.samples, atol=1e-4, rtol=1e-3)
        rival = {"classifier": Wrong([[1.0]]), "classifier_reference": "rival"}
        wrong = model.generate("rain", steps=2, seed=0, guidance_scale=3.0, **rival, **options)
        away = model.generate("rain", steps=2, seed=0, guidance_scale=3.0, negative_prompt="dog", **options)
        torch.testing.assert_close(wrong.samples, away.samples, atol=1e-3, rtol=1e-2)
        assert base.evaluations == sure.evaluations == wrong.evaluations == 4


def test_a_mistaken_clip_is_guided_further_from_where_guidance_leads_away(model, checkpoint_copy):
    """The scale is the classifier's, the reference that of guidance: no text, a negative prompt, a weaker network."""
    folder = change(checkpoint_copy, seed=11)
    for options in ({}, {"negative_prompt": "hum"}, {"guide_with": folder}):
        further = model.generate("rain", steps=2, seed=0, guidance_scale=5.0, **options)
        for scale in (1.0, 2.0) if "guide_with" not in options else (2.0,):
            wrong = model.generate(
                "rain", steps=2, seed=0, guidance_scale=scale, classifier=Wrong([[1.0]]), classifier_scale=5.0, **options
            )
            torch.testing.assert_close(wrong.samples, further.samples, atol=1e-3, rtol=1e-2)
            assert wrong.evaluations == 4


def test_a_distilled_checkpoint_may_have_a_classifier(distilled):
    rival = {"classifier_reference": "rival"}
    sure = distilled.generate("rain", steps=2, seed=0, guidance_scale=3.0, classifier=Sure([[1.0]]), **rival)
    assert torch.equal(sure.samples, distilled.generate("rain", steps=2, seed=0, guidance_scale=3.0).samples)
    wrong = distilled.generate("rain", steps=2, seed=0, guidance_scale=3.0, classifier=Wrong([[1.0]]), **rival)
    with pytest.raises(InputError, match="has learned to move away from no text; use 'rival'"):
        distilled.generate("rain", steps=2, seed=0, guidance_scale=3.0, classifier=Sure([[1.0]]))
    assert (sure.evaluations, wrong.evaluations) == (2, 4)
    assert (sure.samples - wrong.samples).abs().max() > 1e-3


def test_what_nothing_moves_away_from_is_refused(model):
    made = model.generate("rain", steps=2, seed=0, classifier=Wrong([[1.0]]), negative_prompt="hum").samples
    assert not torch.equal(made, model.generate("rain", steps=2, seed=0, classifier=Wrong([[1.0]])).samples)
    with pytest.raises(InputError, match="negative_prompt 'hum' has no effect at guidance_scale 1"):
        model.generate("rain", steps=2, classifier=Wrong([[1.0]]), classifier_reference="rival", negative_prompt="hum")


def test_a_tagger_of_sound_may_guide(model):
    """A listener to decoded audio: louder than a threshold is a dog."""
    heard = []

    def listen(audio):
        heard.append(audio.shape)
        return torch.tensor([[0.0, 20.0, 0.0]]).expand(len(audio), 3)

    classifier = DecodedClassifier(model.codec.decode, listen, ("rain", "dog", "bell"))
    made = model.generate("rain", steps=2, seed=0, classifier=classifier)
    assert heard == [(1, 16384)] * 2
    same = model.generate("rain", steps=2, seed=0, classifier=Wrong([[1.0]]))
    assert torch.equal(made.samples, same.samples)


def test_a_taggers_folder_is_an_option_that_is_kept_with_the_sound(model, tagger):
    made = model.generate("rain and a bell", steps=2, seed=0, classifier=tagger, classifier_scale=5.0, stochastic=True)
    found = json.loads(json.dumps(made.parameters[0]))
    assert (found["classifier"], found["classifier_scale"]) == (str(tagger), 5.0)
    found.pop("model")
    again = model.generate(found.pop("prompt"), **found)
    assert torch.equal(again.samples, made.samples)


@pytest.mark.parametrize("reference", ["base", "rival"])
@pytest.mark.filterwarnings("ignore::meanaudio.errors.OutsideKnowledge")
def test_a_scorer_is_a_classifier_of_captions_for_any_prompt(scored_checkpoint, tmp_path, fast_text, reference):
    """The scorer of a checkpoint, and one in a folder of its own."""
    model = MeanAudio.from_pretrained(scored_checkpoint, device="cpu")
    write_scorer(tmp_path / "scorer", scored_checkpoint, {"rain": 5, "a dog barks": 2, "wind in the trees": 1})
    prompts, options = ["a dog barks", "un orage", "..."], {"steps": 2, "seed": 0, "classifier_reference": reference}
    made = model.generate(prompts, classifier=scored_checkpoint, **options)
    assert torch.equal(made.samples, model.generate(prompts, classifier=tmp_path / "scorer", **options).samples)
    assert made.parameters[1]["classifier_reference"] == reference
    assert 2 <= made.evaluations <= 4
    alone = model.generate("...", classifier=scored_checkpoint, **{**options, "seed": 2})
    torch.testing.assert_close(alone.samples[0], made.samples[2], atol=1e-4, rtol=1e-3)


def test_a_prompt_wants_the_captions_that_mean_the_same_or_else_the_nearest():
    scorer = Scorer(latent_dim=4, pooled_dim=2, dim=8, width=8, blocks=1, outside=0.5, known={"rain": 1, "heavy rain": 1, "a dog": 1})
    scorer.known_text.copy_(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]))
    classifier = CaptionClassifier(scorer)
    prompts = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    assert classifier.wanted(prompts).tolist() == [[True, True, False], [False, True, True], [False, False, True]]
    latents = torch.randn(5, 16, 4)
    expected = scorer.log_scale.exp() * scorer(latents, torch.tensor([[0.0, 1.0]]).expand(5, -1))
    torch.testing.assert_close(classifier(latents)[:, 2], expected)


def test_a_scorer_of_another_codec_is_no_classifier(model, scored_checkpoint, checkpoint_copy, tmp_path):
    write_scorer(tmp_path / "scorer", scored_checkpoint, {"rain": 5})
    write_json(tmp_path / "scorer" / "config.json", read_json(tmp_path / "scorer" / "config.json") | {"codec_hash": "f" * 64})
    with pytest.raises(InputError, match="listens to latents of codec ffffffffffff"):
        model.generate("rain", classifier=tmp_path / "scorer")


def test_limits_and_the_guide_are_kept_with_the_sound(model, checkpoint_copy):
    folder = change(checkpoint_copy, seed=11)
    made = model.generate("rain", steps=2, seed=0, guidance_scale=2.0, guide_with=folder, guidance_limits=(0.2, 0.7))
    found = json.loads(json.dumps(made.parameters[0]))
    found.pop("model")
    again = model.generate(found.pop("prompt"), **found)
    assert torch.equal(again.samples, made.samples)
    assert again.parameters == made.parameters


def test_a_prompt_without_a_known_class_and_a_tagger_of_another_codec_are_refused(model, tagger):
    with pytest.raises(InputError, match="prompt 'a violin' names nothing that the classifier knows: rain, dog, bell"):
        model.generate(["rain", "a violin"], classifier=tagger)
    with pytest.raises(InputError, match="must be from 1 to 100"):
        model.generate("rain", classifier=tagger, classifier_scale=0.0)
    write_json(tagger / "config.json", read_json(tagger / "config.json") | {"codec_hash": "f" * 64})
    with pytest.raises(InputError, match="hears latents of codec ffffffffffff"):
        model.generate("rain", classifier=tagger)
    with pytest.raises(InputError, match="no such file"):
        model.generate("rain", classifier="nowhere")


def test_long_lists_of_classes_are_cut_in_the_refusal():
    with pytest.raises(InputError, match="and 70 more") as error:
        wanted_classes(["a violin"], [f"thing{i}" for i in range(100)])
    assert len(str(error.value)) < 500
    assert wanted_classes(["a dog in the rain", "bells"], ("rain", "dog", "bell")).tolist() == [[True, True, False], [False, False, True]]


def test_what_is_related_to_a_named_class_may_be_heard_too():
    classes, related = ("guitar", "strums", "bell"), torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert wanted_classes(["a guitar", "a bell"], classes, related).tolist() == [[True, True, False], [False, False, True]]


# ---------------------------------------------------------------- edits


def recording(model, seed=5):
    return model.generate("wind", seed=seed, duration=0.7, level_db=None).samples[0]


def test_an_edit_into_what_it_is_returns_the_codecs_reconstruction(checkpoint_copy, fast_text):
    """Up and down with one prompt: the sampler's inverse, to within its iterations. A gentle network, so that steps contract."""
    model = MeanAudio.from_pretrained(change(checkpoint_copy, std=0.08), device="cpu")
    sound = recording(model)
    expected = high_pass(model.decode(model.encode(sound[None]), len(sound))[0], model.sample_rate)
    distances = []
    for iterations in (1, 3, 40):
        made = model.edit(sound, "wind", source="wind", strength=0.9, steps=4, iterations=iterations, level_db=None)
        assert made.samples.shape == (1, len(sound))
        assert made.evaluations == 4 * iterations + 4
        distances.append((made.samples[0] - expected).norm().item() / expected.norm().item())
    assert distances[2] < 1e-3
    assert distances[2] < distances[1] < distances[0]


def test_strength_says_how_far_an_edit_goes(checkpoint_copy, fast_text):
    model = MeanAudio.from_pretrained(change(checkpoint_copy, std=0.08), device="cpu")
    sound = recording(model)
    expected = model.encode(sound[None])
    moved = []
    for strength in (0.01, 0.3, 1.0):
        made = model.edit(sound, ["rain", "a dog"], source="wind", strength=strength, steps=2)
        again = model.edit(sound, ["rain", "a dog"], source="wind", strength=strength, steps=2)
        assert torch.equal(made.samples, again.samples)  # nothing is drawn
        text, steering = model.steer(["rain"])
        latents = model.move_latents(
            expected, model.encode_text(["wind"]), text, strength=strength, steps=2, iterations=2, steering=steering
        )
        moved.append((latents - expected).norm().item())
    assert moved[0] < moved[1] < moved[2]
    assert moved[0] < 0.05 * expected.norm()


def test_an_edit_may_be_guided_on_its_way_down(model, distilled):
    sound = recording(model)
    assert model.edit(sound, "rain", steps=2, iterations=1, guidance_scale=3.0).evaluations == 2 + 4
    assert distilled.edit(sound, "rain", steps=2, iterations=1, guidance_scale=3.0).evaluations == 2 + 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strength": 0.0}, "strength = 0.0: must be above 0"),
        ({"strength": 1.5}, "strength = 1.5"),
        ({"steps": 0}, "steps = 0"),
        ({"iterations": 0}, "iterations = 0"),
        ({"source": " "}, "empty prompt ' '"),
        ({"prompts": []}, "no prompt"),
        ({"audio": torch.zeros(2, 100)}, r"expected one recording \[N\]"),
        ({"audio": torch.zeros(10)}, "duration = "),
        ({"audio": torch.zeros(8000, dtype=torch.int16)}, "a recording of int16: must be floating point"),
        ({"audio": torch.full((8000,), 100.0)}, "samples of 100: must be in"),
        ({"audio": torch.full((8000,), float("nan"))}, "samples of nan"),
    ],
)
def test_impossible_edits_are_refused(model, options, told):
    with pytest.raises(InputError, match=told):
        model.edit(**{"audio": torch.zeros(8000), "prompts": "rain", **options})


def test_a_steered_field_without_guidance_is_the_networks_own(model):
    text, steering = model.encode_text(["rain"]), Steering()
    z, t, r = torch.randn(1, 8, LATENT_DIM, generator=torch.Generator().manual_seed(0)), torch.ones(1), torch.zeros(1)
    found = steered_field(model.network, model.config, text, steering)(z, t, r)
    assert torch.equal(found, model.network(z, t, r, model.network.condition(text)))
    assert steering.evaluations.clips == 1


def test_weights_of_the_copy_are_another_network(checkpoint_copy, tiny_checkpoint):
    """The fixture does what the tests above rely on."""
    change(checkpoint_copy, seed=11)
    ours, theirs = (load_weights(folder / NETWORK_FILE) for folder in (checkpoint_copy, tiny_checkpoint))
    assert not torch.equal(ours["out.weight"], theirs["out.weight"])
