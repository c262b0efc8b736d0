"""Verbs that make sound, and checkpoints to make it with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from meanaudio import DEFAULT_MODEL
from meanaudio.cli.common import Device, Dtype, Model, app


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
    vocoder: Annotated[
        Optional[str],
        typer.Option(help="'fast', or another checkpoint whose vocoder reads the same mels; its own if left out."),
    ] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Make kernels with torch.compile: minutes once, then faster.")] = False,
    spectrogram: Annotated[bool, typer.Option("--spectrogram", help="Write a PNG beside each sound.")] = False,
) -> None:
    """Turn prompts into sound files."""
    from meanaudio.generate import generate_files

    everything = [*(prompts or []), *(prompt or [])]
    generate_files(
        everything, out, model=model, duration=duration, steps=steps, seed=seed, level_db=level, guidance_scale=guidance,
        negative_prompt=negative_prompt, device=device, dtype=dtype, vocoder=vocoder, compile=compile_,
        spectrogram=spectrogram,
    )  # fmt: skip


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
def verify(model: Annotated[str, typer.Argument(help="A checkpoint's name or folder.")]) -> None:
    """Compare every file of a converted checkpoint with the hashes kept when it was made."""
    from meanaudio.checkpoint import verify as run
    from meanaudio.convert.hub import find_checkpoint

    folder = find_checkpoint(model)
    print(f"{folder}: " + ("every file is as it was made" if run(folder) else "states no hashes (hashes.json), nothing to compare with"))
