"""Somebody listens to held-out outputs during training, with the functions that evaluate a finished checkpoint."""

from pathlib import Path

import pytest
import torch
from fakes import TINY_CODEC, fill
from listeners import Bands
from runs import rows, run, tiny_run

from meanaudio.audio import limit_peak
from meanaudio.checkpoint import save_weights
from meanaudio.codec.codec import VOCODER_FILE, load_codec, make_vocoder
from meanaudio.config import EvaluationConfig, TrainConfig
from meanaudio.errors import InputError
from meanaudio.evaluation import extractors
from meanaudio.evaluation.features import compare_audio
from meanaudio.evaluation.hearing import make_listener
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.state import changes


@pytest.fixture
def config(tmp_path, monkeypatch) -> TrainConfig:
    monkeypatch.setitem(extractors.EXTRACTORS, "bands", Bands)
    config = tiny_run(tmp_path)
    save_weights(Path(config.codec_from) / VOCODER_FILE, fill(make_vocoder(TINY_CODEC), 3, 0.2).state_dict())
    return config.model_copy(update={"evaluation": EvaluationConfig(extractor="bands", clips=3)})


def test_what_is_heard_is_logged_beside_the_distances_of_latents(config, tmp_path):
    run(config, tmp_path / "run")
    held_out = [row for row in rows(tmp_path / "run") if "held_out/error" in row]
    assert len(held_out) == 2
    for row in held_out:
        assert row["held_out/frechet_1_step"] > 0
        for key in ("frechet", "kl", "inception"):
            assert row[f"held_out/bands_{key}_1_step"] > 0
        assert "held_out/bands_kernel_1_step" in row


def test_it_is_what_the_listener_says_of_the_first_decoded_clips(config, tmp_path, monkeypatch):
    task = GeneratorTask(config)
    made, reference = (torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(k)) for k in range(2))
    found = task._listen_and_write(made, reference, tmp_path / "samples")
    codec = load_codec(Path(config.codec_from))
    with torch.inference_mode():
        sounds = [limit_peak(codec.decode(x[:3] * task.std + task.mean)) for x in (made, reference)]
    expected = compare_audio(make_listener("bands", "cpu"), *sounds, codec.spec.sample_rate)
    assert found == {f"bands_{key}": pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in expected.items()}
    assert len(list((tmp_path / "samples").glob("*.wav"))) == 4


def test_a_listener_that_cannot_hear_is_refused_at_the_start(config):
    with pytest.raises(InputError, match="unknown extractor 'ears'"):
        GeneratorTask(config.model_copy(update={"evaluation": EvaluationConfig(extractor="ears")}))
    (Path(config.codec_from) / VOCODER_FILE).unlink()
    with pytest.raises(InputError, match="'bands' needs sound: codec_from has no vocoder.safetensors"):
        GeneratorTask(config)


def test_who_listens_may_change_along_a_run(config):
    assert changes(config.model_copy(update={"evaluation": EvaluationConfig()}).model_dump(mode="json"), config, "state") == []
