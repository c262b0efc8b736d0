"""Timings: stages add up, statistics and factors are exact, a report says all it must, and watching changes nothing."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from meanaudio.cli.common import Lists, app
from meanaudio.codec.vae import MelVAE
from meanaudio.codec.vocos import Vocos
from meanaudio.errors import InputError
from meanaudio.evaluation import benchmark as module
from meanaudio.evaluation import process as process_module
from meanaudio.evaluation import share as share_module
from meanaudio.evaluation.benchmark import PAPER_STEPS, benchmark, read_prompts
from meanaudio.evaluation.first_sound import PHASES, Cold, FirstSound
from meanaudio.evaluation.probe import Memory, compiled_pieces, matmul_rate, synchronise
from meanaudio.evaluation.process import run_process
from meanaudio.evaluation.share import ATTENTION, Request, Share, unfused_encoder_layers
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


def hand_made(*all_seconds: float, counted: bool = True) -> Repeats:
    """Generations of so many seconds, and 10 % more when watched: half of it network, half vocoder; 8 GFLOP in the network."""
    found = Repeats(SETTING, dict.fromkeys(STAGES, 0) | {"network": 8e9, "text": 1e9} if counted else {})
    for seconds in all_seconds:
        found.plain.append(seconds)
        found.waited.append(0.25 * seconds)
        found.watched.append(dict.fromkeys(STAGES, 0.0) | {"network": 0.55 * seconds, "vocoder": 0.55 * seconds})
        found.evaluations += [0.25 * seconds, 0.30 * seconds]
        found.memory.append((None, int(seconds * 100)))
    return found


def test_a_summary_is_arithmetic():
    result = summarise([hand_made(1.0, 2.0, 3.0, 4.0)], {"bf16": 16e9})
    assert result.end_to_end.median == 2.5
    assert (result.seconds, result.process_medians) == ([[1, 2, 3, 4]], [2.5])
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
    found = hand_made(1.0, 2.0, 3.0)
    found.waited = [None, None, None]
    result = summarise([found], {"bf16": 1.0})
    assert (result.drift, result.waited) == (None, None)


@given(shares=st.lists(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6), min_size=1, max_size=5))
def test_processes_are_pooled(shares):
    """Every number but drift and the processes' own is that of one process that read it all."""
    parts = [hand_made(*seconds, counted=not i) for i, seconds in enumerate(shares)]
    result = summarise(parts, {"bf16": 16e9})
    alone = summarise([hand_made(*(x for seconds in shares for x in seconds))], {"bf16": 16e9})
    apart = {"seconds": alone.seconds, "process_medians": alone.process_medians, "drift": alone.drift}
    assert replace(result, **apart) == alone
    assert result.seconds == shares
    assert result.process_medians == [summarise([hand_made(*seconds)], {"bf16": 1.0}).end_to_end.median for seconds in shares]


def test_one_process_that_differs_widens_the_spread_and_is_no_drift():
    alike = summarise([hand_made(1.0, 1.01, 1.0, 1.01) for _ in range(5)], {"bf16": 1.0})
    one_slow = summarise([hand_made(1.0, 1.01, 1.0, 1.01) for _ in range(4)] + [hand_made(1.3, 1.31, 1.3, 1.31)], {"bf16": 1.0})
    assert alike.end_to_end.spread < 0.01
    assert one_slow.end_to_end.spread > 0.1
    assert max(one_slow.process_medians) == pytest.approx(1.305)
    assert alike.drift == one_slow.drift == 0


def test_drift_is_the_median_of_the_processes():
    result = summarise([hand_made(1, 1, 2, 2), hand_made(4, 4, 5, 5), hand_made(1, 1, 1, 1), hand_made(1, 9)], {"bf16": 1.0})
    assert result.drift == pytest.approx(0.25)  # of 1, 0.25, 0; two repeats have none


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
    report = benchmark(tiny_checkpoint, batch=[1, 3], steps=[1, 4], repeats=4, warm_up=1, processes=0, device="cpu", clock=clock)
    assert [(r.setting.batch, r.setting.steps) for r in report.results] == [(1, 1), (1, 4), (3, 1), (3, 4)]
    for r in report.results:
        batch, steps = r.setting.batch, r.setting.steps
        takes = dict(text=0.2, condition=0.01, network=0.3 * steps, score=0.0, vae=0.1, vocoder=0.4, rest=0.0, file=0.05 * batch)
        assert {name: stage.seconds.median for name, stage in r.stages.items()} == pytest.approx(takes, abs=1e-9)
        whole = sum(takes.values())
        assert [pytest.approx([whole] * 4)] == r.seconds
        assert (r.rtf, r.mean_rtf) == (pytest.approx(whole / (batch * 1.024)),) * 2
        assert (r.overhead, r.drift) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
        assert (r.evaluations, r.evaluation.median) == (steps, pytest.approx(0.3))
        vocoder = r.stages["vocoder"]
        assert vocoder.peak_share == pytest.approx(vocoder.flops / 0.4 / 1e9)


def test_candidates_cost_a_score_and_no_decoding(clock, scored_checkpoint, fast_text):
    report = benchmark(scored_checkpoint, candidates=[1, 3], repeats=1, warm_up=0, processes=0, device="cpu", clock=clock)
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
        tiny_checkpoint, duration=[0.5], dtype=["float32", "bf16"], repeats=4, warm_up=0, processes=0, device="cpu", clock=clock
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
        "model_hash", "parameters", "text_encoder", "trained_seconds", "repeats", "warm_up", "processes", "prompts_hash", "flops", "memory",
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
    report = benchmark(tiny_checkpoint, batch=[1, 3, 2], repeats=3, warm_up=0, processes=0, device="cpu", clock=clock)
    assert [r.setting.batch for r in report.results] == [1, 2]
    assert all(len(r.seconds[0]) == 3 for r in report.results)
    assert [(x.setting.batch, x.reason) for x in report.left_out] == [(3, "CUDA out of memory. Tried to allocate 2.00 GiB.")]
    assert "LEFT OUT: batch 3, 1 step(s), 1.024 s, float32, eager: CUDA out of memory. Tried to allocate 2.00 GiB.\n" in report.to_text()
    json.dumps(report.to_json(), allow_nan=False)
    if lasts == 0:
        with pytest.raises(InputError, match="no setting fits into the memory of cpu: CUDA out of memory"):
            benchmark(tiny_checkpoint, batch=[3], repeats=1, warm_up=0, processes=0, device="cpu", clock=clock)


def test_another_failure_is_not_taken_for_a_lack_of_memory(clock, tiny_checkpoint, fast_text, monkeypatch):
    def broken(vae, latents):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(MelVAE, "decode", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        benchmark(tiny_checkpoint, repeats=1, warm_up=0, processes=0, device="cpu", clock=clock)


@pytest.fixture
def asked(clock, monkeypatch) -> list[Request]:
    """Fresh processes are played in this one, on the clock, and answer as JSON; the requests that they were given."""
    asked = []

    def play(request):
        asked.append(request)
        request = TypeAdapter(Request).validate_json(json.dumps(asdict(request)))
        _, share = module._run_here(request, clock=clock)
        return Cold(2.75, dict.fromkeys([*PHASES, *STAGES], 0.25), 5_000_000), TypeAdapter(Share).validate_json(json.dumps(asdict(share)))

    monkeypatch.setattr(module, "run_process", play)
    return asked


@given(repeats=st.integers(1, 100), processes=st.integers(1, 100))
def test_each_generation_is_of_one_process(repeats, processes):
    requests = [Request("", "cpu", None, SETTING, [], [], repeats, 0, index, processes, "", True) for index in range(processes)]
    assert sorted(number for request in requests for number in request.numbers) == list(range(repeats))


def test_processes_share_the_repeats_and_ways_take_turns(asked, clock, tiny_checkpoint, fast_text, monkeypatch):
    made, counted, plain, flops = [], [], share_module._Bench.plain, share_module._Bench.flops
    monkeypatch.setattr(share_module._Bench, "plain", lambda *args: made.append(args[1:]) or plain(*args))
    monkeypatch.setattr(share_module._Bench, "flops", lambda *args: counted.append(args[1]) or flops(*args))
    options = dict(batch=[1, 2], dtype=["float32", "bf16"], repeats=7, warm_up=1, device="cpu", clock=clock)
    report = benchmark(tiny_checkpoint, processes=3, **options)
    assert [(request.first.dtype, request.index) for request in asked] == [(d, i) for i in range(3) for d in ("float32", "bf16")]
    settings = [r.setting for r in report.results]
    assert sorted(counted, key=settings.index) == settings  # once each
    for r in report.results:
        assert sorted(number for setting, number in made if setting == r.setting) == list(range(7))
        assert [len(seconds) for seconds in r.seconds] == [3, 2, 2]
    alone = benchmark(tiny_checkpoint, processes=0, **options)
    assert (len(alone.first_sound), len(report.first_sound)) == (0, 2)
    for one, three in zip(alone.results, report.results, strict=True):
        assert one.stages.keys() == three.stages.keys()
        assert [s.flops for s in one.stages.values()] == [s.flops for s in three.stages.values()]
        assert three.end_to_end.median == pytest.approx(one.end_to_end.median)
    assert "7 generations a setting in 3 fresh process(es), each after 1 to warm up" in report.to_text()
    assert "7 generations a setting in the calling process, after 1 to warm up" in alone.to_text()
    assert " 1060.0-1060.0 " in report.to_text()


def test_there_are_no_more_processes_than_repeats(asked, clock, tiny_checkpoint, fast_text):
    report = benchmark(tiny_checkpoint, repeats=2, warm_up=0, device="cpu", clock=clock)
    assert (len(asked), report.facts["processes"]) == (2, 2)


def test_what_one_process_has_no_memory_for_is_left_out_of_all(asked, clock, tiny_checkpoint, fast_text, monkeypatch):
    """Batch 3 was timed by the first process and fails in the second: the third is not asked for it."""
    decode = MelVAE.decode

    def small(vae, latents):
        if latents.shape[0] == 3 and len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return decode(vae, latents)

    monkeypatch.setattr(MelVAE, "decode", small)
    report = benchmark(tiny_checkpoint, batch=[1, 3], repeats=3, warm_up=0, processes=3, device="cpu", clock=clock)
    assert [(r.setting.batch, len(r.seconds)) for r in report.results] == [(1, 3)]
    assert [x.setting.batch for x in report.left_out] == [3]
    assert [[setting.batch for setting in request.settings] for request in asked] == [[1, 3], [1, 3], [1]]


def test_what_was_not_compiled_is_told(report):
    assert Kernels.between((2, 2), (9, 8), (12, 10)) == Kernels(made=8, as_they_are=2, late=3)
    assert Kernels.pooled([Kernels(8, 2, 3), Kernels(8, 2, 0), Kernels(9, 1, 1)]) == Kernels(made=9, as_they_are=2, late=4)
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


def test_the_papers_protocol(asked, clock, tiny_checkpoint, fast_text):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = benchmark(tiny_checkpoint, paper=True, repeats=2, warm_up=0, processes=2, device="cpu", clock=clock)
    assert [(r.setting.batch, r.setting.steps, r.setting.duration) for r in report.results] == [(1, s, 10.0) for s in PAPER_STEPS]
    assert len(asked) == 2
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
        tiny_checkpoint, batch=[1, 2], steps=[1, 3], duration=[1.024], repeats=1, warm_up=0, processes=0, device="cpu", clock=clock
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
    with torch.inference_mode(), share_module.FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)
    assert counter.get_total_flops() == 2 * (2 * 2 * 3 * 10 * 7 * 16)  # two products of a multiply and an add each


def test_layers_that_torch_fuses_are_counted():
    width, inner, tokens = 8, 20, 5
    layer = torch.nn.TransformerEncoderLayer(width, 2, inner, dropout=0.0, batch_first=True).eval()
    x = torch.ones(1, tokens, width)
    with torch.inference_mode(), unfused_encoder_layers(), share_module.FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        layer(x, src_key_padding_mask=torch.zeros(1, tokens, dtype=torch.bool))
    products = tokens * width * (3 * width + width + 2 * inner) + 2 * tokens * tokens * width
    assert counter.get_total_flops() == 2 * products
    assert torch.backends.mha.get_fastpath_enabled()


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


def request_of(checkpoint, folder, **changes) -> Request:
    """Of the second of two processes: one generation of a short clip."""
    first = Setting(1, 1, 0.3, "float32", False)
    return replace(Request(str(checkpoint), "cpu", None, first, [first], ["rain", "wind"], 2, 0, 1, 2, str(folder), True), **changes)


def test_a_fresh_process_says_what_it_waited_for_and_times_its_share(tiny_checkpoint, tmp_path):
    longer = Setting(1, 2, 2.0, "float32", False)
    with pytest.warns(UserWarning, match="was trained on 1.024 s; 2 s may drift") as told:
        cold, share = run_process(request_of(tiny_checkpoint, tmp_path, settings=[longer]))
    assert len(told) == 1
    assert tuple(cold.phases) == (*PHASES, *STAGES)
    assert sum(cold.phases.values()) == pytest.approx(cold.total)
    assert min(cold.phases.values()) >= 0
    assert cold.phases["imports"] > 0.1
    assert cold.host_memory > 50e6
    assert (share.left_out, share.kernels) == ([], None)
    [one] = share.found
    assert (one.setting, one.flops, len(one.plain), len(one.watched), len(one.evaluations)) == (longer, {}, 1, 1, 2)
    assert sum(one.watched[0].values()) > 0


def test_the_median_run_of_an_even_number_is_one_that_was():
    runs = [Cold(total, {"vae": clip}, memory) for total, clip, memory in ((9.0, 4.0, 3), (5.0, 1.0, None), (7.0, 2.0, 5), (6.0, 3.0, 4))]
    found = FirstSound.of(runs, SETTING)
    assert (found.median, found.phases["vae"], found.host_memory) == (6.0, 3.0, 5)
    assert found.totals == [9, 5, 7, 6]


def test_cold_processes_make_one_clip_of_the_first_setting(asked, clock, tiny_checkpoint, fast_text):
    own = str(tiny_checkpoint)
    report = benchmark(
        own, batch=[3], steps=[2, 1], dtype=["bf16"], vocoder=own, repeats=2, warm_up=0, processes=2, device="cpu", clock=clock
    )  # fmt: skip
    assert [request.first for request in asked] == [Setting(1, 2, 1.024, "bf16", False)] * 2
    assert {request.vocoder for request in asked} == {own}
    text = report.to_text()
    assert "bf16, eager, 2 step(s), 1.024 s; median of 2): 2.75 s; at most 5 MB resident" in text
    assert "= python 0.25 + imports 0.25 + loading 0.25\n  + first clip: text 0.25" in text
    json.dumps(report.to_json(), allow_nan=False)


def test_a_process_that_fails_says_why(tiny_checkpoint, tmp_path, monkeypatch, capfd):
    with pytest.raises(InputError, match="could not make a clip: .*no config.json in this folder"):
        run_process(request_of(tmp_path, tmp_path))
    unranked = Setting(1, 1, 0.3, "float32", False, candidates=3)
    with pytest.raises(InputError, match="failed while timing: .*num_candidates = 3"):
        run_process(request_of(tiny_checkpoint, tmp_path, settings=[unranked]))
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.setattr(process_module, "CODE", "print('no answer'); raise SystemExit(3)")
    with pytest.raises(InputError, match="could not make a clip: exit code 3"):
        run_process(request_of(tiny_checkpoint, tmp_path))


def test_a_fault_in_a_process_shows_where_it_is(monkeypatch, tmp_path, capfd):
    code = "import meanaudio.evaluation.process as p\ndef broken(request): raise KeyError('here')\np._first_sound = broken; p.child()"
    monkeypatch.setattr(process_module, "CODE", code)
    with pytest.raises(InputError, match="could not make a clip: KeyError: 'here'"):
        run_process(request_of(tmp_path, tmp_path))
    assert "in broken" in capfd.readouterr().err


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
