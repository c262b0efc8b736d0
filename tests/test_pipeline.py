"""Text to audio: exact lengths, seeds, guidance, and every refusal."""

import json
import warnings

import numpy as np
import pytest
import torch
from fakes import LATENT_DIM, fill
from safetensors.torch import load_file, save_file

from meanaudio.audio import read_metadata
from meanaudio.checkpoint import read_json, write_json
from meanaudio.codec.codec import make_vocoder
from meanaudio.config import CodecConfig, MelConfig
from meanaudio.errors import InputError, Notice
from meanaudio.pipeline import MAX_DURATION, REMEMBERED_TEXTS, MeanAudio, resolve_device
from meanaudio.sampling import per_sample_noise
from meanaudio.steering import Steering


@pytest.fixture
def model(tiny_checkpoint, fast_text) -> MeanAudio:
    return MeanAudio.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.mark.parametrize("duration", [0.0317, 0.5, 1.0, 1.02401, 1.4999, None])
def test_the_length_is_exact_to_the_sample(model, duration):
    audio = model.generate("rain", duration=duration, seed=0)
    assert audio.sample_rate == 16000
    assert audio.samples.shape == (1, round((duration or 1.024) * 16000))
    assert audio.samples.dtype == torch.float32
    assert audio.samples.abs().max() <= 0.9801
    assert audio.samples.std() > 1e-3


def test_a_clip_is_the_same_alone_and_in_a_batch(model):
    prompts = ["rain", "a dog barks twice at the gate", "wind in the trees"]
    together = model.generate(prompts, seed=5)
    for k, prompt in enumerate(prompts):
        alone = model.generate(prompt, seed=5 + k)
        torch.testing.assert_close(alone.samples[0], together.samples[k], atol=1e-4, rtol=1e-4)
        assert alone.parameters[0] == together.parameters[k]


@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"guidance_scale": 3.0}])
def test_a_seed_repeats_and_another_differs(model, options):
    first, again, other = (model.generate("rain", seed=seed, **options).samples for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-2


def test_steps_prompt_guidance_and_negative_prompt_change_the_sound(model):
    calls = [
        {},
        {"steps": 2},
        {"steps": 4},
        {"guidance_scale": 4.0},
        {"guidance_scale": 4.0, "negative_prompt": "speech in a room"},
        {"prompts": "a loud explosion"},
    ]
    sounds = [model.generate(**{"prompts": "rain", "seed": 3, **call}).samples for call in calls]
    for i in range(len(sounds)):
        for j in range(i):
            assert (sounds[i] - sounds[j]).abs().max() > 1e-3, (calls[i], calls[j])


def test_a_mean_velocity_network_is_evaluated_once_a_step_and_twice_with_guidance(model, monkeypatch):
    counted = []
    forward = type(model.network).forward
    monkeypatch.setattr(type(model.network), "forward", lambda self, *args: counted.append(1) or forward(self, *args))
    for steps, scale, evaluations in ((1, 1.0, 1), (4, 1.0, 4), (2, 2.0, 4)):
        counted.clear()
        model.generate("rain", steps=steps, guidance_scale=scale, seed=0)
        assert len(counted) == evaluations


def test_latents_leave_the_networks_scale_by_the_checkpoints_statistics(model):
    """The network's own output for the clip's noise, times the stored deviations, plus the stored means."""
    text = model.encode_text(["rain", "wind"])
    noise = per_sample_noise((9, LATENT_DIM), [4, 5])
    ends = torch.ones(2), torch.zeros(2)
    normalised = noise - model.network(noise, *ends, model.network.condition(text))
    expected = normalised * torch.tensor(model.config.latent_std) + torch.tensor(model.config.latent_mean)
    torch.testing.assert_close(model.sample_latents(text, [4, 5], 9), expected)


def test_a_drawn_seed_is_reported_and_makes_the_clip_again(model):
    drawn = model.generate(["rain", "wind"])
    first, second = (p["seed"] for p in drawn.parameters)
    assert second == first + 1
    again = model.generate(["rain", "wind"], seed=first)
    assert torch.equal(drawn.samples, again.samples)


def test_bf16_gives_nearly_the_same_latents_and_finite_sound(tiny_checkpoint, model):
    half = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    text = model.encode_text(["rain"])
    exact, rounded = (m.sample_latents(text, [0], 16) for m in (model, half))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.02 * exact.norm()
    assert torch.isfinite(half.generate("rain", seed=0).samples).all()


def test_generating_leaves_the_global_random_state_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model.generate("rain", seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_duration_far_from_the_training_length_warns(model):
    with pytest.warns(UserWarning, match="trained on 1.024 s"):
        model.generate("rain", duration=4.0, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("rain", duration=1.2, seed=0)


def test_saved_files_carry_what_makes_them_again(model, tmp_path):
    audio = model.generate(["rain", "wind – naïve"], seed=7, guidance_scale=2.0, negative_prompt="hum", duration=0.3)
    found = read_metadata(audio.save(tmp_path / "wind.flac", 1))
    assert found == audio.parameters[1]
    prompt, seed = found.pop("prompt"), found.pop("seed")
    assert found.pop("model") == "tiny"
    torch.testing.assert_close(model.generate(prompt, seed=seed, **found).samples[0], audio.samples[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompts": ""}, "empty prompt"),
        ({"prompts": " \n\t"}, "empty prompt"),
        ({"prompts": ["rain", ""]}, "empty prompt"),
        ({"prompts": []}, "no prompt"),
        ({"prompts": "x" * 10_000}, "10000 characters"),
        ({"duration": 0}, "duration = 0"),
        ({"duration": 1e-9}, "duration = 1e-09"),
        ({"duration": -1.0}, "duration = -1"),
        ({"duration": 10_000.0}, "duration = 10000"),
        ({"duration": float("nan")}, "duration = nan"),
        ({"duration": float("inf")}, "duration = inf"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": -3}, "steps = -3"),
        ({"steps": 10**9}, "steps = 1000000000"),
        ({"guidance_scale": 0.5}, "guidance_scale = 0.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale = nan"),
        ({"guidance_scale": 1e9}, "guidance_scale = 1000000000"),
        ({"negative_prompt": "hum"}, "no effect at guidance_scale 1"),
        ({"negative_prompt": " ", "guidance_scale": 2.0}, "empty prompt"),
        ({"negative_prompt": "x" * 10_000, "guidance_scale": 2.0}, "10000 characters"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 1.5}, "seed = 1.5: must be a whole number"),
        ({"steps": 2.0}, "steps = 2.0: must be a whole number"),
        ({"duration": "5"}, "duration = '5': must be a number"),
        ({"prompts": None}, "prompts = None"),
        ({"prompts": ["rain", None]}, "prompt None"),
        ({"seed": 2**70}, f"seed = {2**70}"),
    ],
)
def test_bad_requests_are_refused_with_the_value(model, options, told):
    with pytest.raises(InputError) as error:
        model.generate(**{"prompts": "rain", **options})
    assert told in str(error.value)
    assert len(str(error.value)) < 300


def test_numbers_of_numpy_and_torch_are_numbers(model, tmp_path):
    plain = model.generate("rain", seed=3, duration=0.5, steps=2, guidance_scale=2.0)
    other = model.generate("rain", seed=np.int64(3), duration=np.float32(0.5), steps=torch.tensor(2), guidance_scale=torch.tensor(2.0))
    assert torch.equal(plain.samples, other.samples)
    assert read_metadata(other.save(tmp_path / "a.wav")) == plain.parameters[0]


def test_a_clip_says_with_which_vocoder_and_in_which_precision_it_was_made(tiny_checkpoint, fast_text):
    loaded = {"vocoder": str(tiny_checkpoint), "dtype": "bf16"}
    told = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", **loaded).generate("rain", seed=0).parameters[0]
    assert {key: told[key] for key in ("model", *loaded)} == {"model": "tiny", **loaded}


def test_what_is_no_sound_is_refused(model, monkeypatch):
    monkeypatch.setattr(model, "decode", lambda latents, count: torch.full((len(latents), count), float("inf")))
    with pytest.raises(InputError, match="NaN or infinite samples: .*guidance_scale"):
        model.generate("rain", seed=0)


def test_the_longest_allowed_duration_is_named(model):
    with pytest.raises(InputError, match=f"to {MAX_DURATION:g}"):
        model.generate("rain", duration=MAX_DURATION + 1)


def test_guidance_without_a_reference_is_refused(model):
    with pytest.raises(InputError, match="reference"):
        model.sample_latents(model.encode_text(["rain"]), [0], 16, steering=Steering(scale=2.0))


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "meta", ""])
def test_an_unknown_device_is_refused(tiny_checkpoint, device):
    with pytest.raises(InputError, match="device"):
        MeanAudio.from_pretrained(tiny_checkpoint, device=device)


def test_a_device_is_found_when_none_is_asked_for():
    assert resolve_device(None).type in ("cpu", "cuda", "mps")


def test_an_unknown_dtype_is_refused_with_the_known_ones(tiny_checkpoint):
    with pytest.raises(InputError, match="float32, bf16"):
        MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", dtype="int3")


def test_an_unknown_model_is_refused_with_the_known_ones(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("MEANAUDIO_CHECKPOINTS", str(tiny_checkpoint.parent))
    with pytest.raises(InputError, match=r"unknown model 'nonesuch'.*tiny"):
        MeanAudio.from_pretrained("nonesuch")
    assert MeanAudio.from_pretrained("tiny", device="cpu").name == "tiny"


@pytest.mark.parametrize("name", ["network", "vae", "vocoder"])
def test_damaged_weights_are_refused_with_file_and_key(checkpoint_copy, name):
    path = checkpoint_copy / f"{name}.safetensors"
    state = load_file(path)
    key = next(k for k, v in state.items() if v.is_floating_point())

    spoilt = {**state, key: state[key].clone()}
    spoilt[key].view(-1)[0] = float("nan")
    save_file(spoilt, path)
    with pytest.raises(InputError, match="NaN") as error:
        MeanAudio.from_pretrained(checkpoint_copy, device="cpu")
    assert key in str(error.value)
    assert path.name in str(error.value)

    save_file({k: v for k, v in state.items() if k != key} | {"stranger": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="another network") as error:
        MeanAudio.from_pretrained(checkpoint_copy, device="cpu")
    assert key in str(error.value)
    assert "stranger" in str(error.value)

    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="safetensors"):
        MeanAudio.from_pretrained(checkpoint_copy, device="cpu")

    path.unlink()
    with pytest.raises(InputError, match="no such weights file"):
        MeanAudio.from_pretrained(checkpoint_copy, device="cpu")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["network"].update(width=64), "another network"),
        (lambda c: c["network"].update(interval="none"), "another network"),
        (lambda c: c["network"].update(depht=3), "network.depht"),
        (lambda c: c.pop("network"), "network"),
        (lambda c: c.update(latent_mean=[0.0]), "latent channels"),
        (lambda c: c["text"].update(encoder="oracle"), "unknown text encoder 'oracle'"),
        (lambda c: c.update(format=2), "format = 2"),
    ],
)
def test_a_config_that_does_not_describe_the_weights_is_refused(checkpoint_copy, change, told):
    path = checkpoint_copy / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError) as error:
        MeanAudio.from_pretrained(checkpoint_copy, device="cpu")
    assert told in str(error.value)


def test_a_network_for_other_text_features_is_refused(model):
    text = model.encode_text(["rain"])
    with pytest.raises(InputError, match="384"):
        model.network.condition(type(text)(text.sequence[..., :10], text.pooled, text.mask))


# ---------------------------------------------------------------- text in memory, other vocoders, precision, compilation


def test_a_text_is_encoded_once(model, monkeypatch):
    asked = []
    encoder = model.encoder
    model.encoder = lambda texts: asked.extend(texts) or encoder(texts)
    first = model.generate(["rain", "wind in the trees", "rain"], seed=0).samples
    assert asked == ["rain", "wind in the trees"]
    again = model.generate(["wind in the trees", "rain"], seed=1).samples
    assert len(asked) == 2
    torch.testing.assert_close(again[0], first[1], atol=1e-4, rtol=1e-4)
    model.forget_text()
    model.encode_text(["rain"])
    assert asked[2:] == ["rain"]
    for i in range(REMEMBERED_TEXTS // 4 + 2):
        model.encode_text([f"sound number {i}, {k}" for k in range(4)])
    assert len(model._features) == REMEMBERED_TEXTS
    many = [f"noise {i}" for i in range(REMEMBERED_TEXTS + 36)]  # more at once than are remembered
    assert len(model.encode_text(many)) == len(many)


def test_remembered_features_do_not_depend_on_their_neighbours(model):
    together = model.encode_text(["rain", "a dog barks twice at the gate"])[:1]
    alone = model.encode_text(["rain"])
    assert alone.sequence.shape[1] == int(alone.mask.sum())
    torch.testing.assert_close(together.sequence[:, : alone.sequence.shape[1]], alone.sequence)


def test_a_network_that_sees_padding_always_sees_as_much(checkpoint_copy, fast_text):
    config = json.loads((checkpoint_copy / "config.json").read_text())
    config["network"]["mask_text"] = False
    (checkpoint_copy / "config.json").write_text(json.dumps(config))
    model = MeanAudio.from_pretrained(checkpoint_copy, device="cpu")
    alone = model.generate("rain", seed=3).samples[0]
    model.forget_text()
    beside = model.generate(["rain", "wind in the trees before a long thunderstorm"], seed=3).samples[0]
    torch.testing.assert_close(beside, alone, atol=1e-4, rtol=1e-4)
    assert model.encode_text(["rain"]).sequence.shape[1] == model.config.text.max_tokens


def test_remembered_features_do_not_depend_on_who_asked_first(model):
    seen, encoder = [], model.encoder
    model.encoder = lambda texts: seen.append(torch.is_autocast_enabled("cpu")) or encoder(texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.encode_text(["hail on a window"])
    assert seen == [False]


def other_vocoder(folder, **changes):
    """The checkpoint's folder with another vocoder in it."""
    config = json.loads((folder / "config.json").read_text())
    config["codec"]["vocoder"] |= changes.pop("vocoder", {})
    config["codec"]["mel"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    codec = CodecConfig.model_validate(config["codec"])
    save_file(fill(make_vocoder(codec), 9, 0.2).state_dict(), folder / "vocoder.safetensors")
    return folder


def test_another_vocoder_of_the_same_mels_plugs_in(tiny_checkpoint, checkpoint_copy, fast_text, model):
    other = other_vocoder(checkpoint_copy, vocoder={"width": 24})
    swapped = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", vocoder=other)
    assert swapped.codec.config.vocoder.width == 24
    sound, own = (m.generate("rain", seed=0).samples for m in (swapped, model))
    assert sound.shape == own.shape
    assert (sound - own).abs().max() > 1e-3
    torch.testing.assert_close(swapped.codec.vae.decoder[0].weight, model.codec.vae.decoder[0].weight)


def test_a_vocoder_of_other_mels_is_refused(tiny_checkpoint, checkpoint_copy, fast_text):
    other = other_vocoder(checkpoint_copy, f_max=7000.0)
    with pytest.raises(InputError, match=r"f_max=7000.0.*the VAE gives.*f_max=8000.0"):
        MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", vocoder=other)


def test_an_unknown_vocoder_is_told_which_there_are(tiny_checkpoint, fast_text):
    with pytest.raises(InputError, match=r"vocoder: unknown model 'quick'.*sounds-small.*'fast' is that of sounds-small"):
        MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", vocoder="quick")


def test_the_fast_vocoder_reads_the_release_mels(fast_text, tiny_checkpoint):
    """The default checkpoint's vocoder goes with anything on the 16 kHz release's mels."""
    fast = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", vocoder="fast")
    assert fast.codec.config.vocoder == MeanAudio.from_pretrained(device="cpu").codec.config.vocoder
    assert fast.codec.config.mel == MelConfig()


def test_in_bf16_weights_take_half_the_memory_and_the_sound_is_near(tiny_checkpoint, fast_text, model):
    half = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    for part in (half.network, half.codec.vae.decoder, half.codec.vocoder):
        matrices = [m for m in part.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv1d))]
        assert matrices
        assert all(m.weight.dtype == torch.bfloat16 for m in matrices)
        norms = [m for m in part.modules() if isinstance(m, torch.nn.LayerNorm) and m.elementwise_affine]
        assert all(m.weight.dtype == torch.float32 for m in norms)
    exact, rounded = (m.generate("rain", seed=0, level_db=None).samples for m in (model, half))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.2


def test_compiled_it_sounds_the_same(tiny_checkpoint, fast_text, model, monkeypatch):
    """Traced by the compiler, but run without making kernels, which takes a minute."""
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: real(self, backend="eager"))
    with torch._dynamo.config.patch(suppress_errors=False):  # which it sets, for all that comes after
        compiled = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu", compile=True)
        exact, made = (m.generate("rain", seed=0).samples for m in (model, compiled))
    torch.testing.assert_close(made, exact, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- sounds one after another


def test_successive_sounds_are_made_one_by_one_and_joined(model):
    """Each is what its own words, its own seed and its share of the time make; a whisper of both where they meet."""
    audio = model.generate("a dog barks, then rain falls", by_event=True, duration=1.5, seed=7)
    assert audio.samples.shape == (1, 24000)
    assert audio.evaluations == 2
    assert audio.parameters[0]["events"] == ["a dog barks", "rain falls"]
    length = 12400  # half of what there is with 800 samples of overlap
    first = model.generate("a dog barks", duration=length / 16000, seed=7).samples[0]
    second = model.generate("rain falls", duration=length / 16000, seed=7 + 1_779_033_703).samples[0]
    torch.testing.assert_close(audio.samples[0, :11600], first[:11600], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(audio.samples[0, 12400:], second[800:], atol=1e-4, rtol=1e-4)
    rise = torch.linspace(0, torch.pi / 2, 802)[1:-1].sin()
    torch.testing.assert_close(audio.samples[0, 11600:12400], first[11600:] * rise.flip(0) + second[:800] * rise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"steps": 2, "guidance_scale": 2.0}, {"steps": 2, "stochastic": True}, {"guidance_scale": 2.0, "negative_prompt": "speech"}],
)
def test_clips_of_one_and_of_several_sounds_share_a_batch(model, options):
    prompts = ["rain", "a dog barks, then rain falls", "wind", "a hit, then a bell, then wind", "a bird sings before rain falls"]
    together = model.generate(prompts, by_event=True, duration=1.6, seed=5, **options)
    assert [len(told.get("events", [""])) for told in together.parameters] == [1, 2, 1, 3, 2]
    for k, prompt in enumerate(prompts):
        alone = model.generate(prompt, by_event=True, duration=1.6, seed=5 + k, **options)
        torch.testing.assert_close(alone.samples[0], together.samples[k], atol=1e-4, rtol=1e-4)
        assert alone.parameters[0] == together.parameters[k]


def test_a_checkpoint_says_whether_sounds_are_made_one_by_one(model, checkpoint_copy, fast_text):
    prompt = "a dog barks, then rain falls"
    whole, parted = (model.generate(prompt, seed=1, by_event=by_event) for by_event in (False, True))
    assert (whole.samples - parted.samples).abs().max() > 1e-2
    assert torch.equal(whole.samples, model.generate(prompt, seed=1).samples)
    assert "by_event" not in whole.parameters[0] and parted.parameters[0]["by_event"] is True
    write_json(checkpoint_copy / "config.json", {**read_json(checkpoint_copy / "config.json"), "by_event": True})
    other = MeanAudio.from_pretrained(checkpoint_copy, device="cpu")
    assert torch.equal(parted.samples, other.generate(prompt, seed=1).samples)
    assert torch.equal(whole.samples, other.generate(prompt, seed=1, by_event=False).samples)
    assert other.generate(prompt, seed=1, by_event=False).parameters[0]["by_event"] is False


@pytest.mark.parametrize(("prompt", "duration"), [("a dog barks, then rain falls", 0.9), (", then ".join(["a dog barks"] * 9), 8.0)])
def test_without_room_for_several_sounds_or_with_too_many_a_prompt_stays_whole(model, prompt, duration):
    whole = model.generate(prompt, seed=1, duration=duration, by_event=False).samples
    with pytest.warns(Notice, match="made as a whole: 'a dog barks, then"):
        assert torch.equal(model.generate(prompt, seed=1, duration=duration, by_event=True).samples, whole)


def test_several_sounds_are_warned_of_by_their_own_length(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("a dog barks, then rain falls", seed=1, duration=2.0, by_event=True)
    with pytest.warns(UserWarning, match="2 s may drift"):
        model.generate(["rain", "a dog barks, then rain falls"], seed=1, duration=2.0, by_event=True)


@pytest.mark.parametrize("level_db", [-30.0, None])
def test_every_one_of_several_sounds_has_its_level(model, level_db):
    audio = model.generate("a dog barks, then rain falls", seed=1, duration=2.0, by_event=True, level_db=level_db).samples[0]
    levels = [20 * part.unfold(0, 6400, 1600).square().mean(1).amax().sqrt().log10().item() for part in (audio[:15600], audio[16400:])]
    if level_db is not None:
        assert levels == pytest.approx([level_db] * 2, abs=0.5)
    else:
        assert max(abs(level + 30) for level in levels) > 1
