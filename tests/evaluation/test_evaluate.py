"""`meanaudio evaluate` end to end: a tiny checkpoint and folders of synthetic sounds, judged by a listener without weights."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile
import torch
from fakes import normals
from listeners import Bands, BandsWithText

from meanaudio.audio import load_audio, read_metadata, save_audio
from meanaudio.cli import main
from meanaudio.errors import InputError
from meanaudio.evaluation import extractors
from meanaudio.evaluation.evaluate import evaluate
from meanaudio.evaluation.plan import Request
from meanaudio.pipeline import MeanAudio


@pytest.fixture(autouse=True)
def listeners(monkeypatch, fast_text):
    monkeypatch.setitem(extractors.EXTRACTORS, "bands", Bands)
    monkeypatch.setitem(extractors.EXTRACTORS, "bands-with-text", BandsWithText)


def write_sounds(folder: Path, names, *, rate: int = 16000, seconds: float = 1.0, offset: int = 0) -> Path:
    for k, name in enumerate(names):
        audio = 0.1 * normals(round(seconds * rate), seed=offset + k) * (1 + torch.arange(round(seconds * rate)) / rate) ** (k % 3)
        save_audio(folder / f"{name}.wav", audio.clamp(-1, 1), rate)
    return folder


def run(out: Path, references, *, shown: int = 0, **options):
    options = {"extractors": ("bands",), "device": "cpu"} | options
    return evaluate(Request(references=(Path(references),), **options), out, progress_bar=False, shown=shown)


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def row(out: Path, label: str) -> dict:
    return next(row for row in results(out)["rows"] if row["label"] == label)


# ---------------------------------------------------------------- a checkpoint


def command(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["meanaudio", "evaluate", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_from_a_checkpoint_to_a_table(tiny_checkpoint, tiny_manifest, tmp_path, monkeypatch, capsys):
    words = (
        "-m", tiny_checkpoint, "-r", tiny_manifest, "--steps", 1, 2, "-e", "bands", "-e", "bands-with-text",
        "-o", tmp_path / "out", "--device", "cpu", "--quiet", "--shown", 3, "--seed", 5,
    )  # fmt: skip
    code, table, err = command(monkeypatch, capsys, *words)
    assert code == 0, err
    for word in ("tiny, 1 step", "tiny, 2 steps", "references through the codec", "half against half", "recordings of other captions"):
        assert word in table
    for word in ("KL(reference || output)", "FD", "CLAP", "IS", "singular", ": 16000 Hz (8); 0.50 to", "1.024 s", "-18 dBFS"):
        assert word in table
    out = tmp_path / "out"
    found = results(out)
    kinds = [row["kind"] for row in found["rows"]]
    assert kinds == ["references", "outputs", "outputs", "codec", "floor", "chance"]
    assert found["checkpoint"]["name"] == "tiny" and len(found["checkpoint"]["sha256"]) == 64
    assert found["treatment"] == {"duration": 1.024, "level_db": -18.0}
    assert found["references"]["treated"]["level"] == 8
    assert row(out, "tiny, 1 step")["made"]["seeds"] == [5, 12]
    assert row(out, "tiny, 1 step")["numbers"]["bands"].keys() >= {"frechet", "kernel", "kl", "kl_sigmoid", "inception", "spread"}
    assert row(out, "tiny, 1 step")["numbers"]["bands-with-text"].keys() >= {"frechet", "clap"}
    assert row(out, "recordings of other captions")["numbers"]["bands"].keys() == {"kl", "kl_sigmoid"}
    assert "kl" not in row(out, "references, half against half")["numbers"]["bands"]
    assert row(out, "references")["numbers"]["bands"].keys() == {"inception", "inception_std", "spread"}
    clips = [json.loads(line) for line in (out / "clips.jsonl").read_text().splitlines()]
    assert len(clips) == 8 * 4 + 4
    assert all((out / clip["audio"]).is_file() for clip in clips)


def test_outputs_are_those_of_generate_and_are_kept(tiny_checkpoint, tiny_manifest, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(out, tiny_manifest, model=str(tiny_checkpoint), seed=3, batch=3)
    folder = next((out / "outputs").glob("tiny-*/1-steps"))
    generated = MeanAudio.from_pretrained(tiny_checkpoint, device="cpu").generate("a tone of 1000 hertz", seed=3 + 4)
    kept = load_audio(folder / "clip4.wav", 16000)
    torch.testing.assert_close(kept, generated.samples[0], atol=2e-4, rtol=0)
    facts = read_metadata(folder / "clip4.wav")
    assert facts["prompt"] == "a tone of 1000 hertz" and facts["seed"] == 7 and "raw_level_db" in facts
    first = results(out)
    assert row(out, "tiny, 1 step")["made"] | {"steps": 1} == {"made": 8, "found": 0, "steps": 1, "seeds": [3, 10]}

    # what an interrupted run lacks is made, and nothing else; another seed makes all of them anew
    before = (folder / "clip2.wav").stat().st_mtime_ns
    (folder / "clip4.wav").unlink()
    (folder / "clip6.wav").write_bytes(b"half a file")
    run(out, tiny_manifest, model=str(tiny_checkpoint), seed=3, batch=3)
    assert row(out, "tiny, 1 step")["made"]["made"] == 2
    assert (folder / "clip2.wav").stat().st_mtime_ns == before
    torch.testing.assert_close(load_audio(folder / "clip4.wav", 16000), kept, atol=2e-4, rtol=0)  # another batch rounds otherwise
    for one, two in zip(first["rows"], results(out)["rows"], strict=True):
        assert one["numbers"] == {"bands": pytest.approx(two["numbers"]["bands"], rel=1e-2, abs=1e-3)}
    monkeypatch.setattr(MeanAudio, "from_pretrained", None)  # nothing to make: no network is read
    run(out, tiny_manifest, model=str(tiny_checkpoint), seed=3)


def test_any_option_of_generation_can_be_measured(tiny_checkpoint, tiny_manifest, tmp_path, monkeypatch, capsys):
    words = (
        "-m",
        tiny_checkpoint,
        "-r",
        tiny_manifest,
        "--split",
        "val",
        "-e",
        "bands",
        "--no-floor",
        "--no-codec",
        "-q",
        "--device",
        "cpu",
    )
    numbers = {}
    for name, more in (("plain", ()), ("other", ("--with", "negative_prompt=a siren", "--guidance", 3))):
        code, _, err = command(monkeypatch, capsys, *words, *more, "--shown", 0, "-o", tmp_path / name)
        assert code == 0, err
        numbers[name] = row(tmp_path / name, "tiny, 1 step")["numbers"]["bands"]["frechet"]
    assert numbers["plain"] != numbers["other"]
    path = next((tmp_path / "other" / "outputs").rglob("clip6.wav"))
    assert read_metadata(path)["negative_prompt"] == "a siren" and read_metadata(path)["guidance_scale"] == 3
    code, _, err = command(monkeypatch, capsys, *words, "--with", "magic=1", "-o", tmp_path / "out")
    assert code == 2 and "no option of generation that can be set here: magic; there are " in err and "stochastic" in err


def test_several_clips_a_prompt_are_paired_with_one_reference_and_differ(tiny_checkpoint, tiny_manifest, tmp_path):
    run(tmp_path, tiny_manifest, model=str(tiny_checkpoint), clips_a_prompt=3, splits=("val",), floor=False, codec=False)
    made = row(tmp_path, "tiny, 1 step")
    assert made["clips"] == 6 and made["made"]["seeds"] == [0, 5]
    assert made["numbers"]["bands"]["diversity"] > 0
    assert made["signal"]["duplicates"] == []


def test_prompts_choose_references_by_id_and_bring_captions(tiny_checkpoint, tiny_manifest, tmp_path):
    prompts = tmp_path / "prompts.tsv"
    prompts.write_text("id\tcaption\nclip3\ta deep tone\nclip1\ta high tone\nclip5\ta tone\n", encoding="utf-8")
    run(tmp_path / "a", tiny_manifest, model=str(tiny_checkpoint), prompts=prompts, floor=False)
    clips = [json.loads(line) for line in (tmp_path / "a" / "clips.jsonl").read_text().splitlines()]
    captions = {clip["name"]: clip["caption"] for clip in clips if clip["row"] == "tiny, 1 step"}
    assert captions == {"clip3": "a deep tone", "clip1": "a high tone", "clip5": "a tone"}
    lines = tmp_path / "prompts.txt"
    lines.write_text("rain\nwind\nthunder\n", encoding="utf-8")
    run(tmp_path / "b", tiny_manifest, model=str(tiny_checkpoint), prompts=lines, limit=2)
    assert row(tmp_path / "b", "tiny, 1 step")["clips"] == 2
    assert row(tmp_path / "b", "references")["clips"] == 8
    assert any("not paired" in note for note in results(tmp_path / "b")["notes"])
    prompts.write_text("id\nclip3\nclip9\n", encoding="utf-8")
    with pytest.raises(InputError, match="not in .*clip9"):
        run(tmp_path / "c", tiny_manifest, model=str(tiny_checkpoint), prompts=prompts)
    assert not (tmp_path / "c").exists()


# ---------------------------------------------------------------- folders


def test_a_folder_against_itself_is_at_distance_0_and_against_another_is_not(tmp_path):
    names = [f"s{k}" for k in range(12)]
    a, b = write_sounds(tmp_path / "a", names), write_sounds(tmp_path / "b", names, offset=100)
    run(tmp_path / "same", a, outputs=a)
    numbers = row(tmp_path / "same", "a")["numbers"]["bands"]
    assert numbers["frechet"] == pytest.approx(0, abs=1e-6) and numbers["kl"] == pytest.approx(0, abs=1e-4)
    run(tmp_path / "other", b, outputs=a)
    assert row(tmp_path / "other", "a")["numbers"]["bands"]["frechet"] > 0.01
    assert results(tmp_path / "other")["checkpoint"] is None
    assert not (tmp_path / "other" / "references").exists()  # nothing had to be changed: nothing is copied


def test_rates_and_lengths_may_differ_and_are_told(tmp_path):
    names = ["x", "y/z", "u v"]
    a = write_sounds(tmp_path / "a", names, rate=44100, seconds=1.5)
    b = write_sounds(tmp_path / "b", names, rate=16000, seconds=0.7)
    report = run(tmp_path / "out", a, outputs=b, duration=1.0)
    facts = results(tmp_path / "out")["references"]
    assert facts["rates"] == {"44100": 3} and facts["treated"] == {"cut": 3}
    assert row(tmp_path / "out", "b")["made"]["treated"] == {"padded": 3}
    lengths = {p.name: soundfile.info(p).duration for p in (tmp_path / "out").rglob("*.wav") if "gallery" not in p.parts}
    assert set(lengths.values()) == {1.0}
    assert "44100 Hz (3)" in report.to_text() and "zero-padded to 1 s" in report.to_text()


def test_stored_statistics_take_the_place_of_references(tmp_path):
    names = [f"s{k}" for k in range(6)]
    a, b = write_sounds(tmp_path / "a", names), write_sounds(tmp_path / "b", names, offset=100)
    run(tmp_path / "full", a, outputs=b)
    run(tmp_path / "short", tmp_path / "full" / "references-bands.safetensors", outputs=b)
    full, short = (row(tmp_path / name, "b")["numbers"]["bands"] for name in ("full", "short"))
    assert short["frechet"] == pytest.approx(full["frechet"], rel=1e-9)
    assert "kl" not in short and "kernel" not in short
    assert "stored references for bands: 6 clips (names " in (tmp_path / "short" / "table.txt").read_text()
    assert any("inception score of 6 clips, in 10 parts, cannot exceed 1" in note for note in results(tmp_path / "short")["notes"])
    with pytest.raises(InputError, match="no stored statistics of bands-with-text; there are some of bands"):
        run(tmp_path / "x", tmp_path / "full" / "references-bands.safetensors", outputs=b, extractors=("bands-with-text",))
    with pytest.raises(InputError, match="treat them alike"):
        run(tmp_path / "x", tmp_path / "full" / "references-bands.safetensors", outputs=b, duration=0.5)


def test_statistics_of_other_weights_are_refused(tmp_path, monkeypatch):
    a = write_sounds(tmp_path / "a", ["s0", "s1", "s2"])
    run(tmp_path / "full", a, outputs=a)
    monkeypatch.setattr(Bands, "fingerprint", "other")
    with pytest.raises(InputError, match="other weights"):
        run(tmp_path / "x", tmp_path / "full" / "references-bands.safetensors", outputs=a)


def test_other_recordings_of_the_captions_are_the_floor_where_there_are_enough(tiny_manifest, tmp_path):
    rows = [json.loads(line) for line in tiny_manifest.read_text().splitlines()]
    names = {row["audio"] for row in rows}
    for name in names:
        shutil.copy(tiny_manifest.parent / name, tmp_path / name)
    for k, item in enumerate(rows):
        item["caption"] = f"caption {k % 2}"
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(item) + "\n" for item in rows))
    outputs = write_sounds(tmp_path / "made", ["clip6", "clip7"])
    run(tmp_path / "out", manifest, outputs=outputs, splits=("val",))
    floor = row(tmp_path / "out", "other recordings of the captions")
    assert floor["clips"] == 2 and floor["paired"] and "kl" in floor["numbers"]["bands"]
    clips = [json.loads(line) for line in (tmp_path / "out" / "clips.jsonl").read_text().splitlines()]
    assert all(not clip["audio"].endswith(("clip6.wav", "clip7.wav")) for clip in clips if clip["row"] == floor["label"])


# ---------------------------------------------------------------- bad input


def test_unreadable_and_silent_files_are_listed_and_never_replaced(tmp_path):
    names = [f"s{k}" for k in range(6)]
    a, b = write_sounds(tmp_path / "a", names), write_sounds(tmp_path / "b", names, offset=100)
    (b / "s1.wav").write_bytes(b"this is no sound")
    save_audio(b / "s2.wav", torch.zeros(16000), 16000)
    (a / "s3.wav").write_bytes(b"nor is this")
    report = run(tmp_path / "out", a, outputs=b, floor=False)
    made = row(tmp_path / "out", "b")
    assert made["clips"] == 5 and [item["name"] for item in made["unreadable"]] == ["s1"]
    assert made["signal"]["silent"] == ["s2"]
    assert results(tmp_path / "out")["rows"][0]["clips"] == 5
    clips = [json.loads(line) for line in (tmp_path / "out" / "clips.jsonl").read_text().splitlines()]
    paired = {clip["name"] for clip in clips if clip["row"] == "b" and "kl" in clip.get("bands", {})}
    assert paired == {"s0", "s2", "s4", "s5"}
    for word in ("1 unreadable", "1 silent", "s1.wav", "s2"):
        assert word in report.to_text()


def test_names_that_do_not_match_are_listed(tmp_path):
    a, b = write_sounds(tmp_path / "a", ["x", "y", "z"]), write_sounds(tmp_path / "b", ["y", "z", "w"])
    with pytest.raises(InputError, match=r"1 of .*b are not in .*a: w; 1 of .*a are not in .*b: x"):
        run(tmp_path / "out", a, outputs=b)
    run(tmp_path / "out", a, outputs=b, allow_missing=True)
    assert row(tmp_path / "out", "b")["clips"] == 2
    run(tmp_path / "all", a, outputs=b, unpaired=True)
    assert row(tmp_path / "all", "b")["clips"] == 3 and "kl" not in row(tmp_path / "all", "b")["numbers"]["bands"]
    c = write_sounds(tmp_path / "c", ["p", "q"])
    with pytest.raises(InputError, match="no name in common"):
        run(tmp_path / "out", a, outputs=c, allow_missing=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"outputs": "empty"}, "holds no manifest.jsonl and no sound"),
        ({"outputs": "one"}, "1 clip.* at least 2"),
        ({"outputs": "none"}, "neither a folder of sounds nor a manifest"),
        ({"extractors": ("ears",)}, "unknown extractor 'ears'.*bands"),
        ({"splits": ("dev",)}, "no clip of split dev; there are train"),
        ({"steps": (1,)}, "holds outputs that exist already"),
        ({"limit": 1}, "limit = 1"),
        ({"duration": 0.0}, "duration = 0"),
        ({"level_db": 3.0}, "level = 3"),
        ({"protocol": "clotho"}, "unknown protocol 'clotho'.*audiocaps"),
        ({"prompts": Path("none.csv")}, "no such"),
    ],
)
def test_what_cannot_be_measured_is_told_and_nothing_is_written(tmp_path, change, told):
    write_sounds(tmp_path / "a", ["x", "y"])
    write_sounds(tmp_path / "one", ["x"])
    (tmp_path / "empty").mkdir()
    options = {"outputs": "a"} | change
    if isinstance(options["outputs"], str):
        options["outputs"] = tmp_path / options["outputs"]
    references = tmp_path / ("one" if options["outputs"].name == "one" else "a")
    with pytest.raises(InputError, match=told):
        run(tmp_path / "out", references, **options)
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_2(tmp_path, monkeypatch, capsys):
    a = write_sounds(tmp_path / "a", ["x", "y"])
    for words, told in (
        (("--outputs", a), "nothing to compare with"),
        (("--outputs", a, "-r", a, "--level", "loud", "-e", "bands"), "--level 'loud': must be a number, or none"),
        (("--outputs", a, "-r", tmp_path / "b", "-e", "bands"), "neither a folder"),
    ):
        code, _, err = command(monkeypatch, capsys, *words, "-o", tmp_path / "out")
        assert code == 2
        assert told in err
        assert len(err.splitlines()) == 1


def test_references_without_captions_cannot_be_prompts(tiny_checkpoint, tmp_path):
    a = write_sounds(tmp_path / "a", ["x", "y"])
    with pytest.raises(InputError, match="no caption to generate from for 2 of 2.*'x'"):
        run(tmp_path / "out", a, model=str(tiny_checkpoint))


# ---------------------------------------------------------------- the page


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.found += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data", "poster")]


def test_the_page_is_static_complete_and_escapes_captions(tmp_path):
    from urllib.parse import unquote

    evil = "<script>alert('x')</script> & \"rain\""
    names = ["a b#1", "c"]
    refs, made = write_sounds(tmp_path / "refs", names), write_sounds(tmp_path / "made", names, offset=9)
    for name in names:
        (refs / f"{name}.txt").write_text(evil if name == "c" else "rain")
    run(tmp_path / "out", refs, outputs=made, shown=2)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "KL: mean KL(reference || output)" in page and "CLAP:" not in page  # explained is what stands in the tables
    links = Links()
    links.feed(page)
    assert not links.tags & {"script", "link", "iframe", "object"}
    assert len(links.found) == 2 * 2 * 2
    for link in links.found:
        assert not link.startswith("/") and ".." not in link
        assert (tmp_path / "out" / unquote(link)).is_file()
    moved = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    shutil.rmtree(refs)
    assert all((Path(moved) / unquote(link)).is_file() for link in links.found)


def test_without_clips_on_the_page_no_picture_is_drawn(tmp_path):
    a = write_sounds(tmp_path / "a", ["x", "y"])
    run(tmp_path / "out", a, outputs=a)
    assert not list((tmp_path / "out").rglob("*.png"))
    assert (tmp_path / "out" / "index.html").is_file()
