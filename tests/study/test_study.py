"""The study: what it plans, that it trains, measures and renders end to end, goes on where it was, and tells of what failed."""

import json
import math
import shutil
from pathlib import Path

import pytest
from listeners import Bands

from meanaudio.checkpoint import read_json, write_json
from meanaudio.config import StudyConfig, TrainConfig, load_config, parse
from meanaudio.errors import InputError, TrainingDiverged
from meanaudio.evaluation import extractors
from meanaudio.study import run as module
from meanaudio.study import runs
from meanaudio.study.costs import StepCost
from meanaudio.study.measure import MEASURED, measured, settings_of
from meanaudio.study.plan import Job, chain, jobs
from meanaudio.study.report import NUMBERS, lines_of
from meanaudio.study.run import study
from meanaudio.study.runs import DIVERGED, claimed, divergence

CONFIGS = Path(__file__).parent.parent.parent / "configs"

# ---------------------------------------------------------------- what is planned


@pytest.fixture
def published() -> StudyConfig:
    return load_config(StudyConfig, CONFIGS / "study.yaml")


def costs_of(settings: StudyConfig, **dear: float) -> dict[str, float]:
    return {stage.label: dear.get(stage.label, 1.0) for stages in settings.methods.values() for stage in stages}


def spent(runs_: tuple, costs: dict[str, float]) -> float:
    return sum(run.steps * costs[run.stage.label] for run in runs_)


def test_every_method_of_the_published_study_gets_the_same_cost_or_the_same_steps(published, tmp_path):
    labels = sorted({stage.label for stages in published.methods.values() for stage in stages})
    costs = {label: 1 + 0.1 * k for k, label in enumerate(labels)}
    reference = published.methods[published.reference][0].label
    for job in jobs(published, CONFIGS, tmp_path, costs):
        given = published.budgets[job.budget]
        stages = published.methods[job.method]
        rounding = sum(max(1, run.rounds) for run in job.runs)  # a step for each run that is rounded to whole steps
        if given.equal == "steps":
            assert abs(sum(run.steps for run in job.runs) - given.times * published.steps) <= rounding
        else:
            dearest = max(costs[stage.label] for stage in stages)
            assert abs(spent(job.runs, costs) - given.times * published.steps * costs[reference]) <= rounding * dearest


def test_a_dearer_method_gets_fewer_steps(published, tmp_path):
    costs = costs_of(published, constant=2.0)
    (run,) = chain(published, CONFIGS, tmp_path, "equal cost", "mean flow, constant mix", 0, costs)
    assert run.config.loop.steps == published.steps // 2
    assert run.folder == tmp_path / "runs" / "seed-0" / f"constant-{published.steps // 2}"


def test_a_chain_hands_its_networks_on(published, tmp_path):
    flow, guided, halving = chain(published, CONFIGS, tmp_path, "equal steps", "guided distillation", 1, costs_of(published))
    assert flow.config.init_from is None and flow.config.objective.teacher is None
    assert guided.config.init_from == guided.config.objective.teacher == str(flow.export)
    assert halving.config.init_from == halving.config.objective.teacher == str(guided.export)
    assert halving.export.parent.name == "1-steps"
    networks = {n: halving.export_for(n).parent.name for n in (1, 2, 3, 4, 7, 8, 25)}
    assert networks == {1: "1-steps", 2: "2-steps", 3: "2-steps", 4: "4-steps", 7: "4-steps", 8: "8-steps", 25: "8-steps"}
    assert flow.export_for(1) == flow.export_for(25) == flow.export
    assert halving.rounds == math.log2(halving.config.objective.halving.first) + 1
    assert {run.config.loop.seed for run in (flow, guided, halving)} == {1}
    assert {run.config.network.width for run in (flow, guided, halving)} == {published.settings["network"]["width"]}


def test_equal_runs_are_one_folder(published, tmp_path):
    costs = costs_of(published)
    one, two = (chain(published, CONFIGS, tmp_path, budget, published.reference, 0, costs)[0] for budget in ("equal cost", "equal steps"))
    assert one == two


def test_first_seeds_come_first(published, tmp_path):
    found = [job for job in jobs(published, CONFIGS, tmp_path, costs_of(published)) if job.budget == "equal cost"]
    assert [job.seed for job in found] == sorted(job.seed for job in found)
    assert [job.method for job in found if job.seed == 0] == list(published.methods)
    assert tuple(job.method for job in found if job.seed == 2) == published.budgets["equal cost"].repeated
    assert {run.evaluations for job in found if job.seed for run in job.runs} == {published.repeated_evaluations}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reference": "mean flows"}, "reference: no method 'mean flows'; there are a, b"),
        ({"budgets": {"x": {"equal": "steps", "methods": ["c"]}}}, "budgets.x: no method 'c'; there are a, b"),
        ({"methods": {"a": [{"config": "a.yaml", "share": 0.5}], "b": [{"config": "b.yaml"}]}}, "must sum to 1, not 0.5"),
        ({"methods": {"a": [{"config": "a.yaml", "share": 0.5}] * 2, "b": [{"config": "b.yaml"}]}}, "reference 'a' has several stages"),
        ({"budgets": {"x": {"equal": "time"}}}, "budgets.x.equal = 'time'"),
        ({"method": {}}, "unknown key 'method'; did you mean 'methods'?"),
    ],
)
def test_a_wrong_study_is_refused(change, told):
    right = {
        "manifest": "m.jsonl",
        "reference": "a",
        "methods": {"a": [{"config": "a.yaml"}], "b": [{"config": "b.yaml"}]},
        "budgets": {"x": {"equal": "cost"}},
    }
    parse(StudyConfig, right)
    with pytest.raises(InputError, match=told):
        parse(StudyConfig, right | change)


# ---------------------------------------------------------------- end to end


@pytest.fixture
def tiny(run, fast_text, tiny_checkpoint, tiny_manifest, tmp_path, monkeypatch) -> Path:
    """A study of three methods on the tiny network, with its shards; a step of each costs the same."""
    monkeypatch.setitem(extractors.EXTRACTORS, "bands", Bands)
    monkeypatch.setattr(module, "step_costs", lambda settings, place: {name: StepCost(1.0, 10**9) for name in ("base", "flow", "halving")})
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "base.yaml").write_text(
        f"""
data: {tmp_path}/shards
codec_from: {tiny_checkpoint}
seconds: 1.024
text: {{max_tokens: 16}}
network: {{preset: tiny, latent_dim: 8}}
objective: {{interval_fraction: 0.5, guidance: 0.0}}
optim: {{lr: 1e-3, warmup: 1}}
loop: {{batch_size: 2, log_every: 1, save_every: 2}}
""",
        encoding="utf-8",
    )
    (configs / "flow.yaml").write_text("extends: base.yaml\nnetwork: {interval: none}\nobjective: {kind: flow_matching}\n", "utf-8")
    halving = "objective: {kind: progressive_distillation, teacher: somewhere, halving: {steps: 2, first: 2}}"
    (configs / "halving.yaml").write_text(f"extends: base.yaml\n{halving}\n", "utf-8")
    path = configs / "study.yaml"
    path.write_text(
        f"""
manifest: {tiny_manifest}
steps: 4
reference: mean flow
methods:
  mean flow: [{{config: base.yaml}}]
  flow: [{{config: flow.yaml, guidance: [1, 3]}}]
  halved: [{{config: flow.yaml, share: 0.5}}, {{config: halving.yaml, share: 0.5}}]
budgets:
  equal cost: {{equal: cost, seeds: [0, 1], methods: [mean flow]}}
  equal steps: {{equal: steps}}
evaluations: [1, 2]
repeated_evaluations: [1]
clips: 2
heard: 2
extractor: bands
captions: 3
outputs: 2
""",
        encoding="utf-8",
    )
    for split in ("train", "val"):
        code, _, err = run(
            "prepare", tiny_manifest, "-o", tmp_path / "shards" / split, "-c", configs / "base.yaml", "--split", split, "--scenes", 4, "-q"
        )
        assert code == 0, err
    return path


def plan_of(path: Path, out: Path) -> list[Job]:
    return list(jobs(load_config(StudyConfig, path), path.parent, out, {name: 1.0 for name in ("base", "flow", "halving")}))


def test_a_study_from_configs_to_tables(run, tiny, tmp_path):
    """Everything is trained once, measured, and rendered; a second call changes nothing; a third renders from what is written alone."""
    out = tmp_path / "out"
    code, told, err = run("study", "-c", tiny, "-o", out, "--device", "cpu", "--quiet")
    assert code == 0, err
    assert str(out / "study.md") in told
    found = sorted(str(p.relative_to(out / "runs").parent) for p in (out / "runs").rglob(MEASURED))
    assert found == ["seed-0/base-4", "seed-0/flow-2+halving-1", "seed-0/flow-4", "seed-1/base-4"]
    rows = [json.loads(line) for line in (out / "runs" / "seed-0" / "flow-4" / MEASURED).read_text("utf-8").splitlines()]
    assert [(row["guidance"], row["steps"], row["evaluations"]) for row in rows] == [(1, 1, 1), (1, 2, 2), (3, 1, 2), (3, 2, 4)]
    assert all(math.isfinite(row[key]) for row in rows for key in NUMBERS)
    assert {row["network"] for row in rows} == {"export"}
    halved = [json.loads(line) for line in (out / "runs" / "seed-0" / "flow-2+halving-1" / MEASURED).read_text("utf-8").splitlines()]
    assert [row["network"] for row in halved] == ["1-steps/export", "2-steps/export"]
    results = read_json(out / "study.json")
    (one,) = (line for line in results["lines"] if line["budget"] == "equal cost")
    assert one["name"] == "mean flow" and one["ended"] == 2 and [len(x) for x in one["values"]["heard/kl"].values()] == [2, 1]
    assert results["limits"]["codec"].keys() >= NUMBERS.keys()
    assert results["limits"]["others"]["heard/frechet"] > 0
    text = (out / "study.md").read_text("utf-8")
    assert "| halved | 2 + 2 × 1 | 1 of 1 | 100% of 1 |" in text
    assert "| flow, guidance 3 |" in text and " ± " in text and "not run" not in text
    for budget in ("equal-cost", "equal-steps"):
        assert (out / f"study-{budget}.png").read_bytes().startswith(b"\x89PNG")

    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".png"}
    assert run("study", "-c", tiny, "-o", out, "--device", "cpu", "--quiet")[0] == 0
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".png"} == before

    shutil.rmtree(tmp_path / "shards")
    (out / "study.md").unlink()
    assert run("study", "-c", tiny, "-o", out, "--report")[0] == 0
    assert (out / "study.md").read_text("utf-8") == text


def test_what_has_not_been_run_says_so(tiny, tmp_path):
    out = tmp_path / "out"
    write_json(out / "costs.json", {name: {"seconds": 1.0, "peak_memory": 1} for name in ("base", "flow", "halving")})
    text = study(tiny, out, report_only=True).read_text("utf-8")
    assert "| mean flow | 4 | 0 of 2 | not run |" in text
    assert "| halved | 2 + 2 × 1 | 0 of 1 | not run |" in text
    assert "by network evaluations" not in text


def test_a_diverged_run_is_recorded_counted_and_not_tried_again(tiny, tmp_path, monkeypatch):
    """A loss that is not finite ends one run, and what builds on it; the rest of the study goes on."""
    out, whole, tried = tmp_path / "out", runs.train, []

    def train(config, folder, **options):
        tried.append(folder.name)
        if config.objective.kind == "flow_matching":
            raise TrainingDiverged("step 3: the loss of 'network' is nan; batch: a, b")
        whole(config, folder, **options)

    monkeypatch.setattr(runs, "train", train)
    for _ in range(2):
        text = study(tiny, out, device="cpu", progress_bar=False).read_text("utf-8")
    assert sorted(tried) == ["base-4", "base-4", "flow-2", "flow-4"]
    assert "step 3: the loss" in read_json(out / "runs" / "seed-0" / "flow-4" / DIVERGED)["reason"]
    assert "| flow | 4 | 0 of 1 | 0% of 1 |" in text
    assert "| halved | 2 + 2 × 1 | 0 of 1 | 0% of 1 |" in text
    assert "| mean flow | 4 | 2 of 2 | 100% of 2 |" in text
    halved = next(job for job in plan_of(tiny, out) if job.method == "halved")
    assert divergence(halved.runs[0]) == divergence(halved.runs[1]) is not None


def test_a_stopped_study_goes_on(tiny, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", runs.train
    monkeypatch.setattr(runs, "train", lambda config, folder, **options: whole(config, folder, **options, until=2))
    assert study(tiny, out, device="cpu", progress_bar=False) is None
    assert not (out / "study.md").exists()
    monkeypatch.setattr(runs, "train", whole)
    assert study(tiny, out, device="cpu", progress_bar=False) == out / "study.md"
    assert all(line.ended == line.planned for line in lines_of(load_config(StudyConfig, tiny), plan_of(tiny, out)))


def test_rows_are_measured_again_only_if_they_were_measured_otherwise(tiny, tmp_path):
    out, settings = tmp_path / "out", load_config(StudyConfig, tiny)
    study(tiny, out, device="cpu", progress_bar=False)
    run_ = plan_of(tiny, out)[0].runs[0]
    first, second = measured(run_, settings)
    marked, otherwise = first | {"heard/kl": 123.0}, second | {"heard/kl": 123.0, "by": second["by"] | {"clips": 99}}
    (run_.folder / MEASURED).write_text("".join(json.dumps(row) + "\n" for row in (marked, otherwise)), "utf-8")
    study(tiny, out, device="cpu", progress_bar=False)
    assert measured(run_, settings) == [marked, second]


def test_sounds_that_the_shards_were_not_made_of_are_refused(tiny, tmp_path):
    index = tmp_path / "shards" / "val" / "index.json"
    write_json(index, read_json(index) | {"seed": 7})
    with pytest.raises(InputError, match="make the shards of this manifest"):
        study(tiny, tmp_path / "out", device="cpu", progress_bar=False)


def test_costs_that_lack_a_stage_are_refused(tiny, tmp_path):
    write_json(tmp_path / "out" / "costs.json", {"base": {"seconds": 1.0, "peak_memory": 1}})
    with pytest.raises(InputError, match=r"costs.json: has no flow, halving; move it away"):
        study(tiny, tmp_path / "out", device="cpu", progress_bar=False)


def test_a_report_of_nothing_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="holds no study"):
        study(tiny, tmp_path / "nowhere", report_only=True)


# ---------------------------------------------------------------- pieces


def test_a_claim_is_held_by_one_and_falls_with_it(tmp_path):
    with claimed(tmp_path) as mine:
        assert mine
        with claimed(tmp_path) as again:
            assert not again
    with claimed(tmp_path) as mine:
        assert mine


def test_guidance_by_two_passes_takes_half_the_steps(published, tiny_checkpoint):
    from meanaudio.pipeline import read_checkpoint_config

    plain = read_checkpoint_config(tiny_checkpoint)
    assert list(settings_of(published.evaluations, 1.0, plain)) == [(n, n) for n in (1, 2, 4, 8, 25)]
    assert list(settings_of(published.evaluations, 3.0, plain)) == [(1, 2), (2, 4), (4, 8), (12, 24), (25, 50)]
    network = plain.network.model_copy(update={"guidance_embedding": True})
    taught = plain.model_copy(update={"network": network, "guidance_range": (1.0, 8.0)})
    assert list(settings_of(published.evaluations, 3.0, taught)) == [(n, n) for n in (1, 2, 4, 8, 25)]


def test_costs_are_measured_over_the_whole_run(tiny, monkeypatch):
    """A schedule that begins half-way makes a run dearer than its first step, and cheaper than its last."""
    from meanaudio.study import costs

    seen = []

    class Bench:
        def step(self, variant, seed, progress=1.0):
            seen.append(progress)
            return 1.0 if progress < 0.5 else 3.0

    monkeypatch.setattr(costs, "peak_memory", lambda make, config: 7)
    monkeypatch.setattr(costs, "bench_of", lambda config: (Bench(), None))
    found = costs.step_costs(load_config(StudyConfig, tiny), tiny.parent, parts=4, rounds=2)
    assert found == {name: StepCost(2.0, 7) for name in ("base", "flow", "halving")}
    assert sorted(set(seen)) == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize("method", ["improved mean flow", "guided distillation", "decoupled conversion"])
def test_a_step_of_every_kind_of_stage_can_be_measured(published, method):
    from meanaudio.study.costs import bench_of
    from meanaudio.study.plan import stage_config

    for stage in published.methods[method]:
        config = stage_config(published, CONFIGS, stage)
        small = config.model_copy(update={"loop": config.loop.model_copy(update={"batch_size": 2}), "seconds": 0.512})
        bench, variant = bench_of(small)
        assert bench.step(variant, 0, progress=0.9) > 0


def test_a_step_that_rehearses_can_be_measured(monkeypatch):
    """Of two rows, two noises each: both without a graph, then the network at first on two known prompts, then all four rows."""
    from meanaudio.models.transformer import Transformer
    from meanaudio.study.costs import bench_of

    objective = {"kind": "implicit_maximum_likelihood", "noises": 2, "rehearsal": 1.0}
    config = {"data": "d", "codec_from": "c", "init_from": "c", "seconds": 0.512, "network": {"preset": "tiny"}, "loop": {"batch_size": 2}}
    bench, variant = bench_of(parse(TrainConfig, {**config, "objective": objective}))
    rows, forward = [], Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, z, *rest: rows.append(len(z)) or forward(self, z, *rest))
    assert bench.step(variant, 0) > 0
    assert rows == [2, 2, 2, 4]
