"""The commands of README's AudioCaps section and of docs/finetuning.md, in their order, from csv to sound: on a small AudioCaps, the small
stored release in the place of the published files, and networks of its size."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import soundfile
import torch
from audiocaps_fakes import make_audiocaps
from fakes import floats
from release_fakes import GOLDEN, write_release
from test_readme import ROOT, commands

from meanaudio.audio import read_metadata, save_audio
from meanaudio.checkpoint import load_weights, read_json
from meanaudio.data.manifest import read_manifest
from meanaudio.data.shards import ShardDataset
from meanaudio.training.log import read_log

SECONDS, STEPS = 0.768, 2
TEXT = {"network.sequence_dim": 48, "network.pooled_dim": 32}  # of the small text encoders
TINY = {**TEXT, "network.preset": "tiny"}
RELEASED = {**TEXT, "network.width": 64, "network.num_heads": 2, "network.joint_depth": 2, "network.single_depth": 2}
SHORT = {"loop.steps": STEPS, "loop.batch_size": 4, "loop.sample_every": STEPS, "loop.log_every": 1}


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """The working folder of somebody who has a clone and what is published."""
    write_release(tmp_path / "downloads")
    flux = {k: v for k, v in floats(GOLDEN / "net_state.safetensors").items() if not k.startswith("r_embed.")}
    torch.save(flux, tmp_path / "downloads" / "fluxaudio_s_full.pth")
    (tmp_path / "checkpoints").mkdir()
    for name in ("configs", "checkpoints/sounds-small"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shown(run, work):
    """Run a shown line, made small, the paper's network by `network`: what it printed."""

    def shown(line: str, network: dict) -> str:
        words = [word for word in shlex.split(line, comments=True) if word != "python"]
        words = words[1:] if words[0] == "meanaudio" else [Path(words[0]).stem, *words[1:]]
        verb = words[0]
        if verb in ("prepare", "train"):
            settings = {"seconds": SECONDS, **(network if "audiocaps" in line else {}), **(SHORT if verb == "train" else {})}
            words += ["--quiet", *(f"--set={key}={value}" for key, value in settings.items())]
        if verb == "prepare":
            words += ["--shard-size", 16, "--max-left-out", 0.2]
        if verb in ("prepare", "train", "generate"):
            words += ["--device", "cpu"]
        if verb == "generate":
            words += ["--duration", SECONDS]
        code, out, err = run(*words)
        assert code == 0, f"{line}: {err}"
        if verb == "train":
            assert read_log(Path(words[words.index("-o") + 1]))[-1]["step"] == STEPS
        return out

    return shown


def lines_of(document: str, heading: str = "") -> list[str]:
    """The commands of a document, or of one of its sections."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if heading:
        text = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
    path = Path("section.md")
    path.write_text(text, encoding="utf-8")
    return commands(path)


def listed(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file, delimiter="\t")}


def test_from_audiocaps_csv_to_a_sound(shown, work):
    fake = make_audiocaps(work / "audiocaps", 30, seconds=1.0, missing=3, broken=5, recordings=1)
    shown("meanaudio convert --release downloads -o checkpoints/meanaudio-s-full", TINY)
    story = lines_of("README.md", "Train on AudioCaps")
    assert [shlex.split(line)[1] for line in story] == ["data", "prepare", "train.py", "train.py", "generate", "--standalone"]

    out = shown(story[0], TINY)
    clips = {clip.id: clip for clip in read_manifest("data/audiocaps/manifest.jsonl")}
    left_out = listed(Path("data/audiocaps/manifest.left-out.tsv"))
    rows = {str(number): c for c in fake.clips for number, _ in c.captions}
    assert clips.keys() | left_out.keys() == rows.keys()
    assert {rows[name].state for name in left_out} == {"missing", "text", "no bytes", "early end"}
    assert f"LEFT OUT: {sum(reason == 'missing' for reason in left_out.values())} missing" in out

    out = shown(story[1], TINY)
    for split in ("train", "val"):
        index = read_json(Path("data/audiocaps") / split / "index.json")
        late = {entry["id"] for entry in index["left_out"]}
        of_split = {name for name, clip in clips.items() if clip.split == split}
        assert late == {name for name in of_split if rows[name].state in ("truncated", "nan")}
        prepared = {name.split("-w")[0] for name in ShardDataset(f"data/audiocaps/{split}").ids}  # windows of a recording are -w000, ...
        assert prepared == of_split - late != set()
        assert f"{index['items']} items in data/audiocaps/{split}, {len(late)} left out" in out

    for line in story[2:5]:
        shown(line, TINY)
    assert soundfile.info("dog.wav").frames == round(SECONDS * 16000)
    assert {"held_out/error", "held_out/frechet_25_step"} <= read_log(Path("runs/audiocaps_flow"))[-1].keys()
    assert {"held_out/error", "held_out/frechet_1_step"} <= read_log(Path("runs/audiocaps_mean"))[-1].keys()
    assert read_metadata("dog.wav")["prompt"] == "a dog barks"
    first, second = (load_weights(Path(f"runs/audiocaps_{name}/export/network.safetensors")) for name in ("flow", "mean"))
    assert {key.split(".")[0] for key in second.keys() - first.keys()} == {"interval_embedding"}

    shown("python train.py --config configs/audiocaps_curriculum.yaml -o runs/one-run", TINY)
    assert load_weights(Path("runs/one-run/export/network.safetensors")).keys() == second.keys()


def test_from_a_published_checkpoint_to_ones_own(shown, work):
    (work / "mine" / "audio").mkdir(parents=True)
    with (work / "mine" / "sounds.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "caption", "split"])
        for i in range(10):
            time = torch.arange(20000) / 16000
            save_audio(work / "mine" / "audio" / f"{i}.wav", 0.5 * torch.sin(2 * torch.pi * 150 * (i + 1) * time), 16000)
            writer.writerow([f"{i}.wav", f"a tone, number {i}", "val" if i > 7 else "train"])
    for line in lines_of("docs/finetuning.md"):
        shown(line, RELEASED)
    assert read_json(Path("runs/tuned/export/config.json"))["network"]["mask_text"] is False
    base, tuned = (load_weights(Path(f"{folder}/network.safetensors")) for folder in ("checkpoints/meanaudio-s-full", "runs/tuned/export"))
    assert base.keys() == tuned.keys()
    assert read_json(Path("runs/lora/export/lora.json"))["base"] == "meanaudio-s-full"
    assert {path.stem for path in Path().glob("*.wav")} == {"tuned", "best", "with", "half", "merged", "mine", "adapted", "few"}
