import json

import numpy as np
import pytest
import torch
from fakes import TINY_CODEC

from meanaudio.codec.codec import latents_name, load_codec, load_vae
from meanaudio.config import LoadingConfig, LoopConfig, OptimConfig, TrainConfig, VAETrainConfig, VocoderTrainConfig
from meanaudio.errors import InputError
from meanaudio.evaluation.codec import evaluate_codec
from meanaudio.training.codec import VAETask, VocoderTask
from meanaudio.training.loop import Loop
from meanaudio.training.run import train
from meanaudio.training.windows import PEAK, Sound, WindowSampler


def config(task: str, manifest, steps: int = 4, **changes) -> TrainConfig:
    return TrainConfig(
        task=task,
        data=str(manifest),
        codec=TINY_CODEC,
        vae=VAETrainConfig(window=0.512),
        loop=LoopConfig(steps=steps, batch_size=2, log_every=1, sample_every=steps, save_every=2),
        optim=OptimConfig(lr=3e-3, warmup=0, clip=5.0),
        **changes,
    )


@pytest.fixture
def quick(monkeypatch):
    """Small held-out sets, and no Griffin-Lim, which takes seconds."""
    monkeypatch.setattr("meanaudio.training.codec.HELD_OUT_ROWS", 4)
    for place in ("training", "evaluation"):
        monkeypatch.setattr(f"meanaudio.{place}.codec.griffin_lim", lambda mel, config, *, seed: 0.1 * torch.ones(mel.shape[1] * 256))


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_windows_depend_on_seed_and_step_alone():
    sounds = [Sound(f"s{i}", f"c{i % 2}", np.full(n, 3000 * (i + 1), np.int16)) for i, n in enumerate((100, 700, 5000))]
    first, again = (WindowSampler(sounds, 1000, seed=1) for _ in range(2))
    again.batch(3, 4)
    for step in (0, 7):
        a, ids = first.batch(step, 16)
        b, other_ids = again.batch(step, 16)
        assert torch.equal(a, b) and ids == other_ids
        assert a.shape == (16, 1000) and a.dtype == torch.float32 and a.abs().max() <= PEAK + 1e-6
    assert not torch.equal(first.batch(0, 16)[0], first.batch(1, 16)[0])
    assert not torch.equal(first.batch(0, 16)[0], WindowSampler(sounds, 1000, seed=2).batch(0, 16)[0])


def test_windows_made_ahead_are_those_asked_for(tiny_manifest, quick):
    made = [
        [VAETask(config("vae", tiny_manifest, loading=loading), torch.device("cpu")).batch(step) for step in (0, 1, 3)]
        for loading in (LoadingConfig(ahead=0), LoadingConfig(ahead=4, readers=3))
    ]
    for (a, ids), (b, other_ids) in zip(*made, strict=True):
        assert torch.equal(a, b) and ids == other_ids


@pytest.mark.parametrize("task", ["vae", "vocoder"])
def test_earlier_weights_are_continued(task, tiny_checkpoint, tiny_manifest, tmp_path, quick):
    """They are the first weights, and those of another shape or of other mels are refused by name."""
    make = {"vae": VAETask, "vocoder": VocoderTask}[task]
    begin = config(task, tiny_manifest, vocoder=VocoderTrainConfig(reconstructed_share=0), init_from=str(tiny_checkpoint))
    earlier = getattr(load_codec(tiny_checkpoint), task).state_dict()
    for key, value in make(begin, torch.device("cpu")).networks[task].state_dict().items():
        torch.testing.assert_close(value, earlier[key], atol=0, rtol=0)

    part = getattr(TINY_CODEC, task)
    wider = TINY_CODEC.model_copy(update={task: part.model_copy(update={"width": 2 * part.width})})
    with pytest.raises(InputError, match=f"init_from .*: its codec.{task} is .*width={part.width}"):
        make(begin.model_copy(update={"codec": wider}), torch.device("cpu"))
    lower = TINY_CODEC.model_copy(update={"mel": TINY_CODEC.mel.model_copy(update={"f_max": 7000.0})})
    with pytest.raises(InputError, match="its codec.mel is"):
        make(begin.model_copy(update={"codec": lower}), torch.device("cpu"))


@pytest.mark.parametrize("task", ["tagger", "scorer"])
def test_what_begins_anew_takes_no_earlier_weights(task):
    with pytest.raises(ValueError, match=f"init_from continues .*: task {task} begins anew"):
        TrainConfig(task=task, init_from="somewhere")


def test_vae_then_vocoder_end_to_end(tiny_manifest, tmp_path, quick):
    vae_run, vocoder_run = tmp_path / "vae", tmp_path / "vocoder"
    settings = config("vae", tiny_manifest)
    Loop(VAETask(settings, torch.device("cpu")), settings, vae_run).run(progress_bar=False)
    assert (vae_run / "samples" / "0000004" / "0.png").stat().st_size > 1000
    assert rows(vae_run)[-1]["held_out/mel_l1"] > 0
    vae, found = load_vae(vae_run / "export")
    assert found == TINY_CODEC and vae.mel_mean.abs().max() > 0.1

    settings = config(
        "vocoder",
        tiny_manifest,
        codec_from=str(vae_run / "export"),
        vocoder=VocoderTrainConfig(window=0.256, statistics_weight=1, adversarial_from=0.5, discriminator_width=4, reconstructed_share=0.5),
    )
    Loop(VocoderTask(settings, torch.device("cpu")), settings, vocoder_run).run(progress_bar=False)
    logs = [row for row in rows(vocoder_run) if "stft" in row]
    assert "discriminator" not in logs[0] and "discriminator" in logs[-1]
    assert all(row["statistics"] > 0 for row in logs)
    assert (vocoder_run / "samples" / "0000004" / "0.png").stat().st_size > 1000
    assert len(list((vocoder_run / "samples" / "0000004").glob("*.wav"))) == 12

    assert latents_name(vocoder_run / "export") == latents_name(vae_run / "export")
    codec = load_codec(vocoder_run / "export")
    table = evaluate_codec(codec, tiny_manifest, tmp_path / "table", longest=0.3, shown=1)
    assert table.clips == 2 and "griffin-lim-32" in table.to_text()
    assert all(value > 0 for row in table.rows.values() for value in row.values())


@pytest.mark.parametrize(("name", "make"), [("vae", VAETask), ("vocoder", VocoderTask)])
def test_loss_falls_on_one_batch(name, make, tiny_manifest, quick):
    settings = config(name, tiny_manifest, vocoder=VocoderTrainConfig(window=0.256))
    task = make(settings, torch.device("cpu"))
    optimizer = torch.optim.AdamW(task.networks[name].parameters(), lr=3e-3)
    losses = []

    def update(updated, parts):
        [(loss, ids)] = parts
        assert updated == name and len(ids) == 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    for _ in range(25):
        task.step(1, 0.0, update)
    assert losses[-1] < 0.85 * losses[0]


def test_reconstructed_mels_need_a_vae(tiny_manifest):
    settings = config("vocoder", tiny_manifest, vocoder=VocoderTrainConfig(reconstructed_share=0.5))
    with pytest.raises(InputError, match="codec_from"):
        VocoderTask(settings, torch.device("cpu"))


@pytest.mark.parametrize("change", [{"loop": LoopConfig(compile=True)}, {"loading": LoadingConfig(resident=True)}])
def test_what_is_for_the_generator_alone_is_refused(tmp_path, change):
    with pytest.raises(InputError, match="are for the generator, not for task 'vae'"):
        train(TrainConfig(task="vae", **change), tmp_path, device="cpu")
