"""The decoder that goes on, on what a network makes."""

import json
from pathlib import Path

import pytest
import torch
from fakes import LATENT_DIM, torch_threads

from meanaudio.checkpoint import file_hash, load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, latents_name, load_codec, make_vae
from meanaudio.config import (
    CheckpointConfig,
    CodecConfig,
    DecoderTrainConfig,
    LoopConfig,
    OptimConfig,
    ReleaseVAEConfig,
    TrainConfig,
    parse,
)
from meanaudio.data.items import Item
from meanaudio.errors import InputError
from meanaudio.pipeline import MeanAudio
from meanaudio.steering import least_steering
from meanaudio.training.decoder import DecoderTask
from meanaudio.training.loop import Loop

ROWS = 4


@pytest.fixture
def config(tiny_checkpoint, tiny_manifest, monkeypatch) -> TrainConfig:
    monkeypatch.setattr("meanaudio.training.decoder.HELD_OUT_ROWS", 4)
    return TrainConfig(
        task="decoder",
        data=str(tiny_manifest),
        init_from=str(tiny_checkpoint),
        decoder=DecoderTrainConfig(window=0.512, clean=0.25, until=0.8, discriminator_width=4),
        optim=OptimConfig(lr=3e-3, warmup=0, ema=0.1),
        loop=LoopConfig(steps=4, batch_size=ROWS, log_every=1, sample_every=4, save_every=2),
    )


def task_of(config: TrainConfig) -> DecoderTask:
    return DecoderTask(config, torch.device("cpu"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_decoder_alone_changes_and_the_checkpoint_says_what_latents_it_has(config, tiny_checkpoint, tmp_path):
    Loop(task_of(config), config, tmp_path / "run").run(progress_bar=False)
    export = tmp_path / "run" / "export"
    before, after = (load_weights(folder / VAE_FILE) for folder in (tiny_checkpoint, export))
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"} if not any("linear" in name for name in before) else {"decoder", "linear_decoder"}
    assert latents_name(export) == latents_name(tiny_checkpoint)
    for name in ("network.safetensors", "vocoder.safetensors", "config.json"):
        assert file_hash(export / name) == file_hash(tiny_checkpoint / name)
    assert MeanAudio.from_pretrained(export).generate("a tone", duration=0.5).samples.isfinite().all()
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"held_out/mel_l1", "held_out/mel_l1_half", "held_out/detail"} <= logged[-1].keys()
    assert (tmp_path / "run" / "samples" / "0000004" / "0.wav").stat().st_size > 1000


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stopped_run_repeats_the_one_that_was_not(config, tmp_path, threads):
    """With two threads a text's last bits depend on the batch it is encoded in."""
    with torch_threads(threads):
        Loop(task_of(config), config, tmp_path / "whole").run(progress_bar=False)
        for until in (2, None):
            Loop(task_of(config), config, tmp_path / "parts").run(until=until, progress_bar=False)
    assert file_hash(tmp_path / "whole" / "export" / VAE_FILE) == file_hash(tmp_path / "parts" / "export" / VAE_FILE)


def test_times_are_shared_out_as_asked(config):
    times = task_of(config).times(4000, seeded())
    assert (times == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    between = times[times > 0]
    assert between.max() <= 0.8 and between.mean().item() == pytest.approx(0.4, abs=0.03)


def test_latents_lie_between_the_encoders_and_the_networks_own_outputs(config, tiny_checkpoint):
    """At t = 0 they are the recording's; at t = 1 what the pipeline samples from the same noise, whatever was recorded."""
    task = task_of(config)
    items = [task.held_out[i] for i in range(3)]
    silent = [Item(item.id, item.caption, torch.zeros_like(item.audio)) for item in items]
    codec, pipeline = load_codec(tiny_checkpoint), task.pipeline
    audio = torch.stack([item.audio for item in items])
    recorded = task.rows(items, torch.zeros(3), seeded())
    torch.testing.assert_close(recorded.latents, codec.encode(audio).mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(recorded.mel, codec.mel(audio))

    made, other = (task.rows(some, torch.ones(3), seeded(5)).latents for some in (items, silent))
    torch.testing.assert_close(made, other)
    noise = torch.randn(made.shape, generator=seeded(5))
    condition = pipeline.network.condition(pipeline.encode_text([item.caption for item in items]))
    with torch.no_grad():
        expected = noise - pipeline.network(noise, torch.ones(3), torch.zeros(3), condition)
    torch.testing.assert_close(made, expected * pipeline.std + pipeline.mean, atol=1e-4, rtol=1e-4)


def test_the_decoder_learns_to_mend_what_the_network_spoils(config, tmp_path):
    """By distance alone, which then falls for latents on the way; nothing but the decoder's error can fall at t = 0."""
    settings = config.model_copy(
        update={
            "decoder": DecoderTrainConfig(window=1.024, clean=0, adversarial_weight=0, feature_weight=0, discriminator_width=2),
            "loop": config.loop.model_copy(update={"steps": 60, "sample_every": 60, "save_every": 60}),
        }
    )
    task = task_of(settings)
    before = task.evaluate(task.blank().eval(), tmp_path / "before")
    Loop(task, settings, tmp_path / "run").run(progress_bar=False)
    after = task.evaluate(task.blank().eval(), tmp_path / "after")
    assert after["mel_l1_half"] < 0.7 * before["mel_l1_half"]


def test_what_cannot_go_on_is_refused(config, checkpoint_copy, tmp_path):
    with pytest.raises(InputError, match="task decoder needs init_from"):
        task_of(config.model_copy(update={"init_from": None}))
    manifest = Path(config.data)
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    only = tmp_path / "manifest.jsonl"
    only.write_text("".join(json.dumps(row | {"split": "train", "audio": str(manifest.parent / row["audio"])}) + "\n" for row in lines))
    with pytest.raises(InputError, match="no clip of split val or test"):
        task_of(config.model_copy(update={"data": str(only)}))
    settings = read_json(checkpoint_copy / "config.json")
    release = ReleaseVAEConfig(latent_dim=LATENT_DIM, width=16, multipliers=(1, 1), blocks=1)
    settings["codec"]["vae"] = release.model_dump(mode="json")
    write_json(checkpoint_copy / "config.json", settings)
    save_weights(checkpoint_copy / VAE_FILE, make_vae(parse(CodecConfig, settings["codec"])).state_dict())
    with pytest.raises(InputError, match="a VAE of kind 'release' is for converted checkpoints, and cannot go on"):
        task_of(config.model_copy(update={"init_from": str(checkpoint_copy)}))


def test_a_checkpoint_is_found_by_its_name_and_bf16_works(config, tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("MEANAUDIO_CHECKPOINTS", str(tiny_checkpoint.parent))
    short = {"loop": config.loop.model_copy(update={"precision": "bf16", "steps": 1}), "init_from": tiny_checkpoint.name}
    settings = config.model_copy(update=short | {"decoder": DecoderTrainConfig(window=60, discriminator_width=2)})
    Loop(task_of(settings), settings, tmp_path / "run").run(progress_bar=False)
    assert MeanAudio.from_pretrained(tmp_path / "run" / "export").generate("a tone", duration=0.2).samples.isfinite().all()


def test_a_network_that_takes_a_scale_gets_the_least_that_it_knows():
    made = CheckpointConfig.model_construct
    assert least_steering(made(guidance_range=None)).scale == 1
    assert least_steering(made(guidance_range=(2.0, 6.0))).scale == 2
