"""The published files: full-size names convert strictly, the small stored release gives the official sound, and bad files are refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import floats
from release_fakes import CLAP, GOLDEN, KEYS, NETWORK, VAE, VOCODER, laion_names, meta, write_release
from safetensors import SafetensorError
from safetensors.torch import load_file

from meanaudio import pipeline
from meanaudio.checkpoint import file_hash
from meanaudio.cli import main
from meanaudio.codec.codec import make_vae, make_vocoder
from meanaudio.config import CodecConfig, MelConfig
from meanaudio.convert import RELEASES, convert_release
from meanaudio.convert.codec import convert_vae, convert_vocoder
from meanaudio.convert.foreign import read_foreign
from meanaudio.convert.network import convert_network
from meanaudio.convert.text import convert_clap
from meanaudio.errors import InputError
from meanaudio.models.transformer import make_network
from meanaudio.pack import pack
from meanaudio.pipeline import MeanAudio
from meanaudio.steering import Steering
from meanaudio.types import TextFeatures

# ---------------------------------------------------------------- full size, without data


def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in module.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "width", "interval"),
    [("meanaudio_s", 448, "absolute"), ("meanaudio_l", 896, "absolute"), ("fluxaudio_s", 448, "none")],
)
def test_full_size_networks_convert(name, width, interval):
    extras = {"t_embed.freqs": torch.zeros(128), "latent_rot": torch.zeros(1), "text_rot": torch.zeros(1)}
    made = convert_network(meta(name) | extras, name)
    config = made.config
    assert (config.width, config.num_heads, config.joint_depth, config.single_depth) == (width, width // 64, 4, 8)
    assert (config.interval, config.mask_text, config.sequence_dim, config.pooled_dim) == (interval, False, 1024, 512)
    with torch.device("meta"):
        assert {k: v.shape for k, v in made.state.items()} == shapes(make_network(config))
    assert made.null_text["sequence"].shape == (1, 77, 1024)


def test_the_full_size_vae_converts():
    config, state = convert_vae(meta("vae_16k"), MelConfig(), "v1-16")
    assert (config.width, config.multipliers, config.blocks, config.latent_dim) == (384, (1, 2, 4), 2, 20)
    with torch.device("meta"):
        assert {k: v.shape for k, v in state.items()} == shapes(make_vae(CodecConfig(vae=config)))


@pytest.mark.parametrize("layout", ["folded", "train_weightnorm", "legacy"])
def test_the_full_size_vocoder_converts(layout):
    state = meta("bigvgan_16k_folded" if layout == "folded" else "bigvgan_16k_train_weightnorm")
    if layout == "legacy":
        pair = ".parametrizations.weight.original"
        state = {k.replace(f"{pair}0", ".weight_g").replace(f"{pair}1", ".weight_v"): v for k, v in state.items()}
    config, ours = convert_vocoder(state, MelConfig(), layout)
    assert config.width == 1536
    with torch.device("meta"):
        assert {k: v.shape for k, v in ours.items()} == shapes(make_vocoder(CodecConfig(vocoder=config)))


def test_the_full_size_text_tower_converts():
    wanted = {k: tuple(v.shape) for k, v in meta("clap_text").items()}
    config, ours = convert_clap(laion_names(meta("clap_text")), CLAP)
    assert {k: tuple(v.shape) for k, v in ours.items()} == wanted
    assert (config["num_attention_heads"], config["projection_dim"], config["layer_norm_eps"]) == (12, 512, 1e-5)


def test_the_full_size_t5_encoder_has_the_listed_names():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, feed_forward_proj="gated-gelu")
    with torch.device("meta"):
        found = {k: list(v.shape) for k, v in T5EncoderModel(config).state_dict().items()}
    assert found == json.loads((KEYS / "keys_t5_flan_large_encoder.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["meanaudio_s", "vae_16k", "bigvgan_16k_folded", "clap_text"])
def test_missing_extra_and_misshaped_names_are_listed_in_the_files_own_words(name):
    state = meta(name)
    convert = {
        "meanaudio_s": lambda s: convert_network(s, "FILE"),
        "vae_16k": lambda s: convert_vae(s, MelConfig(), "FILE"),
        "bigvgan_16k_folded": lambda s: convert_vocoder(s, MelConfig(), "FILE"),
        "clap_text": lambda s: convert_clap(s, "FILE"),
    }[name]
    if name == "clap_text":
        state = {k.removeprefix("module."): v for k, v in laion_names(state).items()}
    missing, misshaped = [k for k, v in state.items() if k.endswith("weight") and v.ndim > 1][-4:-2]
    stranger = {"clap_text": "text_branch.stranger"}.get(name, "stranger.weight")
    spoilt = {k: v for k, v in state.items() if k != missing} | {misshaped: torch.zeros(1, 2), stranger: torch.zeros(1)}
    with pytest.raises(InputError) as error:
        convert(spoilt)
    for told in ("FILE", f"missing {missing}", f"not expected {stranger}", f"{misshaped} (1, 2) instead of"):
        assert told in str(error.value)


# ---------------------------------------------------------------- the small stored release


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """Read only: take `release_copy` to change it."""
    folder = tmp_path_factory.mktemp("release") / "files"
    write_release(folder)
    return folder


@pytest.fixture
def release_copy(release, tmp_path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "files"))


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "meanaudio-s-full"
    assert convert_release(release, out) == "meanaudio-s-full"
    return out


@pytest.fixture(scope="module")
def model(converted) -> MeanAudio:
    return MeanAudio.from_pretrained(converted, device="cpu", dtype="float32")


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_one_step_from_noise_to_sound_is_the_official_one(model, monkeypatch):
    expected, io = floats(GOLDEN / "e2e_io.safetensors"), floats(GOLDEN / "net_io.safetensors")
    monkeypatch.setattr(pipeline, "per_sample_noises", lambda *_: iter([expected["x0"]]))
    text = TextFeatures(io["text_f"][:1], io["text_f_c"][:1], torch.arange(77)[None] < 5)  # padding is attended all the same
    latents = model.sample_latents(text, [0], 12)
    assert relative(latents, expected["latent"]) < 1e-4
    mel = model.codec.vae.decode(latents)
    assert relative(mel, expected["mel"]) < 1e-4
    assert relative(model.codec.decode(latents), expected["wav"][:, 0]) < 1e-4


@torch.inference_mode()
def test_bf16_gives_nearly_the_same_mel_and_finite_sound(model):
    latents = floats(GOLDEN / "e2e_io.safetensors")["latent"]
    exact = model.codec.vae.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.codec.vae.decode(latents)
        audio = model.codec.decode(latents)
        posterior = model.codec.vae.encode(exact)
    assert rounded.dtype == audio.dtype == posterior.mean.dtype == torch.float32
    assert 0 < relative(rounded, exact) < 0.02
    assert audio.isfinite().all()


def test_guidance_moves_away_from_the_stored_null_text(model, monkeypatch):
    expected, io = floats(GOLDEN / "sampler_io.safetensors"), floats(GOLDEN / "net_io.safetensors")
    monkeypatch.setattr(pipeline, "per_sample_noises", lambda *_: iter([expected["x0"]]))
    text = TextFeatures(io["text_f"], io["text_f_c"], torch.ones(4, 77, dtype=torch.bool))
    latents = model.sample_latents(text, range(4), 36, steps=2, steering=Steering(scale=3.0, away=model.null_text))
    assert relative((latents - model.mean) / model.std, expected["mf_steps2_cfg3"]) < 1e-4


def test_generate_uses_the_stored_null_text_and_no_prompt_for_it(model, monkeypatch):
    encoded, references = [], []
    encode, sample = type(model).encode_text, type(model).sample_latents
    monkeypatch.setattr(type(model), "encode_text", lambda self, texts: encoded.append(list(texts)) or encode(self, texts))
    monkeypatch.setattr(
        type(model), "sample_latents", lambda self, *args, **kw: references.append(kw["steering"].away) or sample(self, *args, **kw)
    )
    model.generate(["rain", "a dog barks"], seed=0, duration=0.5, guidance_scale=3.0)
    model.generate("rain", seed=0, duration=0.5, guidance_scale=3.0, negative_prompt="wind")
    model.generate("rain", seed=0, duration=0.5)
    assert encoded == [["rain", "a dog barks"], ["rain", "wind"], ["rain"]]
    assert references[0] is model.null_text
    assert references[2] is None


def test_the_folder_describes_itself(converted, release):
    hashes = json.loads((converted / "hashes.json").read_text(encoding="utf-8"))
    assert hashes["model"] == "meanaudio-s-full"
    assert hashes["files"] == {
        p.relative_to(converted).as_posix(): {"bytes": p.stat().st_size, "sha256": file_hash(p)}
        for p in converted.rglob("*")
        if p.is_file() and p.name != "hashes.json"
    }
    assert hashes["sources"][VOCODER] == file_hash(release / VOCODER)
    assert {"network.safetensors", "vae.safetensors", "vocoder.safetensors", "flan_t5/model.safetensors"} < set(hashes["files"])
    assert not any("decoder" in key for key in load_file(converted / "flan_t5" / "model.safetensors"))
    config = json.loads((converted / "config.json").read_text(encoding="utf-8"))
    assert (config["seconds"], config["codec"]["vae"]["kind"], config["codec"]["vocoder"]["kind"]) == (9.984, "release", "bigvgan")
    assert [p.name for p in converted.parent.iterdir()] == [converted.name]


def test_averaged_weights_are_taken_and_a_lacking_pooled_null_is_the_mean(release_copy, tmp_path):
    state = torch.load(release_copy / NETWORK, weights_only=True)
    del state["empty_string_feat_c"]
    with pytest.raises(InputError, match="pooled features"):  # its mean is 48 wide, and this network takes 32
        convert_network(state, "FILE")
    state = torch.load(release_copy / NETWORK, weights_only=True)
    averaged = {f"ema_model.{k}": v for k, v in state.items()} | {"initted": torch.tensor(True), "step": torch.tensor(3)}
    torch.save(averaged | {k: torch.zeros_like(v) for k, v in state.items()} | {"_extra_state": {"x": 1}}, release_copy / NETWORK)
    found = read_foreign(release_copy / NETWORK)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], v) for k, v in state.items())
    square = {k: v for k, v in meta("meanaudio_s").items() if k != "empty_string_feat_c"} | {
        "text_cond_proj.0.weight": torch.empty(448, 1024)
    }
    square["empty_string_feat"] = torch.randn(77, 1024, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(convert_network(square, "FILE").null_text["pooled"][0], square["empty_string_feat"].mean(0))


# ---------------------------------------------------------------- refusals


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def refused(folder: Path, out: Path, told: str, model: str | None = None) -> None:
    with pytest.raises(InputError, match=told):
        convert_release(folder, out, model)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))


@pytest.mark.parametrize("name", [NETWORK, VAE, VOCODER, CLAP])
def test_truncated_hostile_and_mistaken_files_are_refused(release_copy, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path, out = release_copy / name, tmp_path / "meanaudio-s-full"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(release_copy, out, f"{name}: damaged")
    path.write_bytes(b"")
    refused(release_copy, out, f"{name}: damaged")
    torch.save({"weight": torch.zeros(1), "bomb": Bomb()}, path)
    refused(release_copy, out, f"{name}: refused, because it holds more than weights")
    assert not (tmp_path / "exploded").exists()
    torch.save([1, 2], path)
    refused(release_copy, out, f"{name}: expected named weights")
    shutil.copyfile(release_copy / (VAE if name != VAE else NETWORK), path)
    refused(release_copy, out, f"{name}: not ")
    path.unlink()
    refused(release_copy, out, f"put {name} into")


def test_weights_that_are_not_finite_are_refused(release_copy, tmp_path):
    state = torch.load(release_copy / NETWORK, weights_only=True)
    state["latent_mean"][..., 0] = float("nan")
    torch.save(state, release_copy / NETWORK)
    refused(release_copy, tmp_path / "meanaudio-s-full", "NaN or infinite weights in latent_mean")


def test_the_model_is_named_by_flag_by_folder_or_by_what_is_there(release, release_copy, tmp_path):
    assert convert_release(release, tmp_path / "mine") == "meanaudio-s-full"
    refused(release, tmp_path / "fluxaudio-s-full", "put fluxaudio_s_full.pth into")
    refused(release, tmp_path / "out", "unknown release 'oracle'", "oracle")
    refused(tmp_path / "nowhere", tmp_path / "out", "no such folder")
    shutil.copyfile(release_copy / NETWORK, release_copy / RELEASES["meanaudio-s-ac"])
    refused(release_copy, tmp_path / "out", "holds meanaudio-s-ac and meanaudio-s-full; say which")
    (release_copy / RELEASES["meanaudio-s-ac"]).unlink()
    (release_copy / NETWORK).unlink()
    refused(release_copy, tmp_path / "out", "holds none of meanaudio_s_ac.pth")


def test_what_is_there_is_not_written_over(release, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        convert_release(release, out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_told_before_anything_is_written(release, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    refused(release, tmp_path / "meanaudio-s-full", "MB needed")


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(release, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("meanaudio.checkpoint.save_file", full)
    refused(release, tmp_path / "meanaudio-s-full", "No space left")


def test_numbers_of_numpy_under_either_name_are_read_and_other_objects_are_not(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "loss": np.float64(1.5), "step": np.int64(3)}, path)
    assert read_foreign(path, ["state_dict"])["w"].tolist() == [1, 1]
    torch.save({"state_dict": {"w": torch.ones(2)}, "path": Path("x")}, path)
    with pytest.raises(InputError, match="pathlib"):
        read_foreign(path, ["state_dict"])


def test_the_command_converts(release, tmp_path, monkeypatch, capsys):
    out = tmp_path / "meanaudio-s-full"
    monkeypatch.setattr(sys, "argv", ["meanaudio", "convert", "--release", str(release), "-o", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "meanaudio-s-full, " in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "already exists" in capsys.readouterr().err


def test_a_packed_release_keeps_its_text_encoders_and_null_text(converted, tmp_path):
    pack(converted, tmp_path / "packed")
    before, after = ({p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()} for f in (converted, tmp_path / "packed"))
    assert after == before - {"hashes.json"}
    packed, whole = (MeanAudio.from_pretrained(f, device="cpu") for f in (tmp_path / "packed", converted))
    assert torch.equal(packed.null_text.sequence, whole.null_text.sequence)
    assert relative(*(m.generate("rain", seed=0, duration=0.5).samples for m in (packed, whole))) < 0.05
    pack(converted, tmp_path / "packed")  # over an earlier one


def test_a_converted_folder_that_lost_bytes_is_refused_and_verified(converted, tmp_path, monkeypatch, capsys):
    copy = Path(shutil.copytree(converted, tmp_path / "copy"))
    monkeypatch.setattr(sys, "argv", ["meanaudio", "verify", str(copy)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "every file is as it was made" in capsys.readouterr().out
    weights = (copy / "vae.safetensors").read_bytes()
    (copy / "vae.safetensors").write_bytes(weights[:-4] + b"0000")
    MeanAudio.from_pretrained(copy, device="cpu")
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "vae.safetensors changed" in capsys.readouterr().err
    (copy / "vae.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"vae\.safetensors of another size"):
        MeanAudio.from_pretrained(copy, device="cpu")
