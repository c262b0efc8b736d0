"""Timings: stages add up, statistics and factors are exact, a report says all it must, and watching changes nothing."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.cli.common import Lists, app
from meanaudio.codec.vae import MelVAE
from meanaudio.codec.vocos import Vocos
from meanaudio.errors import InputError
from meanaudio.evaluation import benchmark as module
from meanaudio.evaluation import first_sound as cold_module
from meanaudio.evaluation.benchmark import ATTENTION, PAPER_STEPS, benchmark, read_prompts
from meanaudio.evaluation.first_sound import PHASES, first_sound
from meanaudio.evaluation.probe import Memory, compiled_pieces, matmul_rate, synchronise
from meanaudio.evaluation.stages import STAGES, Meter, Setting, watched
from meanaudio.evaluation.timings import Kernels, Repeats, Report, Result, Stage, Times, compare, read_earlier, save, summarise
from meanaudio.models.transformer import Transformer
from meanaudio.pipeline import MAX_PROMPT, Audio, MeanAudio

CPU = torch.device("cpu")
SETTING = Setting(batch=2, steps=1, duration=5.0, dtype="bf16", compile=False)


class Clock:
    """Stands still, unless told that time has passed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float, run):
        """`run`, and so much time passes."""

        def call(*args, **options):
            self.now += seconds
            return run(*args, **options)

        return call


# ---------------------------------------------------------------- the meter

programs = st.recursive(
    st.tuples(st.sampled_from(STAGES), st.integers(0, 9), st.just([])),
    lambda inner: st.tuples(st.sampled_from(STAGES), st.integers(0, 9), st.lists(inner, max_size=3)),
    max_leaves=12,
)


@given(program=programs)
def test_amounts_of_nested_stages_add_up_to_the_whole(program):
    """A program is a stage, the time it takes by itself, and the stages inside it."""
    clock, own = Clock(), dict.fromkeys(STAGES, 0)
    meter = Meter(clock)

    def run(step):
        name, seconds, inside = step
        own[name] += seconds
        with meter.stage(name):
            clock.now += seconds
            for other in inside:
                run(other)

    run(program)
    assert meter.totals() == own
    assert sum(meter.totals().values()) == clock.now


def test_a_stage_that_fails_is_closed():
    clock = Clock()
    meter = Meter(clock)

    def fail():
        with meter.stage("vae"):
            clock.now += 2
            raise ZeroDivisionError

    with meter.stage("rest"):
        with pytest.raises(ZeroDivisionError):
            fail()
        clock.now += 1
    assert (meter.totals()["vae"], meter.totals()["rest"]) == (2, 1)


def test_watching_changes_neither_the_sound_nor_the_pipeline(tiny_checkpoint, fast_text):
    pipeline = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu")
    parts = (pipeline, pipeline.network, pipeline.codec, pipeline.codec.vae)
    before = [dict(vars(part)) for part in parts]
    plain = pipeline.generate(["rain", "wind"], seed=1, steps=3, guidance_scale=2.0).samples
    meter = Meter(Clock())
    with watched(pipeline, meter):
        seen = pipeline.generate(["rain", "wind"], seed=1, steps=3, guidance_scale=2.0).samples
    assert torch.equal(seen, plain)
    assert [dict(vars(part)) for part in parts] == before
    counts = {name: len(amounts) for name, amounts in meter.amounts.items()}
    assert counts == {"text": 1, "condition": 2, "network": 6, "vae": 1, "vocoder": 1}  # a guided step evaluates two fields


# ---------------------------------------------------------------- statistics


def test_statistics_are_exact():
    times = Times.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (times.median, times.mean, times.least, times.most) == (3, 3, 1, 5)
    assert (times.p10, times.p90) == (pytest.approx(1.4), pytest.approx(4.6))
    assert times.spread == pytest.approx(1.6 / 3)
    alone = Times.of([0.25])
    assert alone == Times(0.25, 0.25, 0.25, 0.25, 0.25, 0.25)
    assert alone.spread == 0


@given(seconds=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30))
def test_statistics_are_in_order(seconds):
    times = Times.of(seconds)
    near = pytest.approx
    for low, high in ((times.least, times.p10), (times.p10, times.median), (times.median, times.p90), (times.p90, times.most)):
        assert low <= high or low == near(high)
    assert times.least <= times.mean or times.mean == near(times.least)


def hand_made() -> Repeats:
    """Four generations of 1, 2, 3, 4 s, and 10 % more when watched: half of it network, half vocoder; 8 GFLOP in the network."""
    found = Repeats(SETTING, dict.fromkeys(STAGES, 0) | {"network": 8e9, "text": 1e9})
    for seconds in (1.0, 2.0, 3.0, 4.0):
        found.plain.append(seconds)
        found.waited.append(0.25 * seconds)
        found.watched.append(dict.fromkeys(STAGES, 0.0) | {"network": 0.55 * seconds, "vocoder": 0.55 * seconds})
        found.evaluations += [0.25 * seconds, 0.30 * seconds]
        found.memory.append((None, int(seconds * 100)))
    return found


def test_a_summary_is_arithmetic():
    result = summarise(hand_made(), {"bf16": 16e9})
    assert result.end_to_end.median == 2.5
    assert result.rtf == pytest.approx(2.5 / (2 * 5.0))  # seconds over seconds of sound, of both clips
    assert result.mean_rtf == pytest.approx(0.25)
    assert result.clips_per_second == pytest.approx(2 / 2.5)
    assert result.overhead == pytest.approx(0.1)
    assert result.drift == pytest.approx(3.5 / 1.5 - 1)
    assert result.waited == pytest.approx(0.25)
    assert result.evaluations == 2
    assert (result.device_memory, result.host_memory) == (None, 400)
    network = result.stages["network"]
    assert network.seconds.median == pytest.approx(0.55 * 2.5)
    assert network.share == pytest.approx(0.5)
    assert network.flops == 8_000_000_000
    assert network.peak_share == pytest.approx(8e9 / (0.55 * 2.5) / 16e9)
    assert result.stages["vocoder"].peak_share is None  # nothing was counted
    assert result.stages["text"].peak_share is None  # nor did it take time
    assert sum(stage.share for stage in result.stages.values()) == pytest.approx(1)


def test_what_cannot_be_known_is_none():
    found = hand_made()
    for readings in (found.plain, found.watched, found.memory):
        del readings[3:]
    found.waited = [None, None, None]
    result = summarise(found, {"bf16": 1.0})
    assert (result.drift, result.waited) == (None, None)


# ---------------------------------------------------------------- a benchmark on a clock of our own


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Every stage of every pipeline takes a time that is known, and no other time passes; a machine of exactly 1 GFLOP/s."""
    clock = Clock()
    for owner, name, seconds in (
        (MeanAudio, "encode_text", 0.2), (Transformer, "condition", 0.01), (Transformer, "forward", 0.3), (MelVAE, "decode", 0.1),
        (Vocos, "forward", 0.4), (Audio, "save", 0.05),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, clock.taking(seconds, getattr(owner, name)))
    monkeypatch.setattr(module, "matmul_rate", lambda device, dtype: 1e9)
    return clock


def test_every_stage_is_timed_as_long_as_it_takes(clock, tiny_checkpoint, fast_text):
    report = benchmark(tiny_checkpoint, batch=[1, 3], steps=[1, 4], repeats=4, warm_up=1, cold=0, device="cpu", clock=clock)
    assert [(r.setting.batch, r.setting.steps) for r in report.results] == [(1, 1), (1, 4), (3, 1), (3, 4)]
    for r in report.results:
        batch, steps = r.setting.batch, r.setting.steps
        takes = dict(text=0.2, condition=0.01, network=0.3 * steps, score=0.0, vae=0.1, vocoder=0.4, rest=0.0, file=0.05 * batch)
        assert {name: stage.seconds.median for name, stage in r.stages.items()} == pytest.approx(takes, abs=1e-9)
        whole = sum(takes.values())
        assert r.seconds == pytest.approx([whole] * 4)
        assert (r.rtf, r.mean_rtf) == (pytest.approx(whole / (batch * 1.024)),) * 2
        assert (r.overhead, r.drift) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
        assert (r.evaluations, r.evaluation.median) == (steps, pytest.approx(0.3))
        vocoder = r.stages["vocoder"]
        assert vocoder.peak_share == pytest.approx(vocoder.flops / 0.4 / 1e9)


def test_candidates_cost_a_score_and_no_decoding(clock, scored_checkpoint, fast_text):
    report = benchmark(scored_checkpoint, candidates=[1, 3], repeats=1, warm_up=0, cold=0, device="cpu", clock=clock)
    one, three = report.results
    assert str(three.setting) == f"{one.setting}, best of 3"
    assert (one.stages["score"].flops, three.stages["score"].flops > 0) == (0, True)
    assert three.stages["network"].flops == pytest.approx(3 * one.stages["network"].flops)
    assert three.stages["vocoder"].flops == one.stages["vocoder"].flops
    with pytest.raises(InputError, match="num_candidates = 300"):
        benchmark(scored_checkpoint, candidates=[300], device="cpu")


def numbers(values) -> Iterator[float]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from numbers(value)
    elif isinstance(values, float):
        yield values


@pytest.fixture
def report(clock, tiny_checkpoint, fast_text) -> Report:
    return benchmark(
        tiny_checkpoint, duration=[0.5], dtype=["float32", "bf16"], repeats=4, warm_up=0, cold=0, device="cpu", clock=clock
    )  # fmt: skip


def test_the_json_states_every_fact_and_no_nan(report, tmp_path):
    said = save(report, tmp_path / "report")
    assert said.endswith("benchmark.json, benchmark.txt, benchmark.png")
    values = json.loads((tmp_path / "report" / "benchmark.json").read_text(encoding="utf-8"))
    json.dumps(values, allow_nan=False)
    assert all(map(math.isfinite, numbers(values)))
    assert values.keys() == {"format", *(f.name for f in fields(Report))}
    facts = {
        "date", "device", "device_name", "cpu", "cores", "threads", "load_average", "meanaudio", "torch", "python", "platform", "model",
        "model_hash", "parameters", "text_encoder", "trained_seconds", "repeats", "warm_up", "prompts_hash", "flops", "memory",
        "float32_products", "vocoder", "vocoder_from",
    }  # fmt: skip
    assert values["facts"].keys() == facts
    assert all(value not in ("", None) for value in values["facts"].values())
    assert values["matmul"].keys() == {"float32", "bf16"}
    for result in values["results"]:
        assert result.keys() == {f.name for f in fields(Result)}
        assert result["stages"].keys() == set(STAGES)
        for stage in result["stages"].values():
            assert stage.keys() == {f.name for f in fields(Stage)}
            assert stage["seconds"].keys() == {f.name for f in fields(Times)}
    assert [r["setting"]["dtype"] for r in values["results"]] == ["float32", "bf16"]
    assert (tmp_path / "report" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_names_what_it_measured(report):
    text = report.to_text()
    for word in (
        "tiny (sha256 ",
        "vocoder vocos (its own)",
        "on cpu: ",
        "batch 1, 1 step(s), 0.5 s, bf16, eager",
        "vocoder",
        "median ms",
        "RTF",
        "GFLOP/s",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 180


def test_a_busy_machine_is_called_busy(report):
    shares = [replace(result, waited=waited) for result, waited in zip(report.results, (0.02, 0.4), strict=True)]
    assert "BUSY: other work had the cores 40% of the time" in replace(report, results=shares).to_text()
    assert "BUSY" not in replace(report, results=shares[:1]).to_text()


def test_without_matplotlib_the_numbers_are_written_and_the_picture_is_not(report, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "no picture: matplotlib is not installed" in save(report, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["benchmark.json", "benchmark.txt"]


def test_a_report_agrees_with_itself_and_not_with_one_twice_as_slow(report, tmp_path):
    save(report, tmp_path)
    path = tmp_path / "benchmark.json"
    assert [line.split()[-5:-2] for line in compare(report, read_earlier(path)).splitlines()[2:]] == [["1060.0", "1.000", "yes"]] * 2
    values = json.loads(path.read_text(encoding="utf-8"))
    first, second = values["results"]
    first["end_to_end"] = {name: 2 * seconds for name, seconds in first["end_to_end"].items()}
    second["setting"]["batch"] = 7
    path.write_text(json.dumps(values), encoding="utf-8")
    lines = compare(report, read_earlier(path)).splitlines()
    assert lines[2].split()[-4:-2] == ["0.500", "no"]
    assert "not measured then" in lines[3]
    path.write_text(json.dumps(values | {"format": 99}), encoding="utf-8")
    with pytest.raises(InputError, match="format 99"):
        read_earlier(path)


@pytest.mark.parametrize("lasts", [0, 3])
def test_what_does_not_fit_into_memory_is_told_and_the_rest_is_measured(clock, tiny_checkpoint, fast_text, monkeypatch, lasts):
    """Batch 3 fails at its first generation, or when it has been timed already."""
    decode, seen = MelVAE.decode, []

    def small(vae, latents):
        seen.extend([latents.shape[0]] * (latents.shape[0] == 3))
        if len(seen) > lasts:
            seen.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more.")
        return decode(vae, latents)

    monkeypatch.setattr(MelVAE, "decode", lambda vae, z: decode(vae, z) if len(z) != 3 else small(vae, z))
    report = benchmark(tiny_checkpoint, batch=[1, 3, 2], repeats=3, warm_up=0, cold=0, device="cpu", clock=clock)
    assert [r.setting.batch for r in report.results] == [1, 2]
    assert all(len(r.seconds) == 3 for r in report.results)
    assert [(x.setting.batch, x.reason) for x in report.left_out] == [(3, "CUDA out of memory. Tried to allocate 2.00 GiB.")]
    assert "LEFT OUT: batch 3, 1 step(s), 1.024 s, float32, eager: CUDA out of memory. Tried to allocate 2.00 GiB.\n" in report.to_text()
    json.dumps(report.to_json(), allow_nan=False)
    if lasts == 0:
        with pytest.raises(InputError, match="no setting fits into the memory of cpu: CUDA out of memory"):
            benchmark(tiny_checkpoint, batch=[3], repeats=1, warm_up=0, cold=0, device="cpu", clock=clock)


def test_another_failure_is_not_taken_for_a_lack_of_memory(clock, tiny_checkpoint, fast_text, monkeypatch):
    def broken(vae, latents):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(MelVAE, "decode", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        benchmark(tiny_checkpoint, repeats=1, warm_up=0, cold=0, device="cpu", clock=clock)


def test_what_was_not_compiled_is_told(report):
    assert Kernels.between((2, 2), (9, 8), (12, 10)) == Kernels(made=8, as_they_are=2, late=3)
    text = replace(report, kernels={"bf16": Kernels(8, 2, 3)}).to_text()
    assert "torch.compile, bf16: kernels of 8 pieces of code; NOT COMPILED: 2, which ran as they are" in text
    assert "3 MADE WHILE TIMING: give more --warm-up" in text
    text = replace(report, kernels={"bf16": Kernels(8, 0, 0)}).to_text()
    assert "kernels of 8 pieces of code\n" in text
    assert "torch.compile" not in report.to_text()


def test_compiled_pieces_are_counted():
    """With a compiler that makes nothing, and one that fails: torch runs the code as it is, as `from_pretrained` has it do."""
    torch.compiler.reset()
    x, before = torch.ones(3), compiled_pieces()
    assert torch.equal(torch.compile(lambda x: x + 1, backend="eager")(x), x + 1)
    warm = compiled_pieces()
    assert Kernels.between(before, warm, warm) == Kernels(1, 0, 0)

    def broken(graph, inputs):
        raise ValueError("no kernels here")

    with torch._dynamo.config.patch(suppress_errors=True):
        assert torch.equal(torch.compile(lambda x: x + 2, backend=broken)(x), x + 2)
    assert Kernels.between(before, warm, compiled_pieces()) == Kernels(1, 1, 1)
    torch.compiler.reset()


def test_the_papers_protocol(clock, tiny_checkpoint, fast_text):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = benchmark(tiny_checkpoint, paper=True, repeats=1, warm_up=0, cold=0, device="cpu", clock=clock)
    assert [(r.setting.batch, r.setting.steps, r.setting.duration) for r in report.results] == [(1, s, 10.0) for s in PAPER_STEPS]
    assert len([w for w in told if "was trained on 1.024 s" in str(w.message)]) == 1
    last = report.to_text().rpartition("the paper's protocol")[2].splitlines()
    one_step = [0.2 + 0.01 + 0.3 + 0.1 + 0.4 + 0.05, 0.106, 0.101, 0.081, 0.03]  # seconds, then factors: one stage less each
    assert [float(x) for x in last[2].split()] == [1, *map(pytest.approx, one_step)]
    with pytest.raises(InputError, match="leave out batch, duration"):
        benchmark(tiny_checkpoint, paper=True, batch=[1], duration=[10.0], device="cpu")


def test_the_paper_takes_a_hundred_prompts_each_its_own():
    prompts = read_prompts()
    assert len(prompts) == len(set(prompts)) == 100
    assert all(prompt == prompt.strip() and 0 < len(prompt) <= MAX_PROMPT for prompt in prompts)


# ---------------------------------------------------------------- operations


def test_operations_grow_as_the_work_does(clock, tiny_checkpoint, fast_text):
    """Twice the batch is twice the work; steps are the network's alone; a clip's own noise makes none."""
    report = benchmark(
        tiny_checkpoint, batch=[1, 2], steps=[1, 3], duration=[1.024], repeats=1, warm_up=0, cold=0, device="cpu", clock=clock
    )  # fmt: skip
    flops = {(r.setting.batch, r.setting.steps): {name: s.flops for name, s in r.stages.items()} for r in report.results}
    one = flops[1, 1]
    assert min(one["network"], one["vae"], one["vocoder"], one["condition"]) > 0
    assert one["rest"] == one["file"] == 0
    assert flops[1, 3] == one | {"network": 3 * one["network"]}
    for name in ("vae", "vocoder"):
        assert flops[2, 1][name] == 2 * one[name]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_counted_on_this_device(masked):
    query, key = torch.randn(2, 3, 10, 16), torch.randn(2, 3, 7, 16)
    mask = torch.ones(1, 1, 1, 7, dtype=torch.bool) if masked else None
    with torch.inference_mode(), module.FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)
    assert counter.get_total_flops() == 2 * (2 * 2 * 3 * 10 * 7 * 16)  # two products of a multiply and an add each


# ---------------------------------------------------------------- the machine


def test_matrix_products_have_a_rate_of_this_world():
    assert 1e7 < matmul_rate(CPU, torch.float32, largest=256) < 1e16


def test_memory_sees_what_was_held_and_let_go():
    memory = Memory(CPU)
    memory.restart()
    low = memory.peak_host()
    held = torch.ones(16 * 2**20)  # 64 MiB
    high = memory.peak_host()
    assert high - low > 0.9 * held.nbytes
    assert memory.peak_device() is None
    assert memory.how.keys() == {"device", "host"}


@pytest.mark.parametrize(("kind", "name"), [("cuda", "cuda"), ("mps", "mps"), ("cpu", None)])
def test_the_device_is_waited_for(kind, name, monkeypatch):
    called = []
    for each in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, each), "synchronize", lambda *device, each=each: called.append(each))
    synchronise(torch.device(kind))
    assert called == ([name] if name else [])


# ---------------------------------------------------------------- the first sound


def test_a_cold_process_says_what_it_waited_for(tiny_checkpoint):
    setting = {"batch": 1, "steps": 1, "duration": 0.3, "dtype": "float32", "compile": False}
    found = first_sound(tiny_checkpoint, "cpu", setting, None, "rain", 1)
    assert tuple(found.phases) == (*PHASES, *STAGES)
    assert sum(found.phases.values()) == pytest.approx(found.median)
    assert min(found.phases.values()) >= 0
    assert found.phases["imports"] > 0.1
    assert found.host_memory > 50e6


def test_the_median_run_of_an_even_number_is_one_that_was(monkeypatch, tmp_path):
    runs = iter([(9.0, 4.0), (5.0, 1.0), (7.0, 2.0), (6.0, 3.0)])
    told = lambda total, clip: (total, {"phases": dict.fromkeys(["imports", "loading", *STAGES], 0.0) | {"vae": clip}, "host_memory": 1})  # noqa: E731
    monkeypatch.setattr(cold_module, "_run", lambda request, errors: told(*next(runs)))
    found = first_sound(tmp_path, "cpu", {"dtype": "bf16", "compile": False, "steps": 1, "duration": 1.0}, None, "rain", 4)
    assert (found.median, found.phases["vae"], found.phases["python"]) == (6.0, 3.0, 3.0)


def test_cold_processes_make_one_clip_of_the_first_setting(clock, monkeypatch, tiny_checkpoint, fast_text):
    asked = []

    def run(request, errors):
        asked.append(json.loads(request))
        return 3.0, {"phases": dict.fromkeys(["imports", "loading", *STAGES], 0.25), "host_memory": 5_000_000}

    monkeypatch.setattr(cold_module, "_run", run)
    own = str(tiny_checkpoint)
    report = benchmark(
        own, batch=[3], steps=[2, 1], dtype=["bf16"], vocoder=own, repeats=1, warm_up=0, cold=2, device="cpu", clock=clock
    )  # fmt: skip
    assert [request["setting"] for request in asked] == [
        {"batch": 1, "steps": 2, "duration": 1.024, "dtype": "bf16", "compile": False, "candidates": 1}
    ] * 2  # fmt: skip
    assert {request["vocoder"] for request in asked} == {own}
    text = report.to_text()
    assert "bf16, eager, 2 step(s), 1.024 s; median of 2): 3.00 s; at most 5 MB resident" in text
    assert "= python 0.50 + imports 0.25 + loading 0.25\n  + first clip: text 0.25" in text
    json.dumps(report.to_json(), allow_nan=False)


def test_a_cold_process_that_fails_says_why(tmp_path):
    setting = {"batch": 1, "steps": 1, "duration": 0.3, "dtype": "float32", "compile": False}
    with pytest.raises(InputError, match="could not make a clip: .*no config.json in this folder"):
        first_sound(tmp_path, "cpu", setting, None, "rain", 1)


# ---------------------------------------------------------------- lists on the command line


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("--steps 1 5 25 --batch 4", {"steps": [1, 5, 25], "batch": [4]}),
        ("-s 1 -s 2 -b 1 2", {"steps": [1, 2], "batch": [1, 2]}),
        ("--steps=3 --duration 0.5 -1 --quiet", {"steps": [3], "duration": [0.5, -1.0], "quiet": True}),
        ("--dtype float32 bf16 --compile", {"dtype": ["float32", "bf16"], "compile_": True}),
        ("--prompts 10 --paper", {"repeats": 10, "paper": True}),
    ],
)
def test_options_take_lists(line, found):
    import typer

    command = typer.main.get_command(app).commands["benchmark"]
    assert isinstance(command, Lists)
    given = command.make_context("benchmark", line.split()).params
    assert {name: given[name] for name in found} == found
