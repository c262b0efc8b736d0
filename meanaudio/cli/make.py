"""Verbs that make sound, and checkpoints to make it with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from meanaudio import DEFAULT_MODEL
from meanaudio.cli.common import ByEvent, Device, Dtype, KnownCaptions, Model, app

Guidance = Annotated[
    float, typer.Option("--guidance", "-g", help="Guidance scale; 1 is none. A checkpoint that takes it as an input has its own range.")
]
Negative = Annotated[Optional[str], typer.Option("--negative-prompt", help="What to move away from; needs --guidance above 1.")]
Level = Annotated[float, typer.Option(help="Level of the loudest 400 ms, in dBFS.")]
Vocoder = Annotated[
    Optional[str], typer.Option(help="'fast', or another checkpoint whose vocoder reads the same mels; its own if left out.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Make kernels with torch.compile: minutes once, then faster.")]
Spectrogram = Annotated[bool, typer.Option("--spectrogram", help="Write a PNG beside each sound.")]


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
    guidance: Guidance = 1.0,
    level: Level = -18.0,
    negative_prompt: Negative = None,
    guidance_limits: Annotated[
        tuple[float, float], typer.Option("--guidance-limits", help="Guide between these times only; 1 is noise, 0 is sound.")
    ] = (0.0, 1.0),
    guide_with: Annotated[
        Optional[str], typer.Option("--guide-with", help="A weaker or earlier checkpoint to move away from; needs --guidance above 1.")
    ] = None,
    classifier: Annotated[
        Optional[str],
        typer.Option(help="A tagger's or scorer's folder, or a checkpoint with a scorer: guides what sounds like something else."),
    ] = None,
    classifier_scale: Annotated[float, typer.Option("--classifier-scale", help="How far at most.")] = 3.0,
    classifier_reference: Annotated[
        str, typer.Option("--classifier-reference", help="From what: 'base', as guidance, or 'rival', what it is mistaken for.")
    ] = "base",
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Fresh noise at every step.")] = False,
    candidates: Annotated[
        int, typer.Option("--candidates", "-n", help="Draw so many clips a prompt, and keep what fits it best (docs/scorer.md).")
    ] = 1,
    keep: Annotated[int, typer.Option("--keep", "-k", help="Of the candidates, how many to keep: NAME-1.wav is the best.")] = 1,
    by_event: ByEvent = None,
    known_captions: KnownCaptions = None,
    lora: Annotated[
        Optional[str], typer.Option(help="Folder of adapters that were trained on this checkpoint; folder:0.5 takes half of them.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    vocoder: Vocoder = None,
    compile_: Compile = False,
    spectrogram: Spectrogram = False,
) -> None:
    """Turn prompts into sound files."""
    from meanaudio.generate import generate_files

    everything = [*(prompts or []), *(prompt or [])]
    generate_files(
        everything, out, model=model, duration=duration, steps=steps, seed=seed, level_db=level, guidance_scale=guidance,
        negative_prompt=negative_prompt, guidance_limits=guidance_limits, guide_with=guide_with, classifier=classifier,
        classifier_scale=classifier_scale, classifier_reference=classifier_reference, stochastic=stochastic, num_candidates=candidates,
        keep=keep, by_event=by_event, known_captions=known_captions, lora=lora, device=device, dtype=dtype,
        vocoder=vocoder, compile=compile_, spectrogram=spectrogram,
    )  # fmt: skip


@app.command()
def edit(
    recording: Annotated[Path, typer.Argument(help="A sound file.")],
    prompts: Annotated[list[str], typer.Argument(help="What it shall be; one file a prompt.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .wav, .flac or .ogg file, or a folder if there are several prompts.")] = Path(
        "out.wav"
    ),
    model: Model = DEFAULT_MODEL,
    source: Annotated[Optional[str], typer.Option(help="What it is now; helps to keep the rest.")] = None,
    strength: Annotated[float, typer.Option(help="From 0, nothing changes, to 1, only its noise is kept.")] = 0.7,
    steps: Annotated[int, typer.Option("--steps", "-s", help="Steps on the way up to noise, and on the way down again.")] = 8,
    iterations: Annotated[int, typer.Option(help="Network evaluations a step on the way up; more keep more of the recording.")] = 2,
    guidance: Guidance = 1.0,
    negative_prompt: Negative = None,
    level: Level = -18.0,
    device: Device = None,
    dtype: Dtype = None,
    vocoder: Vocoder = None,
    spectrogram: Spectrogram = False,
) -> None:
    """Turn a recording into what it would be as something else: up to noise, and down again with another prompt."""
    from meanaudio.generate import edit_file

    edit_file(
        recording, prompts, out, model=model, source=source, strength=strength, steps=steps, iterations=iterations,
        guidance_scale=guidance, negative_prompt=negative_prompt, level_db=level, device=device, dtype=dtype, vocoder=vocoder,
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
    network: Annotated[str, typer.Argument(help="A generator checkpoint's folder (a run's export/) or name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new checkpoint.")],
    codec: Annotated[Optional[Path], typer.Option(help="Take the vocoder from this codec folder instead.")] = None,
    scorer: Annotated[
        Optional[Path], typer.Option(help="Add this scorer: a scorer run's best/ or export/, or a checkpoint with one.")
    ] = None,
    weights: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="How weights are stored; int8: those of the network and the vocoder.")
    ] = "float16",
    by_event: ByEvent = None,
    known_captions: KnownCaptions = None,
) -> None:
    """Write a checkpoint for release: one self-describing folder, in half precision or less."""
    from meanaudio.checkpoint import WORDS_FILE
    from meanaudio.convert.hub import find_checkpoint
    from meanaudio.pack import pack as run

    folder = find_checkpoint(network)
    told = (folder / WORDS_FILE).is_file()
    run(folder, out, codec=codec, scorer=scorer, weights=weights, by_event=by_event, known_captions=known_captions)
    _print_size(out)
    if told:
        print(f"left behind: {WORDS_FILE}, which is true of the very weights it was heard with; `meanaudio learn-words` hears these")


def _print_size(out: Path) -> None:
    total = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
    print(f"{out}: {total / 1e6:.1f} MB")


@app.command("merge-lora")
def merge_lora(
    base: Annotated[str, typer.Argument(help="The checkpoint the adapters were trained on: its name or folder.")],
    lora: Annotated[str, typer.Argument(help="Folder of the adapters, such as a LoRA run's export/; folder:0.5 takes half of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new checkpoint.")],
) -> None:
    """Write a checkpoint with adapters added to its weights, which needs no --lora any more."""
    from meanaudio.pack import merge_lora as run

    run(base, lora, out)
    _print_size(out)


@app.command()
def blend(
    checkpoints: Annotated[list[str], typer.Argument(help="Names or folders, with the same kind of network, codec and text encoder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new checkpoint.")],
    share: Annotated[
        Optional[float], typer.Option(help="How much of the last there is, between 0 and 1; equal shares if left out.")
    ] = None,
) -> None:
    """Write a checkpoint whose weights lie between those of others, which came from one and were trained differently."""
    from meanaudio.pack import blend as run

    run(checkpoints, out, share=share)
    _print_size(out)


@app.command()
def knows(
    prompts: Annotated[Optional[list[str]], typer.Argument(help="Ask for these; everything is listed if left out.")] = None,
    model: Model = DEFAULT_MODEL,
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="Write the whole list to this markdown file.")] = None,
) -> None:
    """List what a checkpoint was taught, or say whether it knows what prompts ask for, and with what captions it reads them."""
    from meanaudio.errors import InputError
    from meanaudio.knows import ask_known, list_known

    if prompts and out is not None:
        raise InputError(f"--out {out} is for the whole list, not for {len(prompts)} prompt(s)")
    print(ask_known(model, prompts) if prompts else list_known(model, out))


@app.command()
def verify(model: Annotated[str, typer.Argument(help="A checkpoint's name or folder.")]) -> None:
    """Compare every file of a converted checkpoint with the hashes kept when it was made."""
    from meanaudio.checkpoint import verify as run
    from meanaudio.convert.hub import find_checkpoint

    folder = find_checkpoint(model)
    print(f"{folder}: " + ("every file is as it was made" if run(folder) else "states no hashes (hashes.json), nothing to compare with"))
