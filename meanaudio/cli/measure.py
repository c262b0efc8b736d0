"""Verbs that print numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from meanaudio import DEFAULT_MODEL
from meanaudio.cli.common import Device, Lists, Model, Quiet, Set, app


@app.command(cls=Lists)
def benchmark(
    model: Model = DEFAULT_MODEL,
    batch: Annotated[Optional[list[int]], typer.Option("--batch", "-b", help="Clips a generation; 1 if left out.")] = None,
    steps: Annotated[Optional[list[int]], typer.Option("--steps", "-s", help="Network evaluations a clip; 1 if left out.")] = None,
    duration: Annotated[
        Optional[list[float]], typer.Option("--duration", "-d", help="Seconds of a clip; the checkpoint's own length if left out.")
    ] = None,
    dtype: Annotated[Optional[list[str]], typer.Option(help="float32, bf16; the device's own if left out.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Time everything compiled as well.")] = False,
    vocoder: Annotated[Optional[str], typer.Option(help="'fast', or a checkpoint whose vocoder to use; its own if left out.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's protocol: batch 1, 10 s, 1, 2, 5 and 25 steps, 100 prompts.")] = False,
    repeats: Annotated[
        Optional[int], typer.Option("--repeats", "--prompts", help="Timed generations a setting; 20, or 100 with --paper, if left out.")
    ] = None,
    warm_up: Annotated[int, typer.Option(help="Generations of each setting before the timing.")] = 3,
    cold: Annotated[int, typer.Option(help="Fresh processes that time the first sound.")] = 3,
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="Folder for benchmark.json, .txt and .png.")] = None,
    against: Annotated[Optional[Path], typer.Option(help="An earlier benchmark.json to compare with.")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Measure how fast sound is made: each stage, end to end, from a cold process; memory, operations. See docs/benchmark.md."""
    from meanaudio.evaluation.benchmark import benchmark as run
    from meanaudio.evaluation.timings import compare, read_earlier, save

    earlier = None if against is None else read_earlier(against)
    report = run(
        model, batch=batch, steps=steps, duration=duration, dtype=dtype, compile=compile_, vocoder=vocoder, paper=paper, repeats=repeats,
        warm_up=warm_up, cold=cold, device=device, quiet=quiet,
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
    extractor: Annotated[str, typer.Option(help="Who listens: yamnet, panns or passt.")] = "yamnet",
    weights: Annotated[Optional[Path], typer.Option(help="The extractor's weights file, where it comes with no package.")] = None,
    device: Device = None,
) -> None:
    """Say what is heard in sound files: the classes of highest score."""
    from meanaudio.evaluation.extractors import make_extractor
    from meanaudio.evaluation.tag import tag_files
    from meanaudio.pipeline import resolve_device

    listener = make_extractor(extractor, weights=weights, device=str(resolve_device(device)))
    unreadable: list[str] = []
    for path, classes in tag_files(files, listener, top=top, on_error=lambda path, message: unreadable.append(message)):
        print(f"{path}: " + ", ".join(f"{name} {score:.2f}" for name, score in classes))
    for message in unreadable:
        print(f"error: {message}", file=sys.stderr)
    if unreadable:
        raise typer.Exit(2)


@app.command("benchmark-training")
def benchmark_training(
    config: Annotated[Path, typer.Option("--config", "-c", help="A generator's training config.")],
    repeats: Annotated[int, typer.Option(help="Timed steps of each objective.")] = 8,
    set_: Set = None,
) -> None:
    """Measure what a mean-flow training step costs beside a flow-matching step, on the CPU."""
    from meanaudio.config import TrainConfig, load_config
    from meanaudio.evaluation.benchmark import training_cost

    cost = training_cost(load_config(TrainConfig, config, set_ or []), repeats=repeats)
    for name, seconds in cost.items():
        print(f"{name:<14}{seconds:8.3f} s a step")
    print(f"ratio {cost['mean flow'] / cost['flow matching']:.2f}")


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
    seed: Annotated[int, typer.Option(help="Seed of captions, scenes and noise.")] = 0,
    device: Device = None,
) -> None:
    """Ask whether outputs are nearer to recordings of their own caption than to others."""
    from meanaudio.evaluation.text_match import text_match

    print(text_match(model, manifest, count=captions, steps=steps, seed=seed, device=device).to_text())


@app.command("benchmark-release")
def benchmark_release(
    model: Annotated[str, typer.Argument(help="A converted release's name or folder.")],
    rounds: Annotated[int, typer.Option(help="Rounds over all variants; the fastest counts.")] = 2,
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
