"""Verbs that print numbers."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from meanaudio import DEFAULT_MODEL
from meanaudio.cli.common import ByEvent, Device, Dtype, KnownCaptions, Lists, Model, Quiet, Set, app
from meanaudio.errors import InputError


@app.command(cls=Lists)
def benchmark(
    model: Model = DEFAULT_MODEL,
    batch: Annotated[Optional[list[int]], typer.Option("--batch", "-b", help="Clips a generation; 1 if left out.")] = None,
    steps: Annotated[Optional[list[int]], typer.Option("--steps", "-s", help="Network evaluations a clip; 1 if left out.")] = None,
    duration: Annotated[
        Optional[list[float]], typer.Option("--duration", "-d", help="Seconds of a clip; the checkpoint's own length if left out.")
    ] = None,
    dtype: Annotated[Optional[list[str]], typer.Option(help="float32, bf16; the device's own if left out.")] = None,
    candidates: Annotated[Optional[list[int]], typer.Option("--candidates", "-n", help="Drawn for each clip; 1 if left out.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Time everything compiled as well.")] = False,
    vocoder: Annotated[Optional[str], typer.Option(help="'fast', or a checkpoint whose vocoder to use; its own if left out.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's protocol: batch 1, 10 s, 1, 2, 5 and 25 steps, 100 prompts.")] = False,
    repeats: Annotated[
        Optional[int], typer.Option("--repeats", "--prompts", help="Timed generations a setting; 20, or 100 with --paper, if left out.")
    ] = None,
    warm_up: Annotated[int, typer.Option(help="Generations of each setting before the timing, in each process.")] = 3,
    processes: Annotated[int, typer.Option(help="Fresh processes that share the repeats; 0: all in this one, no first sound.")] = 5,
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="Folder for benchmark.json, .txt and .png.")] = None,
    against: Annotated[Optional[Path], typer.Option(help="An earlier benchmark.json to compare with.")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Measure how fast sound is made: each stage, end to end, from a cold start; memory, operations. See docs/benchmark.md."""
    from meanaudio.evaluation.benchmark import benchmark as run
    from meanaudio.evaluation.timings import compare, read_earlier, save

    earlier = None if against is None else read_earlier(against)
    report = run(
        model, batch=batch, steps=steps, duration=duration, dtype=dtype, candidates=candidates, compile=compile_, vocoder=vocoder,
        paper=paper, repeats=repeats, warm_up=warm_up, processes=processes, device=device, quiet=quiet,
    )  # fmt: skip
    print(report.to_text())
    if earlier is not None:
        print(f"\n{compare(report, earlier)}")
    if out is not None:
        print(f"\n{save(report, out)}")


@app.command()
def tag(
    files: Annotated[list[Path], typer.Argument(help="Sound files.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print of each.")] = 5,
    extractor: Annotated[
        str, typer.Option("--extractor", "-e", help="Who listens: yamnet, panns or passt; NAME=weights where they come with no package.")
    ] = "yamnet",
    device: Device = None,
) -> None:
    """Say what is heard in sound files: the classes of highest score."""
    from meanaudio.evaluation.hearing import Hearing, make_listener
    from meanaudio.evaluation.tag import tag_files
    from meanaudio.pipeline import resolve_device

    listener = make_listener(extractor, str(resolve_device(device)), Hearing())  # clips as they are
    unreadable: list[str] = []
    for path, classes in tag_files(files, listener, top=top, on_error=lambda path, message: unreadable.append(message)):
        print(f"{path}: " + ", ".join(f"{name} {score:.2f}" for name, score in classes))
    for message in unreadable:
        print(f"error: {message}", file=sys.stderr)
    if unreadable:
        raise typer.Exit(2)


class Against(StrEnum):
    public = "public"
    objectives = "objectives"


@app.command("benchmark-training")
def benchmark_training(
    config: Annotated[Path, typer.Option("--config", "-c", help="A generator's training config.")],
    repeats: Annotated[int, typer.Option(help="Timed steps of each way.")] = 8,
    tokens: Annotated[Optional[int], typer.Option(help="Text tokens; 16, or the encoder's most where padding is attended to.")] = None,
    against: Annotated[
        Optional[Against],
        typer.Option(help="public: the public code's way too, and both precisions of ours; objectives: every kind there is."),
    ] = None,
    set_: Set = None,
) -> None:
    """Measure what a mean-flow training step costs beside a flow-matching step, on the CPU."""
    from meanaudio.config import TrainConfig, load_config
    from meanaudio.evaluation.training_cost import training_cost

    loaded = load_config(TrainConfig, config, set_ or [])
    print(training_cost(loaded, repeats=repeats, tokens=tokens, against=against).to_text())


@app.command(cls=Lists)
def evaluate(
    outputs: Annotated[Optional[Path], typer.Option(help="Folder or manifest of clips to judge; left out: they are generated.")] = None,
    reference: Annotated[
        Optional[list[Path]],
        typer.Option("--reference", "-r", help="Folder or manifest of recordings, or stored statistics; may be repeated."),
    ] = None,
    model: Annotated[
        Optional[str], typer.Option("--model", "-m", help="A checkpoint's name or folder; the default one if left out.")
    ] = None,
    prompts: Annotated[Optional[Path], typer.Option(help=".txt, .csv, .tsv or .jsonl of captions, ids or both.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results, page and made clips; what is there is used.")] = Path(
        "evaluation"
    ),
    extractor: Annotated[
        Optional[list[str]], typer.Option("--extractor", "-e", help="NAME or NAME=weights; may be repeated. yamnet if left out.")
    ] = None,
    steps: Annotated[
        Optional[list[int]], typer.Option("--steps", "-s", help="Network evaluations a clip; several give a row each.")
    ] = None,
    protocol: Annotated[Optional[str], typer.Option(help="audiocaps: everything as is usual there.")] = None,
    split: Annotated[Optional[list[str]], typer.Option(help="Rows of the reference manifest; may be repeated.")] = None,
    limit: Annotated[Optional[int], typer.Option(help="So many clips, evenly chosen.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first clip; clip k is drawn from seed + k.")] = 0,
    clips: Annotated[int, typer.Option(help="Clips a prompt.")] = 1,
    guidance: Annotated[float, typer.Option("--guidance", "-g", help="Guidance scale; 1 is none.")] = 1.0,
    generation: Annotated[
        Optional[list[str]], typer.Option("--with", help="NAME=value, another option of MeanAudio.generate, such as stochastic=true.")
    ] = None,
    duration: Annotated[
        Optional[str],
        typer.Option("--duration", "-d", help="Seconds every clip is cut or zero-padded to, or none; the checkpoint's if left out."),
    ] = None,
    level: Annotated[Optional[str], typer.Option(help="dBFS every clip is brought to, or none; -18 if clips are generated.")] = None,
    trim: Annotated[
        Optional[str], typer.Option(help="Silence this many dB below the loudest frame is left out at both ends; none; 50 if left out.")
    ] = None,
    noise: Annotated[
        Optional[str], typer.Option(help="dBFS of the noise under which extractors hear every clip; none; -70 if left out.")
    ] = None,
    floor: Annotated[bool, typer.Option(help="Rows of recordings against recordings.")] = True,
    codec: Annotated[bool, typer.Option(help="A row of the references through the checkpoint's codec.")] = True,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Names of outputs and references have nothing to do with each other.")
    ] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Leave out, and count, what has no partner.")] = False,
    cache: Annotated[Optional[Path], typer.Option(help="Folder of kept features; inside --out if left out.")] = None,
    shown: Annotated[int, typer.Option(help="Clips on the page.")] = 24,
    batch: Annotated[int, typer.Option(help="Clips generated at once.")] = 8,
    device: Device = None,
    dtype: Dtype = None,
    vocoder: Annotated[Optional[str], typer.Option(help="'fast', or another checkpoint whose vocoder reads the same mels.")] = None,
    quiet: Quiet = False,
) -> None:
    """Judge a checkpoint, or a folder of clips, against recordings: a table, results.json and a page to listen to."""
    from meanaudio.config import parse_assignment
    from meanaudio.evaluation.evaluate import evaluate as run
    from meanaudio.evaluation.plan import Request

    request = Request(
        references=tuple(reference or ()), outputs=outputs, model=model, prompts=prompts, protocol=protocol, splits=tuple(split or ()),
        limit=limit, steps=tuple(steps or ()), seed=seed, clips_a_prompt=clips, guidance_scale=guidance,
        generation=tuple(parse_assignment(text) for text in generation or ()),
        duration=_number_or_none(duration, "--duration"), level_db=_number_or_none(level, "--level"),
        trim_db=_number_or_none(trim, "--trim"),
        noise_db=_number_or_none(noise, "--noise"), extractors=tuple(extractor or ()),
        floor=floor, codec=codec, unpaired=unpaired, allow_missing=allow_missing, device=device, dtype=dtype, vocoder=vocoder, batch=batch,
    )  # fmt: skip
    print(run(request, out, cache=cache, shown=shown, progress_bar=not quiet).to_text())
    print(f"\n{out}/index.html")


def _number_or_none(text: str | None, option: str) -> float | None | Literal["default"]:
    if text is None:
        return "default"
    try:
        return None if text == "none" else float(text)
    except ValueError:
        raise InputError(f"{option} {text!r}: must be a number, or none") from None


@app.command("evaluate-codec")
def evaluate_codec(
    codec: Annotated[Path, typer.Argument(help="Folder with config.json, vae.safetensors and vocoder.safetensors.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest with held-out clips.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table and the pictures.")] = Path("codec-evaluation"),
) -> None:
    """Compare vocoder and codec with Griffin-Lim on held-out clips."""
    from meanaudio.evaluation.codec import evaluate_codec as run

    print(run(codec, manifest, out).to_text())


@app.command("evaluate-text")
def evaluate_text(
    manifest: Annotated[Path, typer.Argument(help="The manifest the checkpoint was trained on.")],
    model: Model = DEFAULT_MODEL,
    captions: Annotated[int, typer.Option(help="How many training captions to try.")] = 40,
    steps: Annotated[int, typer.Option(help="Network evaluations a clip.")] = 1,
    candidates: Annotated[int, typer.Option("--candidates", "-n", help="Drawn for each clip; the best by the scorer is taken.")] = 1,
    outputs: Annotated[int, typer.Option(min=1, help="Clips a caption.")] = 4,
    guidance: Annotated[float, typer.Option("--guidance", "-g", help="Guidance scale; 1 is none.")] = 1.0,
    generation: Annotated[
        Optional[list[str]], typer.Option("--with", help="NAME=value, another option of MeanAudio.generate, such as stochastic=true.")
    ] = None,
    naming: Annotated[Optional[Path], typer.Option(help="A tagger's folder: captions that name none of its classes are left out.")] = None,
    extractor: Annotated[
        Optional[str],
        typer.Option("--extractor", "-e", help="NAME or NAME=weights of a listener; left out: latents alone are compared."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of captions, scenes and noise.")] = 0,
    device: Device = None,
) -> None:
    """Ask whether outputs are nearer to recordings of their own caption than to others, and how much those of one caption differ."""
    from meanaudio.config import parse_assignment
    from meanaudio.evaluation.text_match import text_match

    options = {"guidance_scale": guidance, "num_candidates": candidates, **dict(parse_assignment(text) for text in generation or ())}
    found = text_match(
        model, manifest, count=captions, outputs=outputs, steps=steps, seed=seed, options=options, naming=naming, extractor=extractor,
        device=device,
    )  # fmt: skip
    print(found.to_text())


@app.command("evaluate-prompts")
def evaluate_prompts(
    manifest: Annotated[Path, typer.Argument(help="Manifest of recordings, of any split.")],
    model: Model = DEFAULT_MODEL,
    prompts: Annotated[Optional[Path], typer.Option(help="Table of prompt, kind, concepts; the package's if left out.")] = None,
    concepts: Annotated[Optional[Path], typer.Option(help="Table of concept, words, classes; the package's if left out.")] = None,
    extractor: Annotated[str, typer.Option("--extractor", "-e", help="NAME or NAME=weights of a tagger.")] = "yamnet",
    outputs: Annotated[int, typer.Option(help="Clips a prompt.")] = 1,
    steps: Annotated[int, typer.Option(help="Network evaluations a clip.")] = 1,
    guidance: Annotated[float, typer.Option("--guidance", "-g", help="Guidance scale; 1 is none.")] = 1.0,
    candidates: Annotated[int, typer.Option("--candidates", "-n", help="Drawn for each clip; the best by the scorer is taken.")] = 1,
    by_event: ByEvent = None,
    known_captions: KnownCaptions = None,
    seed: Annotated[int, typer.Option(help="Seed of the first clip; clip k is drawn from seed + k.")] = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Ask whether a tagger names what prompts ask for, as often as in recordings, and in the order asked for."""
    from tqdm import tqdm

    from meanaudio.evaluation.named import named

    with tqdm(unit="clip", disable=quiet) as bar:
        found = named(
            model, manifest, extractor=extractor, concepts=concepts, prompts=prompts, outputs=outputs, steps=steps, guidance_scale=guidance,
            candidates=candidates, by_event=by_event, known_captions=known_captions, seed=seed, device=device,
            progress=bar.update,
        )  # fmt: skip
    print(found.to_text())


@app.command("benchmark-release")
def benchmark_release(
    model: Annotated[str, typer.Argument(help="A converted release's name or folder.")],
    rounds: Annotated[int, typer.Option(help="Rounds over all variants; the median counts.")] = 3,
) -> None:
    """Measure a published model beside the same work in the public code's shape, on the CPU: times, memory, first sound, differences."""
    from meanaudio.evaluation.release_benchmark import release_benchmark

    print(release_benchmark(model, rounds=rounds).to_text())


@app.command("benchmark-data")
def benchmark_data(
    config: Annotated[Path, typer.Option("--config", "-c", help="A generator's training config.")],
    items: Annotated[int, typer.Option(help="Random items to store and read.")] = 1024,
    steps: Annotated[int, typer.Option(min=0, help="Timed training steps; 0 measures reading only.")] = 10,
    folder: Annotated[Optional[Path], typer.Option(help="Where to store them for the time being; the system's place if left out.")] = None,
    set_: Set = None,
) -> None:
    """Measure how fast shards of a config's shapes are read beside npz files, and how long training waits for them, on the CPU."""
    import tempfile

    from meanaudio.config import TrainConfig, load_config
    from meanaudio.training.loading import measure_loading

    settings = load_config(TrainConfig, config, set_ or [])
    with tempfile.TemporaryDirectory(dir=folder) as place:
        print(measure_loading(settings, Path(place), items=items, steps=steps).to_text())
