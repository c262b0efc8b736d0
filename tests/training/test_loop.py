"""The training loop: exact resume, refusals, divergence, signals, and the pure functions it stands on."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from fakes import LATENT_DIM, fill, normals, random_text, tiny_network
from runs import assert_same_run, rows, state_of, step_of, tiny_run, with_loop

from meanaudio.audio import save_audio
from meanaudio.checkpoint import load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, load_vae
from meanaudio.codec.gain import latent_gain
from meanaudio.config import LoadingConfig, LoopConfig, ObjectiveConfig, OptimConfig, TextConfig, TrainConfig
from meanaudio.errors import InputError, TrainingDiverged
from meanaudio.models.transformer import load_network
from meanaudio.objectives import Objective
from meanaudio.pipeline import MeanAudio, read_checkpoint_config
from meanaudio.plots import save_spectrogram
from meanaudio.training.ema import PowerEMA, gamma_of
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.log import RunLog, read_log
from meanaudio.training.loop import Loop, learning_rate
from meanaudio.training.state import FACTS, STATE
from meanaudio.types import Loss


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return tiny_run(tmp_path)


def loop_of(config, folder) -> Loop:
    return Loop(GeneratorTask(config), config, folder)


@pytest.mark.parametrize("kind", ["mean_flow", "flow_matching"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_ten_steps_equal_six_and_resume_and_four(config, tmp_path, kind, precision):
    interval = "relative" if kind == "mean_flow" else "none"
    config = config.model_copy(
        update={
            "network": tiny_network(interval=interval),
            "objective": config.objective.model_copy(update={"kind": kind}),
            "loop": config.loop.model_copy(update={"precision": precision}),
        }
    )
    loop_of(config, tmp_path / "whole").run(progress_bar=False)
    loop_of(config, tmp_path / "parts").run(until=6, progress_bar=False)
    assert step_of(tmp_path / "parts") == 6
    torch.randn(3)
    loop_of(config, tmp_path / "parts").run(progress_bar=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    losses = [row["loss"] for row in rows(tmp_path / "whole") if "loss" in row]
    assert len(losses) == 5
    assert all(map(math.isfinite, losses))


def test_batches_made_ahead_are_the_same_batches(config, tmp_path):
    """A run that fetches nothing ahead; one that fetches three, interrupted in the middle of an epoch and gone on with one."""
    run = {ahead: config.model_copy(update={"loading": LoadingConfig(ahead=ahead)}) for ahead in (0, 1, 3)}
    loop_of(run[0], tmp_path / "whole").run(progress_bar=False)
    loop_of(run[3], tmp_path / "parts").run(until=6, progress_bar=False)
    loop_of(run[1], tmp_path / "parts").run(progress_bar=False)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_killed_run_repeats_from_its_last_state(config, tmp_path):
    """Killed at step 7: rows 5 to 7 are in the log, the state is of step 4."""
    loop_of(config, tmp_path / "whole").run(progress_bar=False)
    killed = loop_of(config, tmp_path / "killed")
    step = killed.task.step

    def die(number, *rest):
        if number == 7:
            raise KeyboardInterrupt
        return step(number, *rest)

    killed.task.step = die
    with pytest.raises(KeyboardInterrupt):
        killed.run(progress_bar=False)
    assert read_log(tmp_path / "killed")[-1]["step"] == 6
    assert step_of(tmp_path / "killed") == 4
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    loop_of(config, tmp_path / "killed").run(progress_bar=False)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_signal_saves_and_the_rest_follows(config, tmp_path):
    loop_of(config, tmp_path / "whole").run(progress_bar=False)
    stopped = loop_of(config, tmp_path / "stopped")
    before = signal.getsignal(signal.SIGTERM)
    step = stopped.task.step

    def interrupt(number, *rest):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(number, *rest)

    stopped.task.step = interrupt
    stopped.run(progress_bar=False)
    assert signal.getsignal(signal.SIGTERM) == before
    assert step_of(tmp_path / "stopped") == 3
    loop_of(config, tmp_path / "stopped").run(progress_bar=False)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_activations_computed_twice_change_nothing_and_may_be_asked_for_midway(config, tmp_path):
    loop_of(config, tmp_path / "whole").run(progress_bar=False)
    loop_of(config, tmp_path / "parts").run(until=6, progress_bar=False)
    again = loop_of(with_loop(config, checkpoint_activations=True), tmp_path / "parts")
    assert again.task.networks["network"].checkpoint_activations
    again.run(progress_bar=False)
    for folder in ("whole", "parts"):  # what differs is how it was asked for
        facts = read_json(tmp_path / folder / STATE / FACTS)
        facts["config"]["loop"].pop("checkpoint_activations")
        write_json(tmp_path / folder / STATE / FACTS, facts)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_left_as_it_is(config, tmp_path):
    loop_of(config, tmp_path / "run").run(progress_bar=False)
    before = rows(tmp_path / "run"), load_weights(tmp_path / "run" / "export" / "network.safetensors")
    loop_of(config, tmp_path / "run").run(progress_bar=False)
    assert rows(tmp_path / "run") == before[0]


def test_training_moves_every_weight_and_lowers_the_loss(config, tmp_path):
    """Forty steps of flow matching on one batch's items."""
    config = config.model_copy(
        update={
            "network": tiny_network(interval="none"),
            "objective": ObjectiveConfig(kind="flow_matching"),
            "loop": LoopConfig(steps=40, batch_size=11, log_every=1, sample_every=40, save_every=40),
            "optim": OptimConfig(lr=5e-3, warmup=2),
        }
    )
    loop = loop_of(config, tmp_path / "run")
    start = {k: v.clone() for k, v in loop.task.networks["network"].state_dict().items()}
    loop.run(progress_bar=False)
    idle = "joint_blocks.0.text.attention.q_norm.weight"
    still = [k for k, v in loop.task.networks["network"].state_dict().items() if torch.equal(v, start[k]) and k != idle]
    assert still == []
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_batches_are_normalised_and_drawn_anew_each_step(config):
    """One batch is the whole set, so every step has the same posteriors, in another order and with other draws."""
    task = GeneratorTask(config.model_copy(update={"loop": config.loop.model_copy(update={"batch_size": 11})}))
    drawn, noises = {}, []
    for step in range(40):
        batch, x, _ = task.draw(step)
        noises.append((x * task.std + task.mean - batch.mean) / batch.std)
        drawn[step] = x[torch.tensor([int(name.removeprefix("train")) for name in batch.ids]).argsort()]
    everything = torch.stack(list(drawn.values())).flatten(0, 2)
    torch.testing.assert_close(everything.mean(0), torch.zeros(LATENT_DIM), atol=0.02, rtol=0)
    torch.testing.assert_close(everything.std(0), torch.ones(LATENT_DIM), atol=0.02, rtol=0)
    # No step repeats another's noise in another order of rows.
    assert all((noises[0] - noise).abs().max() > 1 for noise in noises[1:])
    stds = (task.train.batch(list(range(11))).std / task.std).flatten(0, 1)
    spread = torch.stack(list(drawn.values())).std(0).flatten(0, 1)
    torch.testing.assert_close(spread.mean(0), stds.mean(0), atol=0.02, rtol=0.1)
    assert torch.equal(task.draw(7)[1], task.draw(7)[1])


def test_the_seed_decides_the_run(config, tmp_path):
    runs = {}
    for seed in (0, 1):
        changed = config.model_copy(update={"loop": config.loop.model_copy(update={"seed": seed, "steps": 2})})
        loop_of(changed, tmp_path / str(seed)).run(progress_bar=False)
        runs[seed] = rows(tmp_path / str(seed))
    assert runs[0] != runs[1]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("section", "change"),
    [("optim", {"lr": 1e-4}), ("loop", {"batch_size": 3}), ("loop", {"seed": 9}), ("objective", {"kappa": 0.5})],
)
def test_a_changed_config_is_refused_with_the_key(config, tmp_path, section, change):
    loop_of(config, tmp_path / "run").run(until=2, progress_bar=False)
    changed = config.model_copy(update={section: getattr(config, section).model_copy(update=change)})
    (key, value), earlier = next(iter(change.items())), getattr(config, section)
    with pytest.raises(InputError) as error:
        loop_of(changed, tmp_path / "run").run(progress_bar=False)
    assert f"{section}.{key}: {getattr(earlier, key)!r} -> {value!r}" in str(error.value)
    assert str(error.value).count("->") == 1
    assert step_of(tmp_path / "run") == 2
    assert json.loads((tmp_path / "run" / "train_config.json").read_text()) == config.model_dump(mode="json")


def test_how_often_to_log_and_save_may_change(config, tmp_path):
    loop_of(config, tmp_path / "run").run(until=2, progress_bar=False)
    changed = config.model_copy(update={"loop": config.loop.model_copy(update={"log_every": 1, "sample_every": 3, "save_every": 7})})
    loop_of(changed, tmp_path / "run").run(progress_bar=False)
    assert step_of(tmp_path / "run") == 10


def test_a_damaged_state_is_refused_by_name(config, tmp_path):
    loop_of(config, tmp_path / "run").run(until=2, progress_bar=False)
    path = next((tmp_path / "run" / "state").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="run/state: not a readable training state"):
        loop_of(config, tmp_path / "run").run(progress_bar=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"codec_from": None}, "codec_from"),
        ({"codec_from": "nowhere"}, "nowhere"),
        ({"data": "nowhere"}, "nowhere"),
        ({"seconds": 2.0}, "seconds = 2.0"),
        ({"text": TextConfig(max_tokens=8)}, "max_tokens"),
        ({"network": tiny_network(latent_dim=9)}, "wide"),
        ({"network": tiny_network(sequence_dim=17)}, "wide"),
    ],
)
def test_shards_that_do_not_fit_the_config_are_refused(config, change, told):
    with pytest.raises(InputError) as error:
        GeneratorTask(config.model_copy(update=change))
    assert told in str(error.value)


def test_shards_of_another_codec_are_refused(config, tmp_path):
    path = tmp_path / "codec" / VAE_FILE
    save_weights(path, {k: v + 0.01 for k, v in load_weights(path).items()})
    with pytest.raises(InputError, match="codec"):
        GeneratorTask(config)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_with_the_batch_and_leaves_the_last_state_usable(config, tmp_path, where):
    loop_of(config, tmp_path / "whole").run(progress_bar=False)
    loop = loop_of(config, tmp_path / "run")
    calls = []

    class BadGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    class Spoilt(Objective):
        def loss(self, *args, **options):
            loss = super().loss(*args, **options)
            calls.append(1)
            if len(calls) < 6:
                return loss
            return Loss(loss.per_sample * float("nan") if where == "loss" else BadGradient.apply(loss.per_sample), loss.t, loss.logs)

    loop.task.loss.objective = Spoilt(config.objective)
    with pytest.raises(TrainingDiverged, match=rf"step 5: the {where} of 'network' is nan") as error:
        loop.run(progress_bar=False)
    assert all(name in str(error.value) for name in loop.task.draw(5)[0].ids)
    assert all(torch.isfinite(p).all() for p in loop.task.networks["network"].parameters())
    loop_of(config, tmp_path / "run").run(progress_bar=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# ---------------------------------------------------------------- export, continuation


def test_an_export_that_failed_is_made_when_the_run_is_started_again(config, tmp_path, monkeypatch):
    export, failures = GeneratorTask.export, [OSError(28, "No space left on device")]

    def full_once(self, network, folder):
        if folder.name == "export" and failures:
            raise failures.pop()
        export(self, network, folder)

    monkeypatch.setattr(GeneratorTask, "export", full_once)
    with pytest.raises(OSError, match="No space left"):
        loop_of(config, tmp_path / "run").run(progress_bar=False)
    loop_of(config, tmp_path / "run").run(progress_bar=False)
    assert step_of(tmp_path / "run") == 10
    assert load_weights(tmp_path / "run" / "export" / "network.safetensors").keys()


def test_another_number_to_pick_the_best_by_begins_anew(config, tmp_path):
    """A run may change it as it goes on, and one kind of number says nothing of another."""

    def go_on(best: str, until: int) -> None:
        changed = with_loop(config, best=best, sample_every=2)
        loop = loop_of(changed, tmp_path / "run")
        loop.task.evaluate = lambda network, folder: {"error": 1.0, "other": 25.0 - loop.step}
        loop.run(until=until, progress_bar=False)

    go_on("error", 4)
    assert read_json(tmp_path / "run" / "best" / "best.json") == {"step": 2, "error": 1.0}
    go_on("other", 6)
    assert read_json(tmp_path / "run" / "best" / "best.json") == {"step": 6, "other": 19.0}
    go_on("other", 8)
    assert read_json(tmp_path / "run" / "best" / "best.json") == {"step": 8, "other": 17.0}


def test_samples_stay_in_their_folder_whatever_a_clip_is_called(config, tmp_path, tiny_checkpoint):
    (tmp_path / "codec" / "vocoder.safetensors").write_bytes((tiny_checkpoint / "vocoder.safetensors").read_bytes())
    task, folder = GeneratorTask(config), tmp_path / "samples" / "0000001"
    ids = task.held_out.ids
    ids[:2] = ["a/../../../evil", "train/7"]
    task.evaluate(task.blank().eval(), folder)
    written = {path.parent for path in tmp_path.rglob("*.wav")}
    assert written == {folder}
    assert len(list(folder.glob("*.wav"))) == len(list(folder.glob("*.png"))) == min(len(ids), 4)


def test_the_export_is_the_average_and_is_a_checkpoint(config, tmp_path, tiny_checkpoint, fast_text):
    (tmp_path / "codec" / "vocoder.safetensors").write_bytes((tiny_checkpoint / "vocoder.safetensors").read_bytes())
    wide = config.model_copy(update={"loop": config.loop.model_copy(update={"steps": 2, "sample_every": 100})})
    loop = loop_of(wide, tmp_path / "run")
    loop.task.evaluate = lambda network, folder: {"error": 1.0}
    loop.run(progress_bar=False)
    model = MeanAudio.from_pretrained(tmp_path / "run" / "export", device="cpu")
    for key, value in loop.averages[0].averages.items():
        assert torch.equal(model.network.state_dict()[key], value)
    statistics = loop.task.train.statistics
    assert torch.equal(model.mean, statistics.mean)
    assert torch.equal(model.std, statistics.std)
    assert model.sample_latents(random_text([3]), [0], 16).shape == (1, 16, LATENT_DIM)


def test_channels_may_have_the_deviation_that_they_are_worth(config, tmp_path):
    """`latent_gain`: what counts more in the mel is told to the network more precisely; the export says so."""
    weighted = config.model_copy(update={"latent_gain": 0.5})
    task = GeneratorTask(weighted)
    x = torch.cat([task.draw(step)[1] for step in range(4)])
    vae, _ = load_vae(tmp_path / "codec")
    statistics = task.train.statistics
    gain = latent_gain(vae, task.train.batch(range(min(64, len(task.train)))).mean, statistics.std)
    torch.testing.assert_close(statistics.std / task.std, gain.sqrt())
    plain = torch.cat([GeneratorTask(config).draw(step)[1] for step in range(4)])
    torch.testing.assert_close(x, plain * gain.sqrt())
    loop_of(weighted, tmp_path / "run").run(until=2, progress_bar=False)
    assert read_checkpoint_config(tmp_path / "run" / "export").latent_std == tuple(task.std.tolist())


def test_a_preconditioned_network_is_told_the_deviations_of_its_latents_and_keeps_them(config, tmp_path):
    network = config.network.model_copy(update={"preconditioned": True})
    weighted = config.model_copy(update={"network": network, "latent_gain": 0.5})
    task = GeneratorTask(weighted)
    deviations = task.train.statistics.std
    torch.testing.assert_close(task.networks["network"].data_std, deviations / task.std)
    loop_of(weighted, tmp_path / "first").run(until=2, progress_bar=False)
    export = tmp_path / "first" / "export"
    assert torch.equal(load_network(export, network).data_std, task.networks["network"].data_std)
    later = config.model_copy(update={"network": network, "init_from": str(export)})
    goes_on, other = GeneratorTask(later), GeneratorTask(later.model_copy(update={"latent_gain": 0.0}))
    assert torch.equal(goes_on.networks["network"].data_std, task.networks["network"].data_std)
    # On another scale of the latents the layers are the same: they see, and are asked for, unit variance on any.
    torch.testing.assert_close(other.networks["network"].data_std, torch.ones(LATENT_DIM))
    parameters = dict(goes_on.networks["network"].named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in other.networks["network"].named_parameters())
    with pytest.raises(InputError, match="preconditioned True; with network.preconditioned False it would be another function"):
        GeneratorTask(config.model_copy(update={"init_from": str(export)}))


def test_a_continued_network_begins_with_the_variance_that_it_is_used_to(config, tmp_path):
    loop_of(config, tmp_path / "first").run(until=2, progress_bar=False)
    later = config.model_copy(update={"init_from": str(tmp_path / "first" / "export")})
    same, weighted = GeneratorTask(later), GeneratorTask(later.model_copy(update={"latent_gain": 1.0}))
    unit = GeneratorTask(later.model_copy(update={"latent_gain": 0.0}))  # what the checkpoint has
    before, after = same.networks["network"], weighted.networks["network"]
    assert all(torch.equal(value, unit.networks["network"].state_dict()[key]) for key, value in before.state_dict().items())
    factor = ((1 + (same.std / weighted.std) ** 2) / 2).sqrt()
    z = normals(2, 8, LATENT_DIM)
    with torch.no_grad():
        torch.testing.assert_close(after.audio_in[0](z * factor), before.audio_in[0](z))
        hidden = normals(2, 8, 32)
        torch.testing.assert_close(after.out(hidden), before.out(hidden) * factor)


def test_what_one_checkpoint_learned_since_another_is_added(config, tmp_path):
    exports = {}
    for seed, name in enumerate(("base", "before", "taught")):
        loop = config.loop.model_copy(update={"seed": seed})
        loop_of(config.model_copy(update={"loop": loop}), tmp_path / name).run(until=2, progress_bar=False)
        exports[name] = str(tmp_path / name / "export")
    later = config.model_copy(update={"init_from": exports["base"], "init_add": (exports["taught"], exports["before"])})
    weights = {name: load_weights(Path(export) / "network.safetensors") for name, export in exports.items()}
    for name, value in GeneratorTask(later).networks["network"].state_dict().items():
        torch.testing.assert_close(value, weights["base"][name] + weights["taught"][name] - weights["before"][name])

    same = later.model_copy(update={"init_add": (exports["taught"], exports["base"])})  # all that "taught" has, and nothing of "base"
    for name, value in GeneratorTask(same).networks["network"].state_dict().items():
        torch.testing.assert_close(value, weights["taught"][name], atol=1e-6, rtol=1e-5)

    described = Path(exports["taught"]) / "config.json"
    found = json.loads(described.read_text())
    write_json(described, found | {"network": found["network"] | {"mask_text": False}})
    with pytest.raises(InputError, match="init_add .*taught.*its network is another than the config's: mask_text False in place of True"):
        GeneratorTask(later)
    write_json(described, found | {"latent_std": [2 * s for s in found["latent_std"]]})
    with pytest.raises(InputError, match="taught.*normalised otherwise"):
        GeneratorTask(later)
    write_json(described, found)
    base = Path(exports["base"]) / "config.json"
    scaled = json.loads(base.read_text())
    write_json(base, scaled | {"latent_std": [1.5 * s for s in scaled["latent_std"]]})
    with pytest.raises(InputError, match="init_add .*before.*normalised by other deviations than init_from's"):
        GeneratorTask(later)
    for wrong in ({}, {"init_from": "c", "lora": {"rank": 2}}, {"init_from": "c", "task": "vae"}):
        with pytest.raises(ValueError, match="init_add adds to the weights of a generator's init_from"):
            TrainConfig(init_add=("a", "b"), **wrong)


def test_a_run_continues_from_a_checkpoints_weights(config, tmp_path):
    first = config.model_copy(update={"network": tiny_network(interval="none"), "objective": ObjectiveConfig(kind="flow_matching")})
    loop_of(first, tmp_path / "first").run(until=3, progress_bar=False)
    export = tmp_path / "first" / "export"
    task = GeneratorTask(config.model_copy(update={"init_from": str(export)}))
    before, after = load_weights(export / "network.safetensors"), task.networks["network"].state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert after["interval_embedding.mlp.2.weight"].abs().sum() == 0
    with pytest.raises(InputError, match="another network"):
        GeneratorTask(config.model_copy(update={"init_from": str(export), "network": tiny_network(width=64)}))
    write_json(export / "config.json", json.loads((export / "config.json").read_text()) | {"codec_hash": "other"})
    GeneratorTask(config.model_copy(update={"init_from": str(export)}))  # its VAE still is the one the shards were made with
    (export / VAE_FILE).unlink()
    with pytest.raises(InputError, match="another codec"):
        GeneratorTask(config.model_copy(update={"init_from": str(export)}))


# ---------------------------------------------------------------- pure functions


def test_the_learning_rate_warms_up_and_ends_where_it_should():
    for decay, last in (("cosine", 0.01), ("steps", 0.01), ("constant", 1.0)):
        config = OptimConfig(lr=2.0, warmup=10, decay=decay, final=0.01)
        rates = [learning_rate(config, step, 1000) for step in range(1000)]
        assert rates == [learning_rate(config, step, 1000) for step in range(1000)]
        assert rates[0] == pytest.approx(0.2, rel=1e-3)
        assert max(rates) <= 2.0
        assert rates[10] == pytest.approx(2.0, rel=1e-3)
        assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
        assert rates[-1] == pytest.approx(2.0 * last, rel=1e-2)
    config = OptimConfig(lr=1.0, warmup=0, decay="steps")
    assert [learning_rate(config, s, 100) for s in (0, 79, 80, 89, 90)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(("sigma", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_emas_exponent_is_the_papers(sigma, gamma):
    assert gamma_of(sigma) == pytest.approx(gamma, abs=0.01)


def test_the_ema_has_the_width_asked_for():
    """Shown its own step number as the only weight, the average's mean and spread are those of the density t^gamma."""
    steps, sigma = 2000, 0.1
    source = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    first, second = PowerEMA(source, sigma), PowerEMA(source, sigma)
    for step in range(1, steps + 1):
        for ema, value in ((first, step / steps), (second, (step / steps) ** 2)):
            torch.nn.init.constant_(source.weight, value)
            ema.update(source, step)
    mean, square = first.averages["weight"].item(), second.averages["weight"].item()
    gamma = gamma_of(sigma)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-2)
    assert math.sqrt(square - mean**2) == pytest.approx(sigma, rel=1e-2)


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.25])
def test_the_ema_of_constant_weights_is_those_weights(sigma):
    source = torch.nn.Linear(3, 2)
    ema = PowerEMA(source, sigma)
    fill(source, 4)
    for step in range(1, 6):
        ema.update(source, step)
    assert torch.equal(ema.averages["weight"], source.weight)
    assert not ema.averages["weight"].requires_grad


def test_no_ema_is_the_weights_themselves():
    source = torch.nn.Linear(2, 2)
    ema = PowerEMA(source, 0)
    for step in range(1, 4):
        fill(source, step)
        ema.update(source, step)
        assert torch.equal(ema.averages["weight"], source.weight)


def test_the_log_drops_rows_of_steps_that_will_be_repeated(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.write(step, {"loss": step})
    log.close()
    log = RunLog(tmp_path, from_step=3)
    log.write(4, {"loss": 40})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_sounds_and_pictures_are_shown_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sound = 0.5 * torch.sin(torch.arange(1600) * 0.1)
    save_audio(tmp_path / "samples" / "00-a.wav", sound, 16000)
    save_spectrogram(tmp_path / "samples" / "00-a.png", sound, 16000)
    log = RunLog(tmp_path)
    log.show(7, tmp_path / "samples")
    log.show(8, tmp_path / "nothing")
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    [heard], [seen] = board.Audio("samples/00-a"), board.Images("samples/00-a")
    assert (heard.step, heard.sample_rate, heard.length_frames) == (7, 16000, 1600)
    assert seen.step == 7
    assert seen.width > seen.height > 100
