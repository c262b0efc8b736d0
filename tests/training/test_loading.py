"""What training is fed with does not depend on how it is brought in; and how fast that is."""

import json
import os
import signal

import pytest
import torch
from fakes import WordHash
from runs import assert_same_run, outcomes, run, start, state_of, step_of, tiny_run

from meanaudio import text
from meanaudio.audio import save_audio
from meanaudio.config import LoadingConfig, MixedDataConfig, TrainConfig
from meanaudio.data.shards import ShardDataset
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.loading import LoadingReport, measure_loading
from meanaudio.training.loop import Loop


@pytest.fixture
def config(tmp_path, fast_text) -> TrainConfig:
    """A tiny run whose rows are mixed from prepared items and raw sound, whose captions are encoded on the fly."""
    config = tiny_run(tmp_path)
    rows = []
    for i in range(5):
        save_audio(tmp_path / "sounds" / f"raw{i}.wav", 0.5 * torch.sin(torch.arange(20000 + 9000 * i) * 0.02 * (i + 1)), 16000)
        rows.append({"audio": f"raw{i}.wav", "caption": f"tone number {i}"})
    (tmp_path / "sounds" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config.model_copy(
        update={
            "mixture": (MixedDataConfig(data=str(tmp_path / "sounds" / "manifest.jsonl"), share=0.5),),
            "encode_text": True,
            "network": config.network.model_copy(update={"sequence_dim": 384, "pooled_dim": 384}),
        }
    )


def test_mixed_raw_and_prepared_items_are_trained_on_and_resumed_exactly(config, tmp_path):
    """6 + 4 steps enter the mixture's order and both sets' epochs in the middle; batches made ahead, several at once, change no weight."""
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", until=6)
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    first = state_of(tmp_path / "whole")
    for name, loading in (("waiting", LoadingConfig(ahead=0, threads=1)), ("hurried", LoadingConfig(ahead=5, readers=3))):
        run(config.model_copy(update={"loading": loading}), tmp_path / name)
        second = state_of(tmp_path / name)
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_items_kept_on_the_device_change_no_weight(tmp_path):
    config = tiny_run(tmp_path)
    for name, resident in (("disk", False), ("device", True)):
        run(config.model_copy(update={"loading": LoadingConfig(resident=resident, readers=2)}), tmp_path / name)
    run(config, tmp_path / "moved", until=6)
    run(config.model_copy(update={"loading": LoadingConfig(resident=True)}), tmp_path / "moved")
    first = state_of(tmp_path / "disk")
    for name in ("device", "moved"):
        second = state_of(tmp_path / name)
        assert all(torch.equal(value, second[key]) for key, value in first.items())


class Dies(GeneratorTask):
    """Killed without warning before it computes step 7, with the next batches half read."""

    def step(self, step, progress, update):
        if step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(step, progress, update)


def run_by(task, config, folder) -> None:
    text.ENCODERS["minilm"] = WordHash
    Loop(task(config), config, folder).run(progress_bar=False)


def test_a_kill_with_two_readers_at_work_is_gone_on_from_exactly(config, tmp_path):
    """The last state is of step 4: batch 5 begins in the middle of both sets' epochs."""
    config = config.model_copy(update={"loading": LoadingConfig(ahead=2, threads=2)})
    assert outcomes(start(run_by, GeneratorTask, config, tmp_path / "whole")) == [None]
    assert outcomes(start(run_by, Dies, config, tmp_path / "killed")) == [-signal.SIGKILL]
    assert step_of(tmp_path / "killed") == 4
    assert outcomes(start(run_by, GeneratorTask, config, tmp_path / "killed")) == [None]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_batches_have_rows_of_each_set_with_text_of_the_encoder(config):
    task = GeneratorTask(config)
    ids = [name for step in range(10) for name in task.draw(step)[0].ids]
    raw = [name for name in ids if name.startswith("raw")]
    assert len(raw) / len(ids) == pytest.approx(0.5, abs=0.2)
    assert {"raw1", "raw2-w000", "raw2-w001"} <= set(raw)  # windows of 1.024 s; 1.8 s hold one, 2.4 s two
    batch, x, _ = task.draw(0)
    assert x.shape == (4, 16, 8)
    assert batch.text.sequence.shape[2] == 384


def test_the_set_that_is_measured_is_read_back_from_both_ways_of_storing(tmp_path):
    import numpy as np

    config = tiny_run(tmp_path / "run")
    report = measure_loading(config, tmp_path / "measured", items=300, rounds=2, steps=2)
    assert isinstance(report, LoadingReport)
    data = ShardDataset(tmp_path / "measured" / "shards" / "train")
    assert len(data) == 300
    item = data.batch([299])
    with np.load(tmp_path / "measured" / "npz" / "299.npz") as stored:
        assert torch.equal(torch.from_numpy(stored["mean"]), item.mean[0])
        assert stored["text_features"].shape == (config.text.max_tokens, 16)
    for rates in report.rates.values():
        assert all(rate > 0 for rate in rates.values())
    assert 0 <= report.waited <= report.step
    assert "x npz" in report.to_text()
