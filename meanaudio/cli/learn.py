"""Verbs of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from meanaudio import DEFAULT_MODEL
from meanaudio.cli.common import Device, Model, Quiet, Set, app


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML file, such as configs/codec_vae.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; an interrupted run there is resumed.")],
    set_: Set = None,
    device: Device = None,
    until: Annotated[Optional[int], typer.Option(help="Stop after this many steps; a later call goes on.")] = None,
    allow_changes: Annotated[
        bool,
        typer.Option("--allow-changes", help="Resume although the config is not the one the run was started with; the log will say so."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train what a config says: VAE, vocoder, decoder, transformer, tagger, scorer or judge; the transformer on several processes too."""
    from meanaudio.config import TrainConfig, load_config
    from meanaudio.training.run import train as run

    settings = load_config(TrainConfig, config, set_ or [])
    run(settings, out, device=device, until=until, progress_bar=not quiet, allow_changes=allow_changes)


@app.command()
def distill(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML file, such as configs/generator_halving.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the rounds; an interrupted one is resumed.")],
    set_: Set = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Halve a network's steps, round by round, down to one (docs/methods.md)."""
    from meanaudio.config import TrainConfig, load_config
    from meanaudio.training.distill import distill as run

    export = run(load_config(TrainConfig, config, set_ or []), out, device=device, progress_bar=not quiet)
    print(f"{out}: stopped; the same command goes on" if export is None else f"one-step network: {export}")


@app.command("learn-words")
def learn_words(
    manifest: Annotated[
        Path, typer.Argument(help="Manifest of the recordings that the checkpoint was taught, such as data/sounds/manifest.jsonl.")
    ],
    model: Model = DEFAULT_MODEL,
    outputs: Annotated[int, typer.Option(help="Clips made of each known caption.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the first clip, and of the listeners' learning.")] = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Find out which of the captions that it was taught a checkpoint makes best, and keep that with it: prompts are read with those."""
    from tqdm import tqdm

    from meanaudio.evaluation.words import learn_words as run

    with tqdm(unit="clip", disable=quiet) as bar:
        path = run(model, manifest, outputs=outputs, seed=seed, device=device, progress=bar.update)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


@app.command()
def ema(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    sigma_rel: Annotated[float, typer.Option("--sigma-rel", help="Relative width of the average, 0 to 0.28; longer averages have more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new checkpoint.")],
    step: Annotated[Optional[int], typer.Option(help="The average as it stood after this step; the last snapshot's if left out.")] = None,
) -> None:
    """Make another average of a run's weights than the one it exported."""
    from meanaudio.training.posthoc import reconstruct

    print(reconstruct(run, sigma_rel, out, step=step))


@app.command()
def prepare(
    manifest: Annotated[Path, typer.Argument(help="A manifest, table or folder that `data check` accepts.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shards; finished ones are kept.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The training config that will read the shards.")],
    split: Annotated[
        Optional[list[str]],
        typer.Option(help="Rows of the manifest, train if left out; may be repeated, then each goes to a folder of its name in --out."),
    ] = None,
    scenes: Annotated[int, typer.Option(help="Compose so many scenes of short clips; 0 takes the clips' windows as they are.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Items of a shard.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Items that codec and text encoder take at once.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Files read at once, while codec and text encoder work.")] = 4,
    worker: Annotated[
        Optional[str], typer.Option(help="K/N: make every N-th shard from the K-th on; torchrun and Slurm arrays say it themselves.")
    ] = None,
    max_left_out: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the items whose sound may be unreadable; they are listed in index.json.")
    ] = 0.01,
    set_: Set = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Turn a manifest into shards of latents and text features; call it again, or on more machines, to finish. See docs/prepare.md."""
    from meanaudio.config import TrainConfig, load_config
    from meanaudio.data.worker import Worker
    from meanaudio.training.run import prepare_for

    for prepared in prepare_for(
        load_config(TrainConfig, config, set_ or []),
        manifest,
        out,
        splits=split or ["train"],
        scenes=scenes,
        seed=seed,
        shard_size=shard_size,
        batch_size=batch_size,
        threads=threads,
        worker=Worker.parse(worker) if worker else Worker.of_environment(),
        max_left_out=max_left_out,
        device=device,
        progress_bar=not quiet,
    ):
        print(prepared.to_text())


@app.command()
def study(
    config: Annotated[Path, typer.Option("--config", "-c", help="A study's YAML file, such as configs/study.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of runs, tables and plots; what is done there is kept.")],
    device: Device = None,
    report: Annotated[bool, typer.Option("--report", help="Train and measure nothing: tables and plots of what there is.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train several methods alike, measure them by network evaluations, and write tables and plots; start it twice to share the work."""
    from meanaudio.study.run import study as run

    written = run(config, out, device=device, report_only=report, progress_bar=not quiet)
    print(f"{out}: stopped; the same command goes on" if written is None else written)


@app.command("compare-runs")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs.")],
    key: Annotated[str, typer.Option(help="The logged number to compare.")] = "held_out/frechet_1_step",
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="Write the plot to this PNG.")] = None,
) -> None:
    """Put one logged number of several runs side by side."""
    from meanaudio.training.compare import compare_runs as run

    print(run(runs, key, out))
