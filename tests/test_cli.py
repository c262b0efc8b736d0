"""The command line: every verb end to end on tiny things, and every refusal with exit code 2, one line, and nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fakes import fill, tiny_network
from safetensors.torch import load_file, save_file

from meanaudio.audio import read_metadata
from meanaudio.checkpoint import file_hash, load_weights, read_json, save_weights, write_json
from meanaudio.config import LoRAConfig
from meanaudio.generate import file_stem
from meanaudio.models.lora import add_adapters, save_adapters
from meanaudio.models.transformer import make_network
from meanaudio.pack import pack
from meanaudio.pipeline import MeanAudio

ROOT = Path(__file__).parent.parent


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


# ---------------------------------------------------------------- end to end


@pytest.fixture
def train_config(tiny_checkpoint, tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
task: generator
data: {tmp_path}/shards
codec_from: {tiny_checkpoint}
seconds: 1.024
text: {{max_tokens: 16}}
network: {{preset: tiny, latent_dim: 8}}
objective: {{interval_fraction: {{start: 0.0, stop: 0.5}}, guidance: {{start: 1.0, stop: 1.0}}}}
optim: {{lr: 1e-3, warmup: 1}}
loop: {{steps: 4, batch_size: 4, log_every: 1, sample_every: 4, save_every: 2}}
""",
        encoding="utf-8",
    )
    return path


def test_from_recordings_to_sound(run, fast_text, train_config, tiny_manifest, tmp_path):
    """prepare, train in two parts, pack, generate, benchmark: each exits 0, and each reads what the one before wrote."""
    for split, scenes in (("train", 6), ("val", 0)):
        code, out, err = run(
            "prepare", tiny_manifest, "-o", tmp_path / "shards" / split, "-c", train_config, "--split", split, "--scenes", scenes, "--quiet"
        )
        assert code == 0, err
        assert f"{6 if scenes else 2} items in" in out

    for more in (["--until", "2"], []):
        code, _, err = run("train", "-c", train_config, "-o", tmp_path / "run", "--device", "cpu", "--quiet", *more)
        assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert "held_out/frechet_1_step" in rows[-1]
    assert sorted(p.suffix for p in (tmp_path / "run" / "samples" / "0000004").iterdir()) == [".png", ".png", ".wav", ".wav"]

    code, out, err = run("pack", tmp_path / "run" / "export", "-o", tmp_path / "packed")
    assert code == 0, err
    assert "MB" in out
    assert sorted(p.name for p in (tmp_path / "packed").iterdir()) == [
        "config.json", "network.safetensors", "vae.safetensors", "vocoder.safetensors",
    ]  # fmt: skip
    assert load_file(tmp_path / "packed" / "network.safetensors")["out.weight"].dtype == torch.float16

    code, out, err = run(
        "generate",
        "a tone",
        "-m",
        tmp_path / "packed",
        "-o",
        tmp_path / "a.wav",
        "-d",
        "0.7",
        "--seed",
        "3",
        "--device",
        "cpu",
        "--spectrogram",
    )
    assert code == 0, err
    assert soundfile.info(tmp_path / "a.wav").frames == 11200
    assert read_metadata(tmp_path / "a.wav")["prompt"] == "a tone"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "seed 3" in out
    assert "real-time factor" in out

    report = tmp_path / "report"
    options = ("--repeats", "2", "--warm-up", "0", "--device", "cpu", "--duration", "0.3", "--quiet")
    shared = ("--processes", "2", "-o", report)
    code, out, err = run("benchmark", "-m", tmp_path / "packed", "--steps", "1", "2", "--batch", "2", *options, *shared)
    assert code == 0, err
    assert "batch 2, 2 step(s), 0.3 s" in out
    assert "first sound from a cold process (float32, eager, 1 step(s), 0.3 s; median of 2)" in out
    assert sorted(p.name for p in report.iterdir()) == ["benchmark.json", "benchmark.png", "benchmark.txt"]
    code, out, err = run("benchmark", "-m", tmp_path / "packed", *options, "--processes", "0", "--against", report / "benchmark.json")
    assert code == 0, err
    assert "not measured then" in out  # batch 1


def test_two_workers_prepare_one_folder(run, fast_text, train_config, tiny_manifest, tmp_path, monkeypatch):
    """Under torchrun's environment, by option, and alone: the same files."""
    common = ["-c", train_config, "--quiet", "--device", "cpu", "--shard-size", 2]
    code, out, err = run("prepare", tiny_manifest, "-o", tmp_path / "two", "--worker", "1/2", *common)
    assert code == 0, err
    assert "worker 1 of 2 is done; 1 of 3 shards are in" in out
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, out, err = run("prepare", tiny_manifest, "-o", tmp_path / "two", *common, "--threads", 1)
    assert code == 0, err
    assert f"6 items in {tmp_path / 'two'}, 0 left out" in out
    monkeypatch.delenv("RANK")
    assert run("prepare", tiny_manifest, "-o", tmp_path / "one", *common)[0] == 0
    assert listing(tmp_path / "one") == listing(tmp_path / "two")


def test_training_reads_sound_itself_and_mixes_sets(run, fast_text, train_config, tiny_manifest, tmp_path):
    """No preparation: `data` is a manifest, and shards are mixed in."""
    assert run("prepare", tiny_manifest, "-o", tmp_path / "scenes" / "train", "-c", train_config, "--scenes", 5, "--quiet")[0] == 0
    config = tmp_path / "raw.yaml"
    config.write_text(f"extends: tiny.yaml\ndata: {tiny_manifest}\nmixture: [{{data: {tmp_path}/scenes, share: 0.3}}]\n")
    code, _, err = run("train", "-c", config, "-o", tmp_path / "run", "--device", "cpu", "--quiet")
    assert code == 0, err
    assert (tmp_path / "run" / "export" / "config.json").is_file()
    config.write_text(f"extends: tiny.yaml\ndata: {tiny_manifest}\nmixture: [{{data: {tmp_path}/scenes}}]\nseconds: 2.0\n")
    code, _, err = run("train", "-c", config, "-o", tmp_path / "other", "--device", "cpu", "--quiet")
    assert code == 2
    assert "scenes/train: windows of 1.024 s, the config says seconds = 2.0" in err


def test_loading_is_measured(run, train_config):
    code, out, err = run("benchmark-data", "-c", train_config, "--items", 40, "--steps", 2, "--set", "codec.vae.latent_dim=8")
    assert code == 0, err
    for told in ("latents [16, 8], text up to [16, 384]", "x npz", "page cache emptied", "waiting for data", "steps a second"):
        assert told in out


def test_several_prompts_fill_a_folder_in_order_with_seeds_that_follow(run, fast_text, tiny_checkpoint, tmp_path):
    code, out, _ = run(
        "generate",
        "A dog barks!",
        "-p",
        "雨",
        "-p",
        "a/b ../c",
        "-m",
        tiny_checkpoint,
        "-o",
        tmp_path / "sounds",
        "-d",
        "0.2",
        "--device",
        "cpu",
    )
    assert code == 0
    names = ["00-a-dog-barks.wav", "01.wav", "02-a-b-c.wav"]
    assert sorted(p.name for p in (tmp_path / "sounds").iterdir()) == names
    found = [read_metadata(tmp_path / "sounds" / name) for name in names]
    assert [f["prompt"] for f in found] == ["A dog barks!", "雨", "a/b ../c"]
    assert [f["seed"] - found[0]["seed"] for f in found] == [0, 1, 2]
    assert all(f"seed {f['seed']}" in out for f in found)
    assert file_stem("x" * 300, 7) == "07-" + "x" * 50


def test_the_doors_and_the_real_text_encoder_work_from_a_shell(tiny_checkpoint, tmp_path):
    """infer.py in its own process makes the sound that this process makes; train.py refuses in one line."""
    command = [sys.executable, str(ROOT / "infer.py"), "rain", "-m", str(tiny_checkpoint), "-o", "a.flac", "--seed", "1", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert soundfile.info(tmp_path / "a.flac").frames == 16384
    here = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu").generate("rain", seed=1).samples[0]
    there = torch.from_numpy(soundfile.read(tmp_path / "a.flac", dtype="float32")[0])
    torch.testing.assert_close(there, here, atol=2e-4, rtol=1e-3)

    command = [sys.executable, str(ROOT / "train.py"), "-c", "nowhere.yaml", "-o", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: no such config file: nowhere.yaml\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.flac"]


def test_adapters_from_training_to_sound(run, fast_text, train_config, tiny_manifest, tiny_checkpoint, tmp_path):
    """Train on a checkpoint, apply at generation, merge: applied and merged sound alike, and unlike the checkpoint alone."""
    for split in ("train", "val"):
        assert run("prepare", tiny_manifest, "-o", tmp_path / "shards" / split, "-c", train_config, "--split", split, "--quiet")[0] == 0
    options = [f"--set=init_from={tiny_checkpoint}", "--set=lora.rank=2", "--set=optim.lr=1e-2", "--device", "cpu", "--quiet"]
    code, _, err = run("train", "-c", train_config, "-o", tmp_path / "run", *options)
    assert code == 0, err
    lora = tmp_path / "run" / "export"
    assert sorted(p.name for p in lora.iterdir()) == ["lora.json", "lora.safetensors"]

    code, out, err = run("merge-lora", tiny_checkpoint, lora, "-o", tmp_path / "merged")
    assert code == 0, err
    assert "MB" in out
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {p.name for p in tiny_checkpoint.iterdir()}
    sounds = {}
    for name, how in {
        "base": ["-m", tiny_checkpoint], "applied": ["-m", tiny_checkpoint, "--lora", lora], "merged": ["-m", tmp_path / "merged"],
        "none": ["-m", tiny_checkpoint, "--lora", f"{lora}:0"],
    }.items():  # fmt: skip
        code, _, err = run("generate", "a tone", *how, "-o", tmp_path / f"{name}.wav", "--seed", 3, "--device", "cpu")
        assert code == 0, err
        sounds[name] = soundfile.read(tmp_path / f"{name}.wav")[0]
    np.testing.assert_array_equal(sounds["none"], sounds["base"])
    np.testing.assert_allclose(sounds["merged"], sounds["applied"], atol=1e-3)
    assert np.abs(sounds["applied"] - sounds["base"]).max() > 1e-2
    told = read_metadata(tmp_path / "applied.wav")
    assert (told["model"], told["lora"]) == ("tiny", str(lora))


def test_a_blend_lies_between_two_checkpoints_and_sounds(run, fast_text, tiny_checkpoint, checkpoint_copy, tmp_path):
    other = fill(make_network(tiny_network(sequence_dim=384, pooled_dim=384)), 5, 0.1).state_dict()
    save_weights(checkpoint_copy / "network.safetensors", other)
    code, out, err = run("blend", tiny_checkpoint, checkpoint_copy, "--share", 0.25, "-o", tmp_path / "between")
    assert code == 0, err
    assert "MB" in out
    assert {p.name for p in (tmp_path / "between").iterdir()} == {p.name for p in tiny_checkpoint.iterdir()}
    first, blended = (load_weights(folder / "network.safetensors") for folder in (tiny_checkpoint, tmp_path / "between"))
    for name, value in blended.items():
        torch.testing.assert_close(value, 0.75 * first[name].float() + 0.25 * other[name], rtol=1e-4, atol=1e-5)
    code, _, err = run("generate", "a tone", "-m", tmp_path / "between", "-o", tmp_path / "a.wav", "--device", "cpu")
    assert code == 0, err


def test_several_checkpoints_are_blended_in_equal_shares_or_as_much_as_is_said_of_the_last(run, tiny_checkpoint, tmp_path):
    states = []
    for seed in (5, 6, 7):
        shutil.copytree(tiny_checkpoint, tmp_path / str(seed))
        states.append(fill(make_network(tiny_network(sequence_dim=384, pooled_dim=384)), seed, 0.1).state_dict())
        save_weights(tmp_path / str(seed) / "network.safetensors", states[-1])
    for out, options, weights in (("even", [], (1 / 3, 1 / 3, 1 / 3)), ("most", ["--share", 0.5], (0.25, 0.25, 0.5))):
        code, _, err = run("blend", *(tmp_path / str(seed) for seed in (5, 6, 7)), "-o", tmp_path / out, *options)
        assert code == 0, err
        for name, value in load_weights(tmp_path / out / "network.safetensors").items():
            expected = sum(weight * state[name] for weight, state in zip(weights, states, strict=True))
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- refusals


@pytest.fixture
def refused(run, monkeypatch, tmp_path):
    """Assert that a command ends with exit code 2, one line on stderr that tells `told`, and the working folder as it was."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def refused(told, *args):
        before = listing(tmp_path)
        code, out, err = run(*args)
        assert code == 2, err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert told in err
        assert len(err) < 500
        assert listing(tmp_path) == before
        return out

    return refused


def test_checkpoints_that_cannot_be_blended_are_refused(refused, tiny_checkpoint, checkpoint_copy, tmp_path):
    for share in (0, 1, 1.5):
        refused(f"share = {share:.1f}: how much of", "blend", tiny_checkpoint, checkpoint_copy, "--share", share, "-o", "out")
    refused("already exists", "blend", tiny_checkpoint, checkpoint_copy, "-o", checkpoint_copy)
    refused("1 checkpoint(s): two or more", "blend", tiny_checkpoint, "-o", "out")
    values = read_json(checkpoint_copy / "config.json")
    for change, told in (
        ({"network": values["network"] | {"mask_text": False}}, "its network is another"),
        ({"latent_mean": [9.0] * len(values["latent_mean"])}, "normalised otherwise"),
    ):
        write_json(checkpoint_copy / "config.json", values | change)
        refused(told, "blend", tiny_checkpoint, checkpoint_copy, "-o", "out")


def test_adapters_of_another_checkpoint_are_refused(refused, checkpoint_copy, tmp_path):
    lora = tmp_path / "lora"
    refused("no lora.json", "generate", "a tone", "-m", checkpoint_copy, "--lora", lora)
    network = make_network(tiny_network(sequence_dim=384, pooled_dim=384))
    add_adapters(network, LoRAConfig(rank=2))
    save_adapters(lora, network, LoRAConfig(rank=2), checkpoint_copy)
    refused("already exists", "merge-lora", checkpoint_copy, lora, "-o", lora)
    save_weights(checkpoint_copy / "network.safetensors", network.state_dict())
    for command in (["generate", "a tone", "-m", checkpoint_copy, "--lora", lora], ["merge-lora", checkpoint_copy, lora, "-o", "out"]):
        refused("trained on another network", *command)


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("unknown model 'nonesuch'", ["-m", "nonesuch"]),
        ("File name too long", ["-m", "x" * 300]),
        ("empty prompt ' '", [" "]),
        ("10000 characters", ["x" * 10_000]),
        ("empty prompt", ["-g", "2", "--negative-prompt", ""]),
        ("duration = 0", ["-d", "0"]),
        ("duration = 10000.0 s: must be from 0.01 to 120", ["-d", "10000"]),
        ("duration = nan", ["-d", "nan"]),
        ("steps = 0: must be from 1", ["-s", "0"]),
        ("guidance_scale = 0.0", ["-g", "0"]),
        ("no effect at guidance_scale 1", ["--negative-prompt", "hum"]),
        ("device 'abacus'", ["--device", "abacus"]),
        ("dtype 'int3': must be one of float32, bf16", ["--dtype", "int3"]),
        ("must be one of .wav, .flac, .ogg", ["-o", "a.mp3"]),
        ("2 prompts do not fit in one file", ["-p", "wind", "-o", "a.wav"]),
        ("seed = -1", ["--seed", "-1"]),
    ],
)
def test_generate_refuses(refused, fast_text, tiny_checkpoint, told, options):
    prompt = [] if not options[0].startswith("-") else ["rain"]
    chosen = [] if "-m" in options else ["-m", tiny_checkpoint]
    device = [] if "--device" in options else ["--device", "cpu"]
    refused(told, "generate", *prompt, *chosen, *device, *options)


def test_generate_refuses_text_that_is_no_unicode(refused, tiny_checkpoint):
    refused("not valid Unicode", "generate", "rain \udcff", "-m", tiny_checkpoint, "--device", "cpu")


def test_generate_without_a_prompt_says_how(refused, tiny_checkpoint):
    refused("no prompt given: meanaudio generate 'heavy rain falls'", "generate", "-m", tiny_checkpoint)


def test_generate_does_not_write_through_a_file(refused, fast_text, tiny_checkpoint, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused("cannot write", "generate", "rain", "-m", tiny_checkpoint, "-o", tmp_path / "file", "-d", "0.1", "--device", "cpu")


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_made(refused, fast_text, tiny_checkpoint, tmp_path):
    (tmp_path / "sounds" / "01-wind.wav").mkdir(parents=True)
    refused("01-wind.wav: it is a folder", "generate", "rain", "wind", "-m", tiny_checkpoint, "-o", tmp_path / "sounds", "--device", "cpu")


def test_the_end_of_a_long_prompt_is_said_not_to_be_heard(run, tiny_checkpoint, tmp_path):
    code, _, err = run("generate", "rain " * 70, "-m", tiny_checkpoint, "-o", tmp_path / "a.wav", "-d", "0.1", "--device", "cpu")
    assert code == 0, err
    assert "longer than 16 tokens: the end is not heard" in err


def test_nan_weights_are_refused(refused, checkpoint_copy):
    state = load_file(checkpoint_copy / "network.safetensors")
    state["out.bias"][0] = float("nan")
    save_file(state, checkpoint_copy / "network.safetensors")
    refused("NaN or infinite weights in out.bias", "generate", "rain", "-m", checkpoint_copy, "--device", "cpu")


def test_a_checkpoint_of_another_network_is_refused(refused, checkpoint_copy):
    values = json.loads((checkpoint_copy / "config.json").read_text())
    values["network"]["single_depth"] = 2
    (checkpoint_copy / "config.json").write_text(json.dumps(values))
    refused("weights of another network: missing single_blocks.1", "generate", "rain", "-m", checkpoint_copy, "--device", "cpu")


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ("did you mean 'steps'?", "loop: {stpes: 3}"),
        ("not valid YAML", "loop: {"),
        ("task = 'sing'", "task: sing"),
        ("codec_from", "seconds: 1.0"),
    ],
)
def test_a_wrong_config_is_refused(refused, tiny_manifest, tmp_path, told, line):
    (tmp_path / "c.yaml").write_text(line)
    refused(told, "prepare", tiny_manifest, "-o", "shards", "-c", tmp_path / "c.yaml", "--quiet")
    if "codec_from" not in told:
        refused(told, "train", "-c", tmp_path / "c.yaml", "-o", "run", "--quiet")


def test_a_wrong_override_is_refused(refused, train_config):
    refused("did you mean 'steps'?", "train", "-c", train_config, "-o", "run", "--set", "loop.stpes=3")


def test_training_without_shards_says_what_to_do(refused, train_config):
    refused("meanaudio prepare", "train", "-c", train_config, "-o", "run", "--quiet")


@pytest.mark.parametrize(
    ("told", "row"),
    [
        ("no column for audio", {"caption": "rain"}),
        ("no column for caption", {"audio": "a.wav"}),
        ("caption is ''", {"audio": "a.wav", "caption": ""}),
        ("start is 'soon'", {"audio": "a.wav", "caption": "rain", "start": "soon"}),
    ],
)
def test_a_wrong_manifest_row_is_refused(refused, train_config, tmp_path, told, row):
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    refused(told, "data", "check", tmp_path / "m.jsonl")
    refused(told, "prepare", tmp_path / "m.jsonl", "-o", "shards", "-c", train_config, "--quiet")


def test_a_missing_manifest_is_refused(refused, train_config):
    for verb in (["data", "check"], ["prepare", "-o", "shards", "-c", train_config, "--quiet"]):
        refused("nowhere.jsonl", *verb, "nowhere.jsonl")


def test_missing_unreadable_and_silent_audio_are_listed(run, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16000)
    (tmp_path / "text.wav").write_text("no sound")
    rows = [{"audio": f"{name}.wav", "caption": "rain"} for name in ("silent", "text", "gone")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run("data", "check", tmp_path / "m.jsonl")
    assert code == 2
    for kind, name in (("silent", "silent.wav"), ("unreadable", "text.wav"), ("missing", "gone.wav")):
        assert f"{kind} (1):" in out
        assert name in out


def test_silence_alone_fails_the_check(run, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16000)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "silent.wav", "caption": "rain"}))
    code, out, _ = run("data", "check", tmp_path / "m.jsonl")
    assert code == 2
    assert "NOT usable" in out


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("worker '2': must be K/N", ["--worker", "2"]),
        ("worker 2/2", ["--worker", "2/2"]),
        ("no clips of split 'test'; there are train, val", ["--split", "test"]),
        ("no clips of split 'test'; there are train, val", ["--split", "train", "--split", "test"]),
        ("split 'val' is asked for twice", ["--split", "val", "--split", "val"]),
    ],
)
def test_wrong_options_of_preparation_are_refused(refused, fast_text, train_config, tiny_manifest, told, options):
    refused(told, "prepare", tiny_manifest, "-o", "shards", "-c", train_config, "--quiet", *options)


@pytest.mark.parametrize(("told", "name"), [("no such audio file", "gone"), ("cannot be read", "text"), ("NaN", "nan")])
def test_preparing_bad_audio_stops_without_an_index(run, train_config, tmp_path, told, name):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan], np.float32), 16000, subtype="FLOAT")
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": f"{name}.wav", "caption": "rain"}))
    code, _, err = run("prepare", tmp_path / "m.jsonl", "-o", tmp_path / "shards", "-c", train_config, "--quiet")
    assert code == 2
    assert told in err
    assert name in err
    assert not (tmp_path / "shards" / "index.json").exists()


def test_wrong_options_are_refused_by_the_parser(run):
    for args in (["generate", "rain", "-d", "long"], ["sing"], ["train"]):
        code, _, err = run(*args)
        assert code == 2
        assert err


def test_help_names_every_verb(run):
    code, out, _ = run("--help")
    assert code == 0
    for verb in ("generate", "train", "prepare", "pack", "benchmark", "data"):
        assert verb in out


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("repeats = 0: must be 1 or more", ["--repeats", "0"]),
        ("warm_up = -1", ["--warm-up", "-1"]),
        ("processes = -1", ["--processes", "-1"]),
        ("duration = -1.0 s: must be from 0.01 to 120", ["--duration", "5", "-1"]),
        ("duration = nan", ["--duration", "nan"]),
        ("steps = 0: must be from 1", ["--steps", "1", "0"]),
        ("batch = 0: must be from 1 to", ["--batch", "0"]),
        ("dtype 'int3': must be one of float32, bf16", ["--dtype", "float32", "int3"]),
        ("device 'abacus'", ["--device", "abacus"]),
        ("unknown model 'nonesuch'", ["-m", "nonesuch"]),
        ("leave out steps", ["--paper", "--steps", "1"]),
        ("unknown model 'nonesuch'", ["--vocoder", "nonesuch", "--processes", "1"]),
        ("no such file: gone.json", ["--against", "gone.json"]),
    ],
)
def test_benchmark_refuses(refused, tiny_checkpoint, told, options):
    chosen = [] if "-m" in options else ["-m", tiny_checkpoint]
    device = [] if "--device" in options else ["--device", "cpu"]
    refused(told, "benchmark", *chosen, *device, *options, "-o", "report", "--quiet")


def test_benchmark_refuses_to_compare_with_something_else(refused, tiny_checkpoint):
    refused("not a benchmark's JSON", "benchmark", "-m", tiny_checkpoint, "--against", tiny_checkpoint / "config.json", "--device", "cpu")


# ---------------------------------------------------------------- pack


def test_packing_stores_weights_in_32_16_or_8_bits_and_sounds_alike(fast_text, tiny_checkpoint, tmp_path):
    original = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu")
    latents = original.sample_latents(original.encode_text(["rain"]), [0], 16)
    for weights, tolerance in (("float32", 0.0), ("float16", 0.01), ("int8", 0.05)):
        out = tmp_path / weights
        pack(tiny_checkpoint, out, weights=weights)
        packed = MeanAudio.from_pretrained(out, device="cpu")
        found = packed.sample_latents(packed.encode_text(["rain"]), [0], 16)
        assert (found - latents).norm() <= tolerance * latents.norm()
        assert next(packed.network.parameters()).dtype == torch.float32
    full, half, bytewise = ((tmp_path / name / "network.safetensors").stat().st_size for name in ("float32", "float16", "int8"))
    assert half < 0.6 * full and bytewise < 0.65 * half
    vaes = [file_hash(tmp_path / name / "vae.safetensors") for name in ("float16", "int8")]
    assert vaes[0] == vaes[1]  # its hash names the latents


def test_packing_says_how_a_checkpoint_goes_about_successive_sounds(run, fast_text, tiny_checkpoint, tmp_path):
    prompt = "a dog barks, then rain falls"
    code, _, err = run("pack", tiny_checkpoint, "--by-event", "-o", tmp_path / "parted")
    assert code == 0, err
    for out, source, options in (("kept", "parted", []), ("whole", "parted", ["--as-a-whole"])):
        assert run("pack", tmp_path / source, *options, "-o", tmp_path / out)[0] == 0
    for model, parted in (("parted", True), ("kept", True), ("whole", False)):
        code, _, err = run("generate", prompt, "-m", tmp_path / model, "-o", tmp_path / "a.wav", "--seed", 1, "--device", "cpu")
        assert code == 0, err
        assert ("events" in read_metadata(tmp_path / "a.wav")) == parted
        code, _, err = run(
            "generate",
            prompt,
            "-m",
            tmp_path / model,
            "-o",
            tmp_path / "b.wav",
            "--device",
            "cpu",
            "--as-a-whole" if parted else "--by-event",
        )
        assert code == 0, err
        assert ("events" in read_metadata(tmp_path / "b.wav")) != parted


def test_packing_takes_the_vocoder_of_another_codec_if_it_fits(fast_text, tiny_checkpoint, checkpoint_copy, tmp_path, refused):
    vocoder = load_file(checkpoint_copy / "vocoder.safetensors")
    save_file({k: v + 0.5 if k == "head.bias" else v for k, v in vocoder.items()}, checkpoint_copy / "vocoder.safetensors")
    pack(tiny_checkpoint, tmp_path / "out", codec=checkpoint_copy, weights="float32")
    assert torch.equal(load_file(tmp_path / "out" / "vocoder.safetensors")["head.bias"], vocoder["head.bias"] + 0.5)
    values = json.loads((checkpoint_copy / "config.json").read_text())
    values["codec"]["mel"]["f_max"] = 7000
    (checkpoint_copy / "config.json").write_text(json.dumps(values))
    refused("its vocoder takes", "pack", tiny_checkpoint, "-o", "packed", "--codec", checkpoint_copy)


def test_a_packed_checkpoint_says_that_its_words_were_left_behind(run, tiny_checkpoint, checkpoint_copy, tmp_path):
    for folder, told in ((tiny_checkpoint, False), (checkpoint_copy, True)):
        if told:
            save_file({"a": torch.zeros(1)}, folder / "words.safetensors")
        code, out, err = run("pack", folder, "-o", tmp_path / "packed", "--weights", "float32")
        assert code == 0, err
        assert ("left behind: words.safetensors" in out) == told


def test_packing_does_not_overwrite_what_it_packs(refused, checkpoint_copy, tiny_checkpoint):
    before = {path: file_hash(path) for path in checkpoint_copy.glob("*.safetensors")}
    refused("is packed from", "pack", checkpoint_copy, "-o", checkpoint_copy)
    refused("is packed from", "pack", tiny_checkpoint, "--codec", checkpoint_copy, "-o", checkpoint_copy / "." / "")
    assert before == {path: file_hash(path) for path in checkpoint_copy.glob("*.safetensors")}


@pytest.mark.parametrize("name", ["network", "vae", "vocoder"])
@pytest.mark.parametrize("damage", ["gone", "other"])
def test_packing_something_incomplete_writes_nothing(refused, checkpoint_copy, name, damage):
    path = checkpoint_copy / f"{name}.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        save_file({"stranger": torch.zeros(1)}, path)
    refused(path.name, "pack", checkpoint_copy, "-o", "packed")
    refused("unknown model 'nowhere'", "pack", "nowhere", "-o", "packed")


# ---------------------------------------------------------------- few steps


def test_from_a_flow_to_a_guided_one_step_sound(run, fast_text, train_config, tiny_manifest, tiny_checkpoint, tmp_path):
    """prepare, flow matching, stage one, two rounds of halving, a tagger, and every option of generate that they make possible."""
    for split in ("train", "val"):
        run("prepare", tiny_manifest, "-o", tmp_path / "shards" / split, "-c", train_config, "--split", split, "--quiet")
    flow = ["--set", "network.interval=none", "--set", "objective.kind=flow_matching"]
    guided = ["--set", "network.guidance_embedding=true", "--set", "objective.scale={low: 1, high: 5}"]
    exports = {name: tmp_path / name / "export" for name in ("flow", "guided", "tagger")}

    def train(name, *more):
        code, _, err = run("train", "-c", train_config, "-o", tmp_path / name, "--device", "cpu", "--quiet", *more)
        assert code == 0, err

    def taught_by(folder):
        return ["--set", f"objective.teacher={folder}", "--set", f"init_from={folder}"]

    train("flow", *flow)
    train("guided", *flow[:2], *guided, "--set", "objective.kind=guidance_distillation", *taught_by(exports["flow"]))
    halving = [*guided, "--set", "objective.kind=progressive_distillation", "--set", "objective.halving={steps: 2, first: 2}"]
    more = ["--device", "cpu", "--quiet", *halving, *taught_by(exports["guided"])]
    code, out, err = run("distill", "-c", train_config, "-o", tmp_path / "halved", *more)
    assert code == 0, err
    assert f"one-step network: {tmp_path}/halved/1-steps/export" in out
    words = "tagger={words: [tone, hertz], width: 16, blocks: 1}"
    train("tagger", "--set", "task=tagger", "--set", words)

    def sound(name, *options, model):
        code, out, err = run(
            "generate", "a tone of 400 hertz", "-m", model, "-o", tmp_path / name, "-d", "0.3", "--seed", "1", "--device", "cpu", *options
        )
        assert code == 0, err
        return out

    one_step = tmp_path / "halved" / "1-steps" / "export"
    assert "1 network evaluation(s) a clip" in sound("one.wav", "-g", "3", model=one_step)
    assert "2 network evaluation(s) a clip" in sound("two.wav", "-g", "3", "-s", "2", "--stochastic", model=one_step)
    options = ["-g", "2", "-s", "4", "--guidance-limits", "0.3", "0.8"]
    assert "6 network evaluation(s) a clip" in sound("flow.wav", *options, model=exports["flow"])
    options = ["-s", "2", "--classifier", exports["tagger"], "--classifier-scale", "2"]
    assert "2 network evaluation(s) a clip" in sound("heard.wav", *options, model=exports["flow"])  # both classes are wanted: no rival
    assert "4 network evaluation(s) a clip" in sound(
        "auto.wav", "-g", "2", "-s", "2", "--guide-with", exports["flow"], model=exports["flow"]
    )

    code, out, err = run(
        "edit", tmp_path / "flow.wav", "a tone", "another tone", "-o", tmp_path / "edits", "-m", one_step, "--source", "a tone",
        "--steps", "2", "--iterations", "3", "--device", "cpu", "--spectrogram",
    )  # fmt: skip
    assert code == 0, err
    assert "8 network evaluation(s) a clip" in out
    assert "seed" not in out
    names = ["00-a-tone.png", "00-a-tone.wav", "01-another-tone.png", "01-another-tone.wav"]
    assert sorted(p.name for p in (tmp_path / "edits").iterdir()) == names
    assert soundfile.info(tmp_path / "edits" / "00-a-tone.wav").frames == 4800
    assert read_metadata(tmp_path / "edits" / "00-a-tone.wav")["source"] == "a tone"


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("guidance_limits = (0.8, 0.2)", ["-g", "2", "--guidance-limits", "0.8", "0.2"]),
        ("guide_with has no effect at guidance_scale 1", ["--guide-with", "tiny"]),
        ("unknown model 'nonesuch'", ["-g", "2", "--guide-with", "nonesuch"]),
        ("no such file: nowhere/config.json", ["--classifier", "nowhere"]),
        ("classifier scale = 0.0", ["--classifier", "nowhere", "--classifier-scale", "0"]),
    ],
)
def test_generate_refuses_guidance_that_cannot_be(refused, fast_text, tiny_checkpoint, told, options):
    refused(told, "generate", "rain", "-m", tiny_checkpoint, "--device", "cpu", *options)


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("no such audio file: gone.wav", ["gone.wav"]),
        ("strength = 2.0", ["CLIP", "--strength", "2"]),
        ("iterations = 0", ["CLIP", "--iterations", "0"]),
        ("empty prompt ''", ["CLIP", "--source", ""]),
        ("must be one of .wav, .flac, .ogg", ["CLIP", "-o", "a.mp3"]),
    ],
)
def test_edit_refuses(refused, fast_text, tiny_checkpoint, tiny_manifest, told, options):
    clip, *more = [tiny_manifest.parent / "clip0.wav" if x == "CLIP" else x for x in options]
    refused(told, "edit", clip, "rain", "-m", tiny_checkpoint, "--device", "cpu", *more)


def test_distill_refuses_another_objective(refused, train_config):
    refused("not mean_flow; for one run use train", "distill", "-c", train_config, "-o", "halved", "--quiet")
    more = ["--set", "objective.kind=progressive_distillation"]
    refused("needs teacher, the folder of a checkpoint", "distill", "-c", train_config, "-o", "halved", "--quiet", *more)
