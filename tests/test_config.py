"""Configs: what is read, what is refused, and with which words."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanaudio.config import (
    PRESETS,
    BigVGANConfig,
    CodecConfig,
    NetworkConfig,
    ReleaseVAEConfig,
    ScheduleConfig,
    StudyConfig,
    TaggerCheckpointConfig,
    TrainConfig,
    VAEConfig,
    constant,
    load_config,
    parse,
)
from meanaudio.errors import InputError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_of_the_repository_loads(path):
    kind = StudyConfig if path.name == "study.yaml" else TrainConfig
    config = load_config(kind, path)
    assert parse(kind, config.model_dump(mode="json")) == config


def test_an_empty_file_is_all_defaults(write):
    assert load_config(TrainConfig, write("a.yaml", "")) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lopo: {steps: 3}", "unknown key 'lopo'; did you mean 'loop'?"),
        ("loop: {step: 3}", "unknown key 'loop.step'; did you mean 'steps'?"),
        ("objective: {time: {maen: 1}}", "unknown key 'objective.time.maen'; did you mean 'mean'?"),
        ("objective: {guidance: {start: 0, stop: 1, edn: 1}}", "did you mean 'end'?"),
        ("codec: {vae: {qqqq: 1}}", "known: kind, latent_dim"),
        ("loop: {steps: soon}", "loop.steps = 'soon'"),
        ("loop: {steps: 0}", "loop.steps = 0"),
        ("loop: 5", "loop = 5"),
        ("task: sing", "task = 'sing'"),
        ("optim: {ema: 0.3}", "optim.ema = 0.3"),
        ("network: {preset: huge}", "must be one of tiny, mini, small, s, l"),
        ("network: {preset: [s]}", "must be one of tiny, mini, small, s, l"),
        ("network: {width: 100, num_heads: 3}", "width 100"),
        ("objective: {guidance: {start: 0, stop: 1, begin: 0.5, end: 0.2}}", "lies before"),
        ("objective: {interval_fraction: 1.5}", "must lie in [0, 1]"),
        ("scenes: {single: 0, repeat: 0, sequence: 0, overlay: 0}", "must be finite, and one above 0"),
        ("scenes: {single: .inf}", "must be finite, and one above 0"),
        ("objective: {guidance: yes}", "objective.guidance = True"),
        ("objective: {scale: {low: 3}}", "mean_flow draws no guidance scale; kinds that do: improved_mean_flow, alpha_flow"),
        ("objective: {kind: alpha_flow, scale: {low: 5, high: 2}}", "low 5.0 must be below high 2.0"),
        ("objective: {kind: alpha_flow, scale: {lowest: 5}}", "unknown key 'objective.scale.lowest'; did you mean 'low'?"),
        ("objective: {kind: alpha_flow, scale: {low: 4}}", "shown 3.0 must be from low 4.0 to high 8.0"),
        ("objective: {kind: alpha_flow, dropped_rows: release}", "dropped_rows 'release' is for mean_flow, not alpha_flow"),
        ("objective: {kind: guidance_distillation}", "needs teacher, the folder of a checkpoint"),
        ("objective: {kind: guidance_distillation, teacher: a}", "needs scale, such as {low: 1, high: 8}"),
        ("objective: {halving: {steps: 3, first: 16}}", "steps 3 must be first 16, or that halved once or more"),
        ("objective: {halving: {steps: 3, first: 12}}", "first 12 must be a power of two"),
        ("objective: {halving: {steps: 32, first: 16}}", "steps 32 must be first 16"),
        ("network: {interval: none}", "objective mean_flow needs a network that sees r"),
        ("network: {guidance_limits: true}", "guidance_limits needs guidance_embedding"),
        ("network: {guidance_embedding: true}", "they must be the same"),
        ("objective: {kind: alpha_flow, scale: {limits: true}}\nnetwork: {guidance_embedding: true}", "they must be the same"),
        ("1: 2", "1"),
        ("loop: {1: 2}", "loop.1"),
        ("- a\n- b", "expected keys and values"),
        ("a: [1, 2", "not valid YAML"),
        ("just words", "expected keys and values"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_value(write, text, told):
    path = write("wrong.yaml", text)
    with pytest.raises(InputError) as error:
        load_config(TrainConfig, path)
    assert told in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600


def test_a_number_is_a_schedule_that_stays(write):
    text = "objective: {interval_fraction: 0.3, time: {endpoint_fraction: 0.5}, guidance: {start: 0, stop: 1, shape: sigmoid}}"
    objective = load_config(TrainConfig, write("a.yaml", text)).objective
    assert objective.interval_fraction == constant(0.3)
    assert objective.time.endpoint_fraction == constant(0.5)
    assert objective.guidance == ScheduleConfig(start=0, stop=1, shape="sigmoid")


def test_all_faults_are_told_at_once(write):
    with pytest.raises(InputError, match=r"lopo.*loop\.step|loop\.step.*lopo"):
        load_config(TrainConfig, write("a.yaml", "lopo: 1\nloop: {step: 1}"))


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no such config file.*nowhere\.yaml"):
        load_config(TrainConfig, tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match=r"binary\.yaml"):
        load_config(TrainConfig, tmp_path / "binary.yaml")


# ---------------------------------------------------------------- overrides and extends


def test_overrides_come_last_and_may_open_sections(write):
    path = write("a.yaml", "loop: {steps: 5, seed: 1}")
    config = load_config(
        TrainConfig, path, ["loop.steps=7", "optim.lr=1e-4", "network.preset=tiny", "codec.vae.strides=[2,2,2]", "data=a=b"]
    )
    assert (config.loop.steps, config.loop.seed) == (7, 1)
    assert config.optim.lr == 1e-4
    assert config.network.width == PRESETS["tiny"]["width"]
    assert config.codec.vae.strides == (2, 2, 2)
    assert config.data == "a=b"


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", '"1e-4"'])
def test_numbers_may_be_written_as_people_do(write, text):
    assert load_config(TrainConfig, write("a.yaml", f"optim: {{lr: {text}}}")).optim.lr == 1e-4


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("loop.steps", "must look like section.key=value"),
        ("=5", "must look like section.key=value"),
        ("loop.stpes=5", "did you mean 'steps'?"),
        ("task.x=1", "'task' is a value, not a section"),
        ("loop.steps=[1", "not valid YAML"),
        ("loop..steps=1", "loop."),
    ],
)
def test_a_wrong_override_is_refused(write, override, told):
    with pytest.raises(InputError) as error:
        load_config(TrainConfig, write("a.yaml", "task: vae"), [override])
    assert told in str(error.value)


def test_a_file_states_only_its_difference(write, tmp_path):
    write("base.yaml", "loop: {steps: 5, seed: 1}\nnetwork: {preset: tiny, latent_dim: 8}")
    (tmp_path / "deep").mkdir()
    write("deep/middle.yaml", "extends: ../base.yaml\nloop: {seed: 2}")
    config = load_config(TrainConfig, write("top.yaml", "extends: deep/middle.yaml\nnetwork: {single_depth: 3}"))
    assert (config.loop.steps, config.loop.seed) == (5, 2)
    assert (config.network.latent_dim, config.network.single_depth, config.network.width) == (8, 3, 32)


def test_changes_come_between_the_file_and_its_overrides(write):
    path = write("a.yaml", "seconds: 2\nloop: {steps: 5, seed: 3}")
    config = load_config(TrainConfig, path, ["loop.steps=7"], changes={"loop": {"steps": 6, "batch_size": 2}})
    assert (config.seconds, config.loop.steps, config.loop.batch_size, config.loop.seed) == (2, 7, 2, 3)


def test_a_circle_of_files_is_refused(write):
    write("a.yaml", "extends: b.yaml")
    write("b.yaml", "extends: c.yaml")
    with pytest.raises(InputError, match="extends itself"):
        load_config(TrainConfig, write("c.yaml", "extends: a.yaml"))
    with pytest.raises(InputError, match="extends itself"):
        load_config(TrainConfig, write("d.yaml", "extends: d.yaml"))
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config(TrainConfig, write("e.yaml", "extends: nowhere.yaml"))


# ---------------------------------------------------------------- presets, freezing, derived numbers


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fill_in_and_what_is_stated_wins(name):
    config = NetworkConfig.model_validate({"preset": name, "joint_depth": 7})
    assert config.joint_depth == 7
    assert {k: getattr(config, k) for k in ("width", "num_heads", "single_depth")} == {
        k: PRESETS[name][k] for k in ("width", "num_heads", "single_depth")
    }


def test_configs_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().loop.steps = 3


def test_the_release_gives_312_latents_for_ten_seconds():
    config = CodecConfig.model_validate({"vae": {"strides": [2]}})
    assert config.audio_spec().window_latents(10) == 312


keys = st.text(max_size=8) | st.sampled_from(["loop", "steps", "network", "preset", "codec", "vae", "strides"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=3), max_leaves=8)


@settings(max_examples=200)
@given(trees)
def test_whatever_a_file_holds_the_answer_is_a_config_or_an_input_error(values):
    with contextlib.suppress(InputError):
        assert isinstance(parse(TrainConfig, values), TrainConfig)


# ---------------------------------------------------------------- kinds of one section


def test_a_section_without_a_kind_is_of_the_first_and_the_kind_chooses_the_fields():
    assert parse(CodecConfig, {"vae": {"width": 16}}).vae == VAEConfig(width=16)
    codec = parse(CodecConfig, {"vae": {"kind": "release"}, "vocoder": {"kind": "bigvgan", "width": 128}})
    assert (codec.vae, codec.vocoder) == (ReleaseVAEConfig(), BigVGANConfig(width=128))
    assert codec.audio_spec().samples_per_latent == 512
    assert parse(CodecConfig, codec.model_dump(mode="json")) == codec


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"vae": {"kind": "release", "strides": [2]}}, "unknown key 'vae.strides'; known: kind, latent_dim, width, multipliers, blocks"),
        ({"vae": {"kind": "release", "widht": 3}}, "unknown key 'vae.widht'; did you mean 'width'?"),
        ({"vae": {"kind": "linear_conv", "width": -1}}, "vae.width = -1"),
        ({"vae": {"kind": "oracle"}}, "'oracle'"),
        ({"vocoder": {"kind": "bigvgan", "n_fft": 1024}}, "unknown key 'vocoder.n_fft'"),
        ({"vocoder": {"kind": "bigvgan", "rates": [4, 4], "kernels": [8, 8]}}, "must multiply to the mel's hop_length 256"),
        ({"vocoder": {"kind": "bigvgan", "kernels": [8, 8, 4, 4, 4, 5]}}, "plus an even number each"),
        ({"vocoder": {"kind": "bigvgan", "width": 100}}, "multiple of 64"),
    ],
)
def test_a_wrong_kind_or_a_field_of_another_kind_is_refused(values, told):
    with pytest.raises(InputError) as error:
        parse(CodecConfig, values)
    assert told in str(error.value)


def test_what_is_missing_is_named_without_all_that_is_there():
    with pytest.raises(InputError) as error:
        parse(TaggerCheckpointConfig, {"codec_hash": "0" * 64}, "config.json")
    assert "latent_dim: Field required" in str(error.value)
    assert "0000" not in str(error.value)
