"""Runs of the few-step objectives: every kind trains and resumes, and checkpoints teach, start and refuse one another."""

import json
import math
import shutil

import pytest
import torch
from fakes import LATENT_DIM, fill, normals, random_text, tiny_network
from runs import assert_same_run, rows, tiny_run, with_loop

from meanaudio.checkpoint import load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE
from meanaudio.config import CheckpointConfig, HalvingConfig, MatchingConfig, ObjectiveConfig, ScaleConfig, TrainConfig, constant, parse
from meanaudio.errors import InputError
from meanaudio.models.transformer import make_network
from meanaudio.training.distill import distill, round_of
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.loop import Loop


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return tiny_run(tmp_path, steps=4, log_every=1, sample_every=4, save_every=2)


def of_kind(config: TrainConfig, kind: str, *, interval: str = "relative", scale: ScaleConfig | None = None, **changes) -> TrainConfig:
    network = tiny_network(interval=interval, guidance_embedding=scale is not None, guidance_limits=scale is not None and scale.limits)
    objective = ObjectiveConfig(kind=kind, interval_fraction=constant(0.5), scale=scale, **changes)
    return parse(TrainConfig, config.model_copy(update={"network": network, "objective": objective}).model_dump())


def run(config: TrainConfig, folder, **options) -> None:
    Loop(GeneratorTask(config), config, folder).run(progress_bar=False, **options)


@pytest.fixture
def flow(config, tmp_path):
    """The export of a short flow-matching run, its weights made lively: what distillations and conversions start from."""
    run(of_kind(config, "flow_matching", interval="none"), tmp_path / "flow")
    export = tmp_path / "flow" / "export"
    save_weights(export / "network.safetensors", fill(make_network(tiny_network(interval="none")), 3, 0.2).state_dict())
    return export


@pytest.mark.parametrize("kind", ["improved_mean_flow", "alpha_flow", "interval_splitting", "finite_difference"])
@pytest.mark.parametrize("scale", [None, ScaleConfig(limits=True)], ids=["fixed", "scales"])
def test_every_objective_trains_resumes_and_exports_what_it_was_trained_for(config, tmp_path, kind, scale):
    config = of_kind(config, kind, scale=scale)
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", until=2)
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    losses = [row["loss"] for row in rows(tmp_path / "whole") if "loss" in row]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert "held_out/frechet_1_step" in rows(tmp_path / "whole")[-1]
    exported = parse(CheckpointConfig, read_json(tmp_path / "whole" / "export" / "config.json"))
    assert exported.guidance_range == (None if scale is None else (1.0, 8.0))


def test_a_decoupled_network_starts_as_its_flow_matching_checkpoint(config, flow):
    """Nothing is new, and at r = t it is the same function, bit for bit."""
    config = of_kind(config, "mean_flow", interval="decoupled").model_copy(update={"init_from": str(flow)})
    network = GeneratorTask(config).networks["network"]
    before = make_network(tiny_network(interval="none"))
    before.load_state_dict(load_weights(flow / "network.safetensors"))
    assert network.state_dict().keys() == before.state_dict().keys()
    z, t, text = normals(3, 16, LATENT_DIM), torch.tensor([1.0, 0.5, 0.1]), random_text([2, 3, 4])
    with torch.no_grad():
        assert torch.equal(network(z, t, t, network.condition(text)), before(z, t, t, before.condition(text)))


def test_from_flow_matching_to_one_step_through_both_stages(config, tmp_path, flow):
    """Stage one, then rounds of 4, 2 and 1 steps; every round starts from and is taught by the one before."""
    guided = of_kind(config, "guidance_distillation", interval="none", scale=ScaleConfig(), teacher=str(flow))
    guided = guided.model_copy(update={"init_from": str(flow)})
    task = GeneratorTask(guided)
    taught = load_weights(flow / "network.safetensors")
    assert all(torch.equal(task.networks["network"].state_dict()[k], v) for k, v in taught.items())
    run(guided, tmp_path / "guided")

    export = tmp_path / "guided" / "export"
    halving = of_kind(
        config, "progressive_distillation", scale=ScaleConfig(), teacher=str(export), halving=HalvingConfig(steps=4, first=4)
    ).model_copy(update={"init_from": str(export)})
    last = distill(halving, tmp_path / "halved", progress_bar=False)
    assert last == tmp_path / "halved" / "1-steps" / "export"
    for steps, teacher in ((4, export), (2, tmp_path / "halved" / "4-steps" / "export"), (1, tmp_path / "halved" / "2-steps" / "export")):
        used = json.loads((tmp_path / "halved" / f"{steps}-steps" / "train_config.json").read_text())
        assert used["init_from"] == used["objective"]["teacher"] == str(teacher)
        assert used["objective"]["halving"] == {"steps": steps, "first": 4, "rehearsal": 0.25}
    weights = load_weights(last / "network.safetensors")
    distill(halving, tmp_path / "halved", progress_bar=False)  # finished rounds are left as they are
    assert all(torch.equal(v, weights[k]) for k, v in load_weights(last / "network.safetensors").items())
    assert parse(CheckpointConfig, read_json(last / "config.json")).guidance_range == (1.0, 8.0)


def test_from_flow_matching_to_mean_velocities_of_a_teacher(config, tmp_path, flow):
    taught = of_kind(config, "mean_flow_distillation", teacher=str(flow))
    run(taught.model_copy(update={"init_from": str(flow)}), tmp_path / "taught")
    export = tmp_path / "taught" / "export"
    assert parse(CheckpointConfig, read_json(export / "config.json")).guidance_range is None
    other = tmp_path / "other"
    shutil.copytree(flow, other)
    save_weights(other / "network.safetensors", fill(make_network(tiny_network(interval="none")), 4, 0.2).state_dict())
    by_other = of_kind(config, "mean_flow_distillation", teacher=str(other)).model_copy(update={"init_from": str(flow)})
    run(by_other, tmp_path / "by-other")
    taught, otherwise = (load_weights(folder / "export" / "network.safetensors") for folder in (tmp_path / "taught", tmp_path / "by-other"))
    assert any(not torch.equal(value, otherwise[key]) for key, value in taught.items())


def test_a_stopped_round_is_not_followed_by_the_next(config, tmp_path, flow, monkeypatch):
    halving = of_kind(config, "progressive_distillation", teacher=str(flow), halving=HalvingConfig(steps=2, first=2))
    whole = Loop.run
    monkeypatch.setattr(Loop, "run", lambda self, **options: whole(self, **{**options, "until": 2}))
    assert distill(halving, tmp_path / "halved", progress_bar=False) is None
    assert [p.name for p in (tmp_path / "halved").iterdir()] == ["2-steps"]
    monkeypatch.setattr(Loop, "run", whole)
    assert distill(halving, tmp_path / "halved", progress_bar=False) == tmp_path / "halved" / "1-steps" / "export"


def test_halving_without_guidance_lets_a_plain_network_teach(config, flow):
    task = GeneratorTask(of_kind(config, "progressive_distillation", teacher=str(flow), halving=HalvingConfig(steps=8, first=8)))
    batch, x, draws = task.draw(0)
    loss = task.objective.loss(task.networks["network"], x, batch.text, task.null, draws, progress=0.0)
    assert loss.per_sample.max() > 0


# ---------------------------------------------------------------- refusals


def test_distill_wants_its_objective(config, tmp_path):
    with pytest.raises(InputError, match="not mean_flow; for one run use train"):
        distill(config, tmp_path / "halved")
    assert not (tmp_path / "halved").exists()


def test_a_distribution_is_matched_with_a_critic_that_is_trained_beside(config, tmp_path, flow):
    """Critic and teacher begin alike, the teacher stays, a resumed run is the uninterrupted one, and the export is the student's alone."""
    matching = MatchingConfig(critic_steps=2, rehearsal=0.25)
    begun = config.model_copy(update={"init_from": str(flow)})
    config = of_kind(begun, "distribution_matching", teacher=str(flow), matching=matching)
    task = GeneratorTask(config)
    taught = load_weights(flow / "network.safetensors")
    assert all(torch.equal(task.networks["critic"].state_dict()[k], v) for k, v in taught.items())
    Loop(task, config, tmp_path / "whole").run(progress_bar=False)
    assert all(torch.equal(task.objective.teacher.state_dict()[k], v) for k, v in taught.items())
    assert not all(torch.equal(task.networks["critic"].state_dict()[k], v) for k, v in taught.items())
    run(config, tmp_path / "parts", until=2)
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    logged = [row for row in rows(tmp_path / "whole") if "loss" in row]
    assert len(logged) == 4
    assert {"critic_error", "error", "distance", "forgotten", "gradient_norm/critic"} <= logged[0].keys()
    best = read_json(tmp_path / "whole" / "best" / "best.json")
    assert best == {"step": 4, "frechet_1_step": rows(tmp_path / "whole")[-1]["held_out/frechet_1_step"]}
    exported = load_weights(tmp_path / "whole" / "export" / "network.safetensors")
    assert exported.keys() == task.networks["network"].state_dict().keys()


def test_a_critic_needs_a_student_that_jumps_and_is_not_sharded(config, flow):
    with pytest.raises(InputError, match="goes on with a network that makes a step already: it needs init_from"):
        of_kind(config, "distribution_matching", teacher=str(flow))
    begun = with_loop(config, parallel="fsdp").model_copy(update={"init_from": str(flow)})
    with pytest.raises(InputError, match="each whole on every process: parallel must be none or ddp"):
        of_kind(begun, "distribution_matching", teacher=str(flow))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"codec_hash": "f" * 64}, "trained on latents of codec ffffffffffff"),
        ({"text": {"encoder": "flan_t5"}}, "trained with text encoder 'flan_t5', this network with 'minilm'"),
        ({"latent_mean": [0.5] * LATENT_DIM}, "normalised otherwise"),
    ],
)
def test_a_teacher_of_other_latents_or_text_is_refused(config, flow, change, told):
    values = read_json(flow / "config.json")
    write_json(flow / "config.json", values | change)
    (flow / VAE_FILE).unlink()
    with pytest.raises(InputError, match=told):
        GeneratorTask(of_kind(config, "guidance_distillation", interval="none", scale=ScaleConfig(), teacher=str(flow)))


def test_a_teacher_must_know_what_it_shall_teach(config, tmp_path, flow):
    guided = of_kind(config, "guidance_distillation", interval="none", scale=ScaleConfig(low=1, high=4), teacher=str(flow))
    run(guided, tmp_path / "guided")
    export = str(tmp_path / "guided" / "export")
    with pytest.raises(InputError, match="takes the guidance scale already"):
        GeneratorTask(of_kind(config, "mean_flow_distillation", teacher=export))
    with pytest.raises(InputError, match="takes the guidance scale already"):
        GeneratorTask(of_kind(config, "guidance_distillation", interval="none", scale=ScaleConfig(), teacher=export))
    with pytest.raises(InputError, match=r"was trained for guidance scales \(1.0, 4.0\), the objective asks for \(1.0, 8.0\)"):
        GeneratorTask(of_kind(config, "progressive_distillation", scale=ScaleConfig(), teacher=export))
    with pytest.raises(InputError, match=r"takes guidance scales \(1.0, 4.0\), the objective's are None"):
        GeneratorTask(of_kind(config, "progressive_distillation", teacher=export))
    with pytest.raises(InputError, match="takes guidance scales None"):
        GeneratorTask(of_kind(config, "progressive_distillation", scale=ScaleConfig(), teacher=str(flow)))
    with pytest.raises(InputError, match="knows velocities only: it can teach the first round"):
        GeneratorTask(of_kind(config, "progressive_distillation", teacher=str(flow), halving=HalvingConfig(steps=8, first=16)))
    with pytest.raises(InputError, match="no such file"):
        GeneratorTask(of_kind(config, "progressive_distillation", teacher=str(tmp_path / "nowhere")))


def test_the_rounds_share_everything_but_teacher_start_and_steps(config, tmp_path):
    first = of_kind(config, "progressive_distillation", teacher="a", halving=HalvingConfig(steps=8, first=8))
    assert round_of(first, 8, None) == first
    later = round_of(first, 2, tmp_path)
    assert later.objective.halving.steps == 2
    assert later.objective.teacher == later.init_from == str(tmp_path)
    same = {"objective": first.objective, "init_from": first.init_from}
    assert later.model_copy(update=same) == first
