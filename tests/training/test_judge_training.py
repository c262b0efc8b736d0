"""A judge is trained, and a network's one step goes on by its opinion."""

import json
import math
from pathlib import Path

import pytest
import torch
from extractor_fakes import aisfx_state
from fakes import LATENT_DIM, TINY_CODEC, NarrowWordHash, fill, normals
from runs import rows, tiny_run, with_loop

from meanaudio import text
from meanaudio.checkpoint import file_hash, load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VOCODER_FILE, latents_name, load_vae, make_vocoder
from meanaudio.codec.mel import LogMel
from meanaudio.config import JudgeConfig, MelConfig, ObjectiveConfig, TextConfig, TrainConfig
from meanaudio.data.manifest import read_manifest
from meanaudio.errors import InputError
from meanaudio.evaluation import judge as judging
from meanaudio.evaluation.extractors.aisfx import BANDS, HOP, SAMPLE_RATE, band_filters, compress, fold
from meanaudio.evaluation.judge import JUDGE_FILE, Judge, MelEars, load_opinion, splits
from meanaudio.evaluation.perturb import DEPTH, Perturbation, apply_perturbation, perturb
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.judge import JudgeTask
from meanaudio.training.loop import Loop
from meanaudio.training.run import train
from meanaudio.types import Asked


@pytest.fixture(autouse=True)
def _random_ears(monkeypatch):
    monkeypatch.setattr(judging, "load_aisfx", lambda weights: fold(aisfx_state()))
    monkeypatch.setitem(text.ENCODERS, "minilm", NarrowWordHash)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    config = tiny_run(tmp_path)
    save_weights(Path(config.codec_from) / VOCODER_FILE, fill(make_vocoder(TINY_CODEC), 3, 0.2).state_dict())
    return config


@pytest.fixture
def judge_config(config, tiny_manifest) -> TrainConfig:
    small = JudgeConfig(items=40, width=8, dim=4, near=0.999)
    return config.model_copy(update={"task": "judge", "data": str(tiny_manifest), "judge": small})


@pytest.fixture
def judge(judge_config, tmp_path) -> Path:
    train(judge_config, tmp_path / "judge", device="cpu", progress_bar=False)
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
    assert mel.grad.abs().sum() > 0 and mel.grad.isfinite().all()
    assert ears(torch.full((1, 80, 40), 60.0)).isfinite().all()
    assert ears(torch.full((1, 80, 1), -5.0)).isfinite().all()


# ---------------------------------------------------------------- the judge


def judge_of(captions, near: float = 0.9, heads: int = 2) -> Judge:
    judge = fill(Judge(pooled_dim=captions.shape[1], width=8, dim=4, heads=heads, captions=len(captions), near=near), 1, 0.5).eval()
    judge.captions.copy_(captions)
    return judge


def asked_of(*parts, in_order: bool = False) -> Asked:
    return Asked(torch.tensor([parts]), torch.tensor([in_order]))


def test_captions_that_mean_the_same_are_no_counterexamples():
    features, pooled = normals(1, 512, 6, seed=0).abs(), normals(1, 4, seed=1)
    assert judge_of(torch.cat([pooled, 2 * pooled, 1.01 * pooled]))(features, asked_of(0)).item() == pytest.approx(0.0, abs=1e-6)
    assert judge_of(torch.cat([pooled, 2 * pooled, -pooled]))(features, asked_of(0)).item() > 0


def test_what_is_heard_together_is_told_from_the_rest_alone():
    """Two captions are all there is: together they are both there; one of them, or both in order, could be wrong."""
    judge, features = judge_of(normals(2, 4, seed=1)), normals(1, 512, 20, seed=0).abs()
    assert judge(features, asked_of(0, 1)).item() == pytest.approx(0.0, abs=1e-6)
    assert judge(features, asked_of(0, -1)).item() > 0
    assert judge(features, asked_of(0, 1, in_order=True)).item() > 0


def test_a_part_is_not_told_from_what_means_another_part_if_they_are_together():
    a, b = normals(2, 1, 4, seed=1)
    judge, features = judge_of(torch.cat([a, b, 1.01 * a])), normals(1, 512, 20, seed=0).abs()
    assert judge(features, asked_of(0, 1)).item() == pytest.approx(0.0, abs=1e-6)
    assert judge(features, asked_of(0, 1, in_order=True)).item() > 0


def test_each_sound_of_a_batch_is_judged_alone():
    judge, features = judge_of(normals(6, 4, seed=1)), normals(4, 512, 20, seed=0).abs()
    asked = Asked(torch.tensor([[0, -1], [1, 2], [3, 4], [4, 3]]), torch.tensor([False, False, True, True]))
    together = judge(features, asked)
    assert together.shape == (4,)
    for i in range(4):
        torch.testing.assert_close(judge(features[[i]], asked[[i]]), together[[i]])
        alone = [judge(features[[i]], asked_of(part)) for part in asked.parts[i].tolist() if part >= 0]
        if not asked.in_order[i] and len(alone) == 1:
            torch.testing.assert_close(together[[i]], alone[0])


def test_heads_judge_one_by_one_and_their_mean_counts():
    """What is not in order: the best moment of what is in order is one for all heads."""
    judge, features = judge_of(normals(6, 4, seed=1), heads=3), normals(4, 512, 20, seed=0).abs()
    asked = Asked(torch.tensor([[0, -1], [1, 2], [3, -1], [4, 3]]), torch.zeros(4, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    heard_by, read_by = (torch.randint(2, shape, generator=generator).float() for shape in ((3, 4, 8), (3, 8)))
    alone, dropped, fits = [], [], []
    for k in range(3):
        single = judge_of(judge.captions, heads=1)
        own = {"audio": judge.audio[k], "text": judge.text[k]}
        state = {f"{part}.0.{name}": x for part, layers in own.items() for name, x in layers.state_dict().items()}
        rest = {name: x for name, x in judge.state_dict().items() if name.split(".")[0] not in own}
        single.load_state_dict(state | rest | {"log_scale": judge.log_scale[[k]]})
        alone.append(single(features, asked))
        dropped.append(single(features, asked, (heard_by[[k]], read_by[[k]])))
        fits.append(single.fits(features.amax(2)))
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(torch.stack(alone).mean(0), judge(features, asked))
    torch.testing.assert_close(torch.stack(dropped).mean(0), judge(features, asked, (heard_by, read_by)))
    torch.testing.assert_close(torch.stack(fits).mean(0), judge.fits(features.amax(2)))


@pytest.mark.parametrize("moment", [6, 10, 16])
def test_the_order_counts_wherever_one_sound_ends(moment):
    """Features that the judge takes for the first caption, then for the second: cheap in that order, dear in the other."""
    judge = judge_of(torch.eye(4)[:2], heads=1)
    with torch.no_grad():
        layers, read = judge.audio[0], judge.read(judge.captions)[0]
        first, second = ((read[k] @ layers[3].weight @ layers[0].weight).clamp_min(0) for k in (0, 1))
    only_first, only_second = (first - second).clamp_min(0), (second - first).clamp_min(0)
    features = torch.stack([only_first if t < moment else only_second for t in range(22)], 1)[None]
    assert judge(features, asked_of(0, 1, in_order=True)) < judge(features, asked_of(1, 0, in_order=True))


@pytest.mark.parametrize("count", [2, 3, 7, 27])
def test_a_sound_is_split_at_moments_that_leave_something_on_both_sides(count):
    features = normals(2, 5, count, seed=3)
    before, after = splits(features)
    assert before.shape == after.shape
    assert before.shape[1] >= 1
    torch.testing.assert_close(torch.maximum(before, after), features.amax(2)[:, None].expand_as(before))
    if count == 27:
        torch.testing.assert_close(before[:, 0], features[..., :4].amax(2))
        torch.testing.assert_close(after[:, 0], features[..., 4:].amax(2))


def test_a_judge_learns_what_belongs_together_and_a_stopped_run_repeats_the_whole(judge_config, tmp_path):
    quick = judge_config.model_copy(update={"optim": judge_config.optim.model_copy(update={"lr": 1e-2})})
    config = with_loop(quick, steps=30, log_every=5)
    Loop(JudgeTask(config), config, tmp_path / "whole").run(progress_bar=False)
    for until in (4, None):
        Loop(JudgeTask(config), config, tmp_path / "parts").run(until=until, progress_bar=False)
    assert file_hash(tmp_path / "whole" / "export" / JUDGE_FILE) == file_hash(tmp_path / "parts" / "export" / JUDGE_FILE)
    last = rows(tmp_path / "whole")[-1]
    assert {"held_out/loss", "held_out/first", "held_out/first_five", "held_out/in_order"} <= last.keys()
    state = load_weights(tmp_path / "whole" / "export" / JUDGE_FILE)
    taught = {clip.caption for clip in read_manifest(config.data) if clip.split == "train"}
    assert read_json(tmp_path / "whole" / "export" / "config.json")["captions"] == sorted(taught)
    assert state["captions"].shape == (6, 16)
    assert state["std"].min() >= 0.01
    assert not any(name.startswith("ears") for name in state)  # aiSFX's weights are not written again
    losses = [row["loss"] for row in rows(tmp_path / "whole") if "loss" in row]
    assert losses[-1] < losses[0]


def test_what_a_judge_hears_of_a_scene_is_what_the_scene_holds(judge_config):
    task = JudgeTask(judge_config)
    features, asked, ids = task.taught
    assert len(features) == len(asked) == len(ids) == 40
    scenes = task._scenes(read_manifest(judge_config.data), "train", 16000, 40, judge_config.loop.seed)
    for i in (0, 7, 39):
        assert ids[i] == scenes[i].id
        parts = [task.described.captions[k] for k in asked.parts[i].tolist() if k >= 0]
        assert parts == list(scenes[i].parts)
        assert asked.in_order[i] == (scenes[i].in_order and len(parts) == 2)
    assert task.asked[0].shape[0] == 3  # a sixteenth
    assert {task.described.captions[i] for i in task.described.lasting} <= set(task.described.captions)


def opinion_of(config: TrainConfig, judge: Path, **changes):
    vae, codec = load_vae(Path(config.codec_from))
    good = {"codec_hash": latents_name(Path(config.codec_from)), "text": config.text, "mean": torch.zeros(LATENT_DIM),
            "std": torch.ones(LATENT_DIM), "scenes": config.scenes}  # fmt: skip
    return load_opinion(judge, vae, codec.mel, NarrowWordHash(max_tokens=16), **{**good, **changes})


def test_a_judge_of_other_latents_mels_or_text_is_refused(config, judge):
    opinion, seeds = opinion_of(config, judge), torch.tensor([[3, 9], [4, 9]])
    assert opinion(normals(2, 16, LATENT_DIM), opinion.ask(seeds)[1], seeds).shape == (2,)
    with pytest.raises(InputError, match=r"it was taught with codec_hash .* in place of aaaa"):
        opinion_of(config, judge, codec_hash="aaaa")
    with pytest.raises(InputError, match="it was taught with text .* in place of"):
        opinion_of(config, judge, text=TextConfig(max_tokens=9))
    with pytest.raises(InputError, match="no judge in .*nowhere; task judge trains one"):
        opinion_of(config, judge / "nowhere")
    found = read_json(judge / "config.json")
    write_json(judge / "config.json", found | {"mel": found["mel"] | {"f_max": 7000.0}})
    with pytest.raises(InputError, match="it was taught with mel .*7000"):
        opinion_of(config, judge)
    write_json(judge / "config.json", found | {"near": 2.0})
    with pytest.raises(InputError, match="near"):
        opinion_of(config, judge)


def seeds_of(count: int) -> torch.Tensor:
    """Rows' own, and one for all."""
    return torch.stack([torch.arange(count), torch.full((count,), 77)], 1)


def test_an_opinion_is_a_function_of_its_seeds(config, judge):
    opinion, seeds = opinion_of(config, judge, pad=20), seeds_of(6)
    wanted, asked = opinion.ask(seeds)
    again = opinion.ask(seeds)
    assert torch.equal(wanted.pooled, again[0].pooled) and torch.equal(asked.parts, again[1].parts)
    assert wanted.sequence.shape[1] == 20
    assert {len(row[row >= 0]) for row in opinion.ask(seeds_of(40))[1].parts} == {1, 2}
    latents, before = normals(6, 16, LATENT_DIM), torch.random.get_rng_state()
    found = opinion(latents, asked, seeds)
    assert torch.equal(found, opinion(latents, asked, seeds))
    for column in (0, 1):
        other = seeds.clone()
        other[:, column] += 100
        assert not torch.equal(found, opinion(latents, asked, other))
    alone = torch.cat([opinion(latents[[i]], asked[[i]], seeds[[i]]) for i in range(6)])
    torch.testing.assert_close(alone, found, atol=1e-4, rtol=1e-4)  # however many processes share a batch
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_judge_needs_a_codec_and_both_splits(judge_config, tmp_path):
    with pytest.raises(InputError, match="task judge needs codec_from"):
        JudgeTask(judge_config.model_copy(update={"codec_from": None}))
    folder, path = Path(judge_config.data).parent, tmp_path / "manifest.jsonl"
    clips = [json.loads(line) for line in Path(judge_config.data).read_text().splitlines()]
    taught = [{**clip, "audio": str(folder / clip["audio"])} for clip in clips if clip["split"] == "train"]
    path.write_text("".join(json.dumps(clip) + "\n" for clip in taught))
    with pytest.raises(InputError, match="no clip of split val"):
        JudgeTask(judge_config.model_copy(update={"data": str(path)}))


# ---------------------------------------------------------------- what is heard, as it might also have been


def test_perturbed_mels_are_their_seeds_and_take_the_sounds_level_along():
    mel, seeds = normals(12, 80, 60, seed=2) - 2, range(12)
    found = perturb(mel, seeds)
    assert found.shape == mel.shape and found.isfinite().all()
    torch.testing.assert_close(perturb(mel[[5]], [5]), found[[5]])
    same = [i for i in range(12) if torch.equal(found[i], mel[i])]
    assert 0 < len(same) < 9
    torch.testing.assert_close(perturb(mel + 0.7, seeds), found + 0.7)  # no level that the sound is measured against
    mel.requires_grad_()
    (gradient,) = torch.autograd.grad((perturb(mel, seeds) - mel).sum(), mel)
    assert gradient.sum((1, 2)).abs().max() < 1e-3 * mel[0].numel()


def neutral(rows: int, bands: int, frames: int, **changes) -> Perturbation:
    """What leaves a mel as it is, but for `changes`."""
    nothing = {"left": torch.zeros(rows, dtype=torch.bool), "shift": torch.zeros(rows), "speed": torch.ones(rows),
               "tone": torch.zeros(rows, bands), "noise": torch.full((rows, bands, frames), -60.0),
               "kept": torch.ones(rows, bands, frames)}  # fmt: skip
    return Perturbation(**{**nothing, **changes})


def test_a_perturbation_does_what_it_says():
    mel = torch.full((2, 40, 60), -4.0)
    mel[:, 10, 20] = 1.0
    torch.testing.assert_close(apply_perturbation(mel, neutral(2, 40, 60)), mel)
    moved = apply_perturbation(mel, neutral(2, 40, 60, shift=torch.tensor([3.0, -2.0])))
    assert [divmod(int(row.argmax()), 60) for row in moved] == [(7, 20), (12, 20)]
    faster = apply_perturbation(mel, neutral(2, 40, 60, speed=torch.tensor([1.5, 1.0])))  # about the middle
    assert int(faster[0, 10].argmax()) == round(29.5 - 9.5 / 1.5)
    assert torch.equal(faster[1], apply_perturbation(mel, neutral(2, 40, 60))[1])
    toned = apply_perturbation(mel, neutral(2, 40, 60, tone=torch.tensor([[0.5], [-0.5]]).expand(2, 40)))
    torch.testing.assert_close(toned, mel + torch.tensor([0.5, -0.5])[:, None, None])
    kept = torch.ones(2, 40, 60)
    kept[0, :, 20] = 0
    gone = apply_perturbation(mel, neutral(2, 40, 60, kept=kept))
    torch.testing.assert_close(gone, torch.where(kept.bool(), mel, -4.0 - DEPTH))  # what is loud here is -4
    between = apply_perturbation(mel, neutral(2, 40, 60, shift=torch.tensor([0.5, 0.0])))
    torch.testing.assert_close(between[0, 9:11, 20], torch.full((2,), -1.5))
    noisy = apply_perturbation(mel, neutral(2, 40, 60, noise=torch.zeros(2, 40, 60)))
    torch.testing.assert_close(noisy[0, 0, 0], torch.tensor(-4.0 + math.log10(2)))
    with torch.autocast("cpu", torch.bfloat16):  # which would round places, were they products
        assert torch.equal(apply_perturbation(mel, neutral(2, 40, 60, shift=torch.tensor([3.0, -2.0]))), moved)
    for bands, frames in ((1, 1), (1, 9), (2, 1), (80, 2)):
        assert perturb(normals(3, bands, frames), range(3)).isfinite().all()
    left = torch.tensor([True, False])
    assert torch.equal(apply_perturbation(mel, neutral(2, 40, 60, left=left, shift=torch.ones(2), kept=kept))[0], mel[0])


# ---------------------------------------------------------------- the reward


def test_a_network_comes_to_please_its_judge_and_repeats_itself(config, judge, tmp_path):
    train(config, tmp_path / "start", device="cpu", progress_bar=False)
    goes_on = rewarded(config, judge, tmp_path / "start" / "export")
    goes_on = with_loop(goes_on.model_copy(update={"optim": goes_on.optim.model_copy(update={"lr": 1e-2})}), steps=24, sample_every=8)
    train(goes_on, tmp_path / "whole", device="cpu", progress_bar=False)
    for until in (9, None):
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
        opinion = opinion_of(config, judge, mean=task.mean, std=task.std)
        wanted, asked = opinion.ask(draws.seeds)
        ones = torch.ones(len(x))
        made = draws.noise - network(draws.noise, ones, 0 * ones, network.condition(wanted))
    assert loss.logs["error"] == pytest.approx(opinion(made, asked, draws.seeds).mean().item(), rel=1e-4)
