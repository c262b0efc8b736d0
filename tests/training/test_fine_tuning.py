"""Training that starts from a checkpoint: whole, by adapters alone, or rehearsing what it knew."""

import json

import pytest
import torch
from fakes import LATENT_DIM, NarrowWordHash, normals, random_text, tiny_network
from runs import assert_same_run, rows, run, state_of, tiny_run, with_loop

from meanaudio import text
from meanaudio.checkpoint import load_weights, read_json, write_json
from meanaudio.config import LoRAConfig, ObjectiveConfig, TrainConfig, parse
from meanaudio.errors import InputError
from meanaudio.models.lora import LORA_FILE, load_with_adapters
from meanaudio.models.scorer import KNOWN_FILE
from meanaudio.models.transformer import NETWORK_FILE, load_network
from meanaudio.training.generator import GeneratorTask
from meanaudio.training.posthoc import reconstruct


def changed(config: TrainConfig, **values) -> TrainConfig:
    """`config` with other values, validated anew."""
    return parse(TrainConfig, {**config.model_dump(mode="json"), **values})


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """A run of adapters on a base that was trained for two steps."""
    base = tiny_run(tmp_path, steps=2)
    run(base, tmp_path / "base")
    longer = with_loop(base, steps=10)
    return changed(longer, init_from=str(tmp_path / "base" / "export"), lora={"rank": 2}, optim={"ema": [0.05, 0.1], "lr": 1e-2})


def test_a_run_of_adapters_trains_and_keeps_them_alone(config, tmp_path):
    run(config, tmp_path / "run")
    base, state = load_weights(tmp_path / "base" / "export" / NETWORK_FILE), state_of(tmp_path / "run")
    for key, value in base.items():
        assert torch.equal(state[f"network/network/{key}"], value), key
    adapters = load_weights(tmp_path / "run" / "export" / LORA_FILE)
    assert {key.split("/", 2)[2].rsplit("/", 1)[0] for key in state if key.startswith("optimizer/")} == set(adapters)
    assert {key.split("/", 2)[2] for key in state if key.startswith("average/")} == set(adapters)
    assert all(value.abs().max() > 0 for value in adapters.values())
    for name in ("export", "best"):
        assert {"lora.json", LORA_FILE} <= {p.name for p in (tmp_path / "run" / name).iterdir()} <= {"lora.json", LORA_FILE, "best.json"}
    described = read_json(tmp_path / "run" / "export" / "lora.json")
    assert described["base"] == "export"
    assert described["lora"] == {"rank": 2, "alpha": 16.0, "targets": ["attention", "mlp"]}

    merged = load_with_adapters(tmp_path / "base" / "export", config.network, tmp_path / "run" / "export").state_dict()
    moved = {key for key, value in base.items() if not torch.equal(value, merged[key])}
    assert moved == {key.replace(".up.", ".") for key in adapters if ".up." in key}


def test_a_run_of_adapters_resumes_bit_for_bit(config, tmp_path):
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", until=6)
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_other_averages_of_adapters_can_be_made(config, tmp_path):
    run(config, tmp_path / "run")
    reconstruct(tmp_path / "run", 0.05, tmp_path / "made")
    made, exported = (load_weights(tmp_path / folder / LORA_FILE) for folder in ("made", "run/export"))
    assert made.keys() == exported.keys()
    for key, value in exported.items():
        torch.testing.assert_close(made[key], value, atol=2e-3, rtol=2e-3)  # snapshots are stored in 16 bits
    load_with_adapters(tmp_path / "base" / "export", config.network, tmp_path / "made")


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_continued_network_keeps_its_normalisation(config, tmp_path, lora):
    """Latents of another data set have other statistics; the network's are those it was trained with."""
    path = tmp_path / "base" / "export" / "config.json"
    moved = json.loads(path.read_text()) | {"latent_mean": [0.5] * LATENT_DIM, "latent_std": [2.0] * LATENT_DIM}
    write_json(path, moved)
    task = GeneratorTask(changed(config, lora=lora))
    batch, x, _ = task.draw(0)
    assert ((x * 2 + 0.5 - batch.mean) / batch.std).std().item() == pytest.approx(1, abs=0.1)
    if lora is None:
        task.export(task.networks["network"], tmp_path / "again")
        assert read_json(tmp_path / "again" / "config.json")["latent_mean"] == [0.5] * LATENT_DIM


@pytest.mark.parametrize("before", ["none", "absolute", "relative", "decoupled"])
@pytest.mark.parametrize("now", ["absolute", "relative", "decoupled"])
def test_an_interval_that_would_change_the_function_is_refused(tmp_path, before, now):
    objective = ObjectiveConfig(kind="flow_matching") if before == "none" else ObjectiveConfig()
    first = tiny_run(tmp_path, steps=1).model_copy(update={"network": tiny_network(interval=before), "objective": objective})
    run(first, tmp_path / "first")
    export = tmp_path / "first" / "export"
    second = changed(tiny_run(tmp_path), init_from=str(export), network=tiny_network(interval=now).model_dump())
    if before != now and (before, now) not in {("none", "relative"), ("none", "decoupled")}:
        with pytest.raises(InputError, match=f"interval '{before}'; with network.interval '{now}'"):
            GeneratorTask(second)
        return
    network, plain = GeneratorTask(second).networks["network"], load_network(export, first.network)
    text, z, t = random_text([3, 4]), normals(2, 16, LATENT_DIM), torch.tensor([0.8, 0.2])
    with torch.no_grad():
        for r in (t, t / 2) if before == now else (t,):
            assert torch.equal(network(z, t, r, network.condition(text)), plain(z, t, r, plain.condition(text)))


def test_adapters_ask_for_a_base_that_fits_as_it_is(config, tmp_path):
    with pytest.raises(InputError, match="init_from"):
        changed(config, init_from=None)
    with pytest.raises(InputError, match="task generator"):
        changed(config, task="vae")
    with pytest.raises(InputError, match="latent_gain must be left out"):
        changed(config, latent_gain=0.5)
    with pytest.raises(InputError, match=r"lora\.rank"):
        changed(config, lora={"rank": 0})
    with pytest.raises(InputError, match=r"lora\.targets"):
        changed(config, lora={"targets": ["everything"]})
    first = tiny_run(tmp_path, steps=1).model_copy(
        update={"network": tiny_network(interval="none"), "objective": ObjectiveConfig(kind="flow_matching")}
    )
    run(first, tmp_path / "velocities")
    with pytest.raises(InputError, match="missing interval_embedding"):  # it would stay blank: nothing but adapters is trained
        GeneratorTask(changed(config, init_from=str(tmp_path / "velocities" / "export")))
    GeneratorTask(changed(config, init_from=str(tmp_path / "velocities" / "export"), lora=None))


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_hiding_padding_from_a_network_that_hears_it_is_said_or_refused(config, tmp_path, lora):
    path = tmp_path / "base" / "export" / "config.json"
    values = json.loads(path.read_text())
    write_json(path, values | {"network": values["network"] | {"mask_text": False}})
    if lora is not None:
        with pytest.raises(InputError, match="mask_text False, the config says True; adapters"):
            GeneratorTask(changed(config, lora=lora))
        return
    with pytest.warns(UserWarning, match="mask_text False, the config says True: the run begins with another function"):
        GeneratorTask(changed(config, lora=None))


def test_another_text_encoder_is_refused(config, tmp_path):
    path = tmp_path / "base" / "export" / "config.json"
    values = json.loads(path.read_text())
    write_json(path, values | {"text": {"encoder": "flan_t5+clap", "max_tokens": 77}})
    with pytest.raises(InputError, match="trained with text encoder 'flan_t5\\+clap'"):
        GeneratorTask(config)


def test_a_config_without_adapters_says_none():
    assert TrainConfig().lora is None
    assert LoRAConfig().alpha / LoRAConfig().rank == 1


# ---------------------------------------------------------------- rehearsal


@pytest.fixture
def few(tmp_path, monkeypatch) -> TrainConfig:
    """A run on recordings that rehearses what its network, which was trained for two steps before, knew."""
    monkeypatch.setitem(text.ENCODERS, "minilm", NarrowWordHash)
    base = tiny_run(tmp_path, steps=2)
    run(base, tmp_path / "base")
    write_json(tmp_path / "base" / "export" / KNOWN_FILE, {"rain falls": 2, "a dog barks": 1, "a bell rings": 4})
    objective = {"kind": "implicit_maximum_likelihood", "noises": 2, "rehearsal": 0.5, "anchor": 20.0}
    longer = with_loop(base, steps=24, log_every=1, sample_every=24)
    return changed(longer, init_from=str(tmp_path / "base" / "export"), objective=objective, optim={"lr": 1e-2})


def test_what_is_rehearsed_is_forgotten_less_and_repeats_itself(few, tmp_path):
    run(few, tmp_path / "held")
    run(few, tmp_path / "parts", until=5)
    run(few, tmp_path / "parts")
    assert_same_run(tmp_path / "held", tmp_path / "parts")
    run(changed(few, objective={**few.objective.model_dump(), "anchor": 0.0}), tmp_path / "free")
    held, free = ([row for row in rows(tmp_path / name) if "forgotten" in row] for name in ("held", "free"))
    assert held[0]["forgotten"] < 1e-8
    assert held[-1]["forgotten"] < 0.7 * free[-1]["forgotten"]
    assert held[-1]["error"] < held[0]["error"]


def test_prompts_are_of_what_is_known_or_of_a_file(few, tmp_path):
    seeds, encoder = torch.arange(30), NarrowWordHash()
    composed = GeneratorTask(few).objective.recall(seeds)
    alone = encoder(["rain falls", "a dog barks", "a bell rings"]).pooled
    found = (torch.cdist(composed.pooled, alone) < 1e-5).any(1)
    assert found.any()
    assert not found.all()  # some are sequences of them, or sounds at once
    (tmp_path / "prompts.txt").write_text("a cat meows\nwind blows\n", encoding="utf-8")
    listed = changed(few, objective={**few.objective.model_dump(), "rehearsed": str(tmp_path / "prompts.txt")})
    recalled = GeneratorTask(listed).objective.recall(seeds)
    distances = torch.cdist(recalled.pooled, encoder(["a cat meows", "wind blows"]).pooled)
    assert (distances.amin(1) < 1e-5).all()
    assert set(distances.argmin(1).tolist()) == {0, 1}


def test_nothing_can_be_rehearsed_that_nobody_knows(few, tmp_path):
    (tmp_path / "base" / "export" / KNOWN_FILE).unlink()
    with pytest.raises(InputError, match="has no scorer to say what captions it knows; name a file of prompts by objective.rehearsed"):
        GeneratorTask(few)
    (tmp_path / "ids.csv").write_text("id\n1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"ids\.csv: holds ids, no prompts"):
        GeneratorTask(changed(few, objective={**few.objective.model_dump(), "rehearsed": str(tmp_path / "ids.csv")}))
    with pytest.raises(InputError, match=r"objective\.rehearsal goes on with a network that makes a step already: it needs init_from"):
        changed(few, init_from=None)
    with pytest.raises(InputError, match=r"objective\.rehearsal encodes prompts: it needs codec_from"):
        changed(few, codec_from=None)
