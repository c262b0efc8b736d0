"""A judge is trained, and a network's one step goes on by its opinion."""

from pathlib import Path

import pytest
import torch
from extractor_fakes import aisfx_state
from fakes import TINY_CODEC, fill, normals, random_text
from runs import rows, tiny_run

from meanaudio.checkpoint import file_hash, load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VOCODER_FILE, load_vae, make_vocoder
from meanaudio.codec.mel import LogMel
from meanaudio.config import JudgeConfig, MelConfig, ObjectiveConfig, TextConfig, TrainConfig
from meanaudio.errors import InputError
from meanaudio.evaluation import judge as judging
from meanaudio.evaluation.extractors.aisfx import BANDS, HOP, SAMPLE_RATE, band_filters, compress, fold
from meanaudio.evaluation.judge import JUDGE_FILE, Judge, MelEars, load_opinion
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.judge import JudgeTask
from meanaudio.training.loop import Loop
from meanaudio.training.run import train


@pytest.fixture(autouse=True)
def _random_ears(monkeypatch):
    monkeypatch.setattr(judging, "load_aisfx", lambda weights: fold(aisfx_state()))


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    config = tiny_run(tmp_path)
    save_weights(Path(config.codec_from) / VOCODER_FILE, fill(make_vocoder(TINY_CODEC), 3, 0.2).state_dict())
    return config


def judge_config(config: TrainConfig) -> TrainConfig:
    small = JudgeConfig(items=9, width=8, dim=4, others=5)
    return config.model_copy(update={"task": "judge", "judge": small})


@pytest.fixture
def judge(config, tmp_path) -> Path:
    train(judge_config(config), tmp_path / "judge", device="cpu", progress_bar=False)
    return tmp_path / "judge" / "export"


def rewarded(config: TrainConfig, judge: Path, start: Path, **changes) -> TrainConfig:
    objective = ObjectiveConfig(kind="reward", judge=str(judge), anchor=0.1)
    return config.model_copy(update={"objective": objective, "init_from": str(start), **changes})


# ---------------------------------------------------------------- the ears


@pytest.mark.parametrize("seconds", [1.0, 2.56])
def test_what_is_made_of_a_mel_is_near_what_is_heard_of_the_sound(seconds):
    """Noise that swells, in one octave: frames and bands as a spectrogram at 44.1 kHz of the same sound has them."""
    import soxr

    config = MelConfig()
    noise = normals(round(seconds * 16000), seed=4) * torch.linspace(0.05, 1, round(seconds * 16000)) ** 2
    spectrum = torch.fft.rfft(noise)
    hertz = torch.linspace(0, 8000, len(spectrum))
    sound = torch.fft.irfft(spectrum * ((hertz > 1500) & (hertz < 3000)), len(noise))
    sound = 0.3 * sound / sound.abs().max()
    frames = MelEars(config).frames(LogMel(config)(sound[None]))[0]
    at_44 = torch.from_numpy(soxr.resample(sound.numpy(), 16000, SAMPLE_RATE))
    window = torch.hann_window(2048)
    power = torch.stft(at_44 / at_44.abs().max(), 2048, HOP, window=window, pad_mode="constant", return_complex=True).abs().square()
    expected = compress(band_filters() @ power).mT
    assert frames.shape[1] == BANDS
    assert abs(len(frames) - len(expected)) <= 1
    count = min(len(frames), len(expected))
    a, b = frames[:count], expected[:count]
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.95
    assert abs(a.mean() - b.mean()) < 0.15 * b.mean()
    assert a[:, b.mean(0) < 0.01].mean() < 0.03


def test_the_level_of_a_sound_does_not_matter():
    config = MelConfig()
    ears, mel = MelEars(config), LogMel(config)(0.1 * normals(2, 16000, seed=1))
    torch.testing.assert_close(ears.frames(mel), ears.frames(mel + 0.7), atol=2e-4, rtol=1e-3)
    # nor does the gradient ask for another: along a common shift of the mel it is nothing, beside what it is elsewhere
    mel.requires_grad_()
    (gradient,) = torch.autograd.grad(ears.requires_grad_(False)(mel).sum(), mel)
    assert gradient.sum((1, 2)).abs().max() < 1e-3 * gradient.abs().sum((1, 2)).min()


def test_gradients_reach_the_mel_and_absurd_mels_stay_finite():
    ears = MelEars(MelConfig()).requires_grad_(False)
    mel = (normals(2, 80, 40, seed=2) - 2).requires_grad_()
    ears(mel).sum().backward()
    assert mel.grad.abs().sum() > 0
    assert ears(torch.full((1, 80, 40), 60.0)).isfinite().all()
    assert ears(torch.full((1, 80, 1), -5.0)).isfinite().all()


# ---------------------------------------------------------------- the judge


def test_captions_that_mean_the_same_are_no_counterexamples():
    judge = Judge(pooled_dim=4, width=8, dim=4, others=2, near=0.9).eval()
    features, pooled = normals(1, 512, seed=0), normals(1, 4, seed=1)
    judge.others.copy_(torch.cat([2 * pooled, 1.01 * pooled]))
    assert judge(features, pooled).item() == pytest.approx(0.0, abs=1e-6)
    judge.others[1] = -pooled[0]
    assert judge(features, pooled).item() > 0


def test_a_judge_learns_what_belongs_together_and_a_stopped_run_repeats_the_whole(config, tmp_path):
    config = judge_config(config)
    Loop(JudgeTask(config), config, tmp_path / "whole").run(progress_bar=False)
    for until in (4, None):
        Loop(JudgeTask(config), config, tmp_path / "parts").run(until=until, progress_bar=False)
    assert file_hash(tmp_path / "whole" / "export" / JUDGE_FILE) == file_hash(tmp_path / "parts" / "export" / JUDGE_FILE)
    last = rows(tmp_path / "whole")[-1]
    assert {"held_out/loss", "held_out/first_of_50", "held_out/first_five_of_50"} <= last.keys()
    state = load_weights(tmp_path / "whole" / "export" / JUDGE_FILE)
    assert state["others"].shape[0] == 5
    assert state["std"].min() >= 0.01
    assert not any(name.startswith("ears") for name in state)  # aiSFX's weights are not written again
    task = JudgeTask(config)
    assert len(task.taught[2]) == 9  # of 11, evenly
    first = [row["loss"] for row in rows(tmp_path / "whole") if "loss" in row]
    assert first[-1] < first[0]


def test_a_judge_of_other_latents_mels_or_text_is_refused(config, judge):
    vae, codec = load_vae(Path(config.codec_from))
    stats = {"mean": torch.zeros(8), "std": torch.ones(8)}
    found = read_json(judge / "config.json")
    good = {"codec_hash": found["codec_hash"], "text": config.text, **stats}
    assert load_opinion(judge, vae, codec.mel, **good)(normals(2, 16, 8), random_text([2, 3])).shape == (2,)
    with pytest.raises(InputError, match=r"it was taught with codec_hash .* in place of aaaa"):
        load_opinion(judge, vae, codec.mel, **{**good, "codec_hash": "aaaa"})
    with pytest.raises(InputError, match="it was taught with text .* in place of"):
        load_opinion(judge, vae, codec.mel, **{**good, "text": TextConfig(max_tokens=9)})
    write_json(judge / "config.json", found | {"near": 2.0})
    with pytest.raises(InputError, match="near"):
        load_opinion(judge, vae, codec.mel, **good)


def test_a_judge_needs_the_codec_of_its_shards(config, tmp_path):
    with pytest.raises(InputError, match="task judge needs codec_from"):
        JudgeTask(judge_config(config).model_copy(update={"codec_from": None}))


# ---------------------------------------------------------------- the reward


def test_a_network_comes_to_please_its_judge_and_repeats_itself(config, judge, tmp_path):
    train(config, tmp_path / "start", device="cpu", progress_bar=False)
    goes_on = rewarded(config, judge, tmp_path / "start" / "export")
    goes_on = goes_on.model_copy(update={"optim": goes_on.optim.model_copy(update={"lr": 1e-3})})
    train(goes_on, tmp_path / "whole", device="cpu", progress_bar=False)
    for until in (5, None):
        train(goes_on, tmp_path / "parts", device="cpu", until=until, progress_bar=False)
    for name in ("network.safetensors", "config.json"):
        assert file_hash(tmp_path / "whole" / "export" / name) == file_hash(tmp_path / "parts" / "export" / name)
    held_out = [row["held_out/error"] for row in rows(tmp_path / "whole") if "held_out/error" in row]
    assert held_out[-1] < held_out[0]
    moved = [row["moved"] for row in rows(tmp_path / "whole") if "moved" in row]
    assert 0 <= moved[0] < moved[-1]


def test_its_error_is_the_judges_opinion_of_one_step(config, judge, tmp_path):
    train(config, tmp_path / "start", device="cpu", progress_bar=False)
    task = GeneratorTask(rewarded(config, judge, tmp_path / "start" / "export"))
    batch, x, draws = task.draw(0)
    network = task.networks["network"]
    with torch.no_grad():
        loss = task.objective.loss(network, x, batch.text, task.null, draws, progress=0.0)
        ones = torch.ones(len(x))
        made = draws.noise - network(draws.noise, ones, 0 * ones, network.condition(batch.text))
        vae, codec = load_vae(Path(config.codec_from))
        opinion = load_opinion(judge, vae, codec.mel, codec_hash=task.train.index["codec_hash"], text=config.text,
                               mean=task.mean, std=task.std)  # fmt: skip
    assert loss.logs["error"] == pytest.approx(opinion(made, batch.text).mean().item(), rel=1e-4)
