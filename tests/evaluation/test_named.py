"""Is what was asked for heard? On tones, a tagger of tones, and outputs that are the recordings, are in order, or are not."""

import json
import math
from pathlib import Path

import pytest
import torch

from meanaudio.audio import save_audio
from meanaudio.codec.codec import Codec
from meanaudio.errors import InputError
from meanaudio.evaluation import extractors, named
from meanaudio.evaluation.extractors import ClipFeatures
from meanaudio.evaluation.named import Named, Prompt, read_concepts, read_prompts
from meanaudio.pipeline import MeanAudio

PITCHES = {"low": 300.0, "middle": 1000.0, "high": 3000.0}
CONCEPTS = "concept\twords\tclasses\n" + "".join(f"{name}\t{name} tone\tTone, {name}\n" for name in PITCHES)
PROMPTS = """prompt\tkind\tconcepts
something low\tplain\tlow
something high\tplain\thigh
both at once\ttogether\tlow; high
from low to high\tsequence\tlow; middle; high
"""


def tone(name: str, seconds: float) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * PITCHES[name] * torch.arange(round(seconds * 16000)) / 16000)


class Tones:
    """Logits are the powers at the three pitches and, of a fourth class, that of silence."""

    name, sample_rate, dim, multi_label, fingerprint = "tones", 16000, 4, True, "tones"
    classes = (*(f"Tone, {name}" for name in PITCHES), "Silence")

    def __init__(self, *, weights=None, device="cpu"):
        pass

    def __call__(self, clips):
        found = []
        for clip in clips:
            time = torch.arange(len(clip)) / 16000
            powers = [abs((clip * torch.exp(-2j * math.pi * f * time)).mean()) for f in PITCHES.values()]
            logits = torch.tensor([*powers, 0.02])
            found.append(ClipFeatures(logits[None], logits))
        return found


@pytest.fixture
def tables(tmp_path) -> dict[str, Path]:
    for name, text in (("concepts", CONCEPTS), ("prompts", PROMPTS)):
        (tmp_path / f"{name}.tsv").write_text(text)
    return {name: tmp_path / f"{name}.tsv" for name in ("concepts", "prompts")}


@pytest.fixture
def manifest(tmp_path) -> Path:
    rows = []
    for k, name in enumerate((*PITCHES, *PITCHES)):
        save_audio(tmp_path / f"{k}.wav", tone(name, 0.5 + 0.1 * k), 16000)
        rows.append({"id": str(k), "audio": f"{k}.wav", "caption": f"a {name} tone"})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ask(tiny_checkpoint, manifest, tables, fast_text, monkeypatch):
    """Judge outputs that are, for each prompt, the given tones one after another."""
    monkeypatch.setitem(extractors.EXTRACTORS, "tones", Tones)
    monkeypatch.setattr(named, "TOP", 1)
    monkeypatch.setattr(named, "WINDOW", 0.1)
    monkeypatch.setattr(named, "HOP", 0.05)

    def judge(made: dict[str, list[str]], outputs: int = 1) -> Named:
        def generate(self, prompts, **options):
            clips = [torch.cat([tone(name, 1.02 / len(made[p])) for name in made[p]])[:16000] for p in prompts]
            return type("Audio", (), {"samples": torch.stack(clips)})()

        monkeypatch.setattr(MeanAudio, "generate", generate)
        return named.named(tiny_checkpoint, manifest, extractor="tones", outputs=outputs, device="cpu", **tables)

    return judge


RIGHT = {"something low": ["low"], "something high": ["high"], "both at once": ["low"], "from low to high": ["low", "middle", "high"]}


def test_outputs_like_recordings_are_named_as_often_and_in_order(ask):
    found = ask(RIGHT, outputs=2)
    assert found.recorded == {"low": (1.0, 2), "high": (1.0, 2), "middle": (1.0, 2)}
    plain = found.rates["plain"]
    assert (plain.pairs, plain.recordings, plain.outputs, plain.other_recordings) == (2, 1.0, 1.0, 0.0)
    assert 0 <= plain.coded <= 1 and found.coded.keys() == found.recorded.keys()
    assert found.rates["together"].outputs == 0.5  # the louder one alone is heard
    assert found.rates["together"].composed == 0.5  # and so it is where recordings are put together
    assert plain.composed == 1.0 and (plain.composable, found.rates["all"].composable) == (2, 7)
    assert found.rates["sequence"].composed == pytest.approx(1 / 3)  # of a whole sequence one class is the first
    assert found.rates["all"].pairs == 2 + 2 + 3
    assert found.made["low"][1] == 2 * 3
    for row in ("outputs", "recordings, joined"):
        assert (found.order[row].heard, found.order[row].ordered) == (1.0, 1.0)
    assert "4 prompts, 2 output(s) each" in found.title
    assert found.order["recordings, joined"].count == named.TAKES
    assert "sequences" in found.to_text() and "100% of 2" in found.to_text()


def test_recordings_are_heard_through_the_codec_too(ask, monkeypatch):
    """One that loses nothing, and one that loses all; alone, and put together."""
    for coded, share in ((lambda codec, audio: audio, 1.0), (lambda codec, audio: torch.zeros_like(audio), 0.0)):
        monkeypatch.setattr(Codec, "reconstruct", coded)
        found = ask(RIGHT)
        assert set(found.coded.values()) == {share}
        for rates in found.rates.values():
            assert rates.coded == share * rates.composed and rates.composed > 0
        joined, through = found.order["recordings, joined"], found.order["these through the codec"]
        assert (through.count, through.heard, through.ordered) == (joined.count, share, share)
        assert found.rates["all"].recordings == 1.0


def test_what_speaks_of_a_concept_is_no_example_of_its_absence(ask, manifest):
    """A recording of two concepts, in which the other one is heard."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    low_too = next(row for row in rows if "high" in row["caption"])
    low_too["caption"], low_too["audio"] = "a high tone over a low one", next(row["audio"] for row in rows if "low" in row["caption"])
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ask(RIGHT).rates["plain"].other_recordings == 0.0


def test_the_order_is_that_of_the_prompt(ask):
    found = ask(RIGHT | {"from low to high": ["high", "middle", "low"]})
    assert (found.order["outputs"].heard, found.order["outputs"].ordered) == (1.0, 0.0)
    found = ask(RIGHT | {"from low to high": ["low", "high"]})
    assert (found.order["outputs"].heard, found.order["outputs"].ordered) == (0.0, 0.0)


def test_outputs_that_are_all_alike_are_named_no_more_than_those_of_other_prompts(ask):
    found = ask(dict.fromkeys(RIGHT, ["middle"]))
    assert found.rates["plain"].outputs == found.rates["plain"].other_outputs == 0.0
    found = ask(dict.fromkeys(RIGHT, ["low"]))
    assert found.rates["plain"].outputs == found.rates["plain"].other_outputs == 0.5


def test_what_recordings_do_not_show_is_not_counted(ask, manifest):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["caption"] = row["caption"].replace("high", "shrill")  # no recording of it
        row["caption"] = row["caption"].replace("middle", "low") if row["id"] == "1" else row["caption"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ask(RIGHT)
    assert found.recorded["high"] == (0.0, 0) and found.recorded["low"] == (pytest.approx(2 / 3), 3)
    assert found.rates["plain"].pairs == 1
    together = found.rates["together"]  # of something low, which is counted, and something without a recording
    assert (together.pairs, together.composable, together.composed) == (1, 0, 0.0)
    assert "none" in found.to_text()


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("prompts", "plain\tlow", "solo\tlow", "kind 'solo': must be one of plain, together, sequence"),
        ("prompts", "low; high", "low; shrill", "names shrill, which no row of the concepts explains"),
        ("prompts", "plain\tlow", "plain\tlow; high", "names 2 concept"),
        ("prompts", "concepts", "sounds", "has no concepts"),
        ("concepts", "Tone, high", "Tone, shrill", "no class of tones is called Tone, shrill"),
    ],
)
def test_tables_that_do_not_fit_are_refused(ask, tables, table, old, new, message):
    tables[table].write_text(tables[table].read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        ask(RIGHT)


def test_the_packages_tables_cover_what_they_should():
    """At least 50 concepts, 100 prompts and 30 sequences; every concept is asked for alone; no prompt twice."""
    concepts = read_concepts()
    prompts = read_prompts(concepts)
    assert len(concepts) >= 50 and len(prompts) >= 100
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert sum(prompt.kind == "sequence" for prompt in prompts) >= 30
    assert {c for prompt in prompts if prompt.kind == "plain" for c in prompt.concepts} == set(concepts)
    assert prompts[-1] == Prompt(prompts[-1].text, "sequence", ("gunshot", "breaking glass", "scream"))


def test_the_verb(run, tiny_checkpoint, manifest, tables, fast_text, monkeypatch):
    monkeypatch.setitem(extractors.EXTRACTORS, "tones", Tones)
    shared = ("evaluate-prompts", manifest, "-m", tiny_checkpoint, "-e", "tones", "--device", "cpu", "--quiet")
    code, out, err = run(*shared, "--concepts", tables["concepts"], "--prompts", tables["prompts"], "--steps", 2, "-g", 2)
    assert code == 0, err
    assert "2 step(s), guidance 2" in out and "in order" in out and "by event" not in out
    sequence = tables["prompts"].with_name("sequence.tsv")
    sequence.write_text("prompt\tkind\tconcepts\na low tone, then a high tone\tsequence\tlow;high\n")
    asked, make = [], MeanAudio.generate
    monkeypatch.setattr(MeanAudio, "generate", lambda self, prompts, **how: asked.append(how["by_event"]) or make(self, prompts, **how))
    for option, by_event in ((["--by-event"], True), (["--as-a-whole"], False), ([], None)):
        code, out, err = run(*shared, "--concepts", tables["concepts"], "--prompts", sequence, *option)
        assert code == 0, err
        assert (", by event" in out) == bool(by_event)
        assert asked.pop() is by_event
    code, _, err = run(*shared, "--concepts", tables["concepts"], "--prompts", sequence, "--known-captions", 1)
    assert code == 2 and "known_captions = 1: tiny has no scorer" in err
    code, _, err = run(*shared, "--outputs", 0)
    assert code == 2 and "outputs = 0: must be 1 or more" in err
    code, _, err = run(*shared)
    assert code == 2 and "no caption holds the words of any concept" in err
