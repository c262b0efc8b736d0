"""Prompts to sound files, with what a listener at a terminal wants to know."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from meanaudio.audio import SAVE_SUFFIXES, limit_peak, load_audio
from meanaudio.errors import InputError
from meanaudio.pipeline import Audio, MeanAudio
from meanaudio.plots import save_spectrogram


def file_stem(prompt: str, index: int) -> str:
    """A file name that survives any prompt: number, then its first words in plain letters."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return f"{index:02d}-{words[:50].strip('-')}" if words else f"{index:02d}"


def target_paths(out: Path, prompts: Sequence[str], keep: int = 1) -> list[Path]:
    """`out` itself for one prompt and a file name; NN-words.wav inside it where it is a folder. Raises InputError for a mix-up.

    keep: clips a prompt; where there are several, -1, -2, ... is added to each name.
    """
    if out.suffix.lower() in SAVE_SUFFIXES:
        if len(prompts) > 1:
            raise InputError(f"{len(prompts)} prompts do not fit in one file {out}; give a folder")
        return _ranked(out, keep)
    if out.suffix and not out.is_dir():
        raise InputError(f"cannot write {out.name!r}: the suffix must be one of {', '.join(SAVE_SUFFIXES)}")
    return [path for i, prompt in enumerate(prompts) for path in _ranked(out / f"{file_stem(prompt, i)}.wav", keep)]


def _ranked(path: Path, keep: int) -> list[Path]:
    return [path] if keep == 1 else [path.with_name(f"{path.stem}-{rank}{path.suffix}") for rank in range(1, keep + 1)]


def generate_files(
    prompts: Sequence[str],
    out: Path,
    *,
    model: str,
    device: str | None,
    dtype: str | None,
    spectrogram: bool,
    lora: str | None = None,
    vocoder: str | None = None,
    compile: bool = False,
    keep: int = 1,
    **options,
) -> list[Path]:
    """Generate every prompt and write it below `out`; print path, seed, level and speed. keep, options: as MeanAudio.generate's."""
    if not prompts:
        raise InputError("no prompt given: meanaudio generate 'heavy rain falls' -o rain.wav")
    paths = target_paths(out, prompts, keep)
    _check_writable(paths)
    _check_plots(spectrogram)
    pipeline = MeanAudio.from_pretrained(model, device=device, dtype=dtype, lora=lora, vocoder=vocoder, compile=compile)
    pipeline.encode_text(["warm up"])  # reads the encoder's weights, so that the time printed is that of generation
    began = time.perf_counter()
    audio = pipeline.generate(list(prompts), keep=keep, **options)
    _write(audio, paths, time.perf_counter() - began, str(pipeline.device), spectrogram)
    return paths


def edit_file(
    recording: Path, prompts: Sequence[str], out: Path, *, model: str, device: str | None, dtype: str | None, spectrogram: bool,
    vocoder: str | None = None, **options,
) -> list[Path]:  # fmt: skip
    """Write `recording` as each prompt would have it, as `generate_files` does. options: as MeanAudio.edit's."""
    paths = target_paths(out, prompts)
    _check_writable(paths)
    _check_plots(spectrogram)
    pipeline = MeanAudio.from_pretrained(model, device=device, dtype=dtype, vocoder=vocoder)
    sound = limit_peak(load_audio(recording, pipeline.sample_rate), 1.0)  # resampling may overshoot
    began = time.perf_counter()
    audio = pipeline.edit(sound, list(prompts), **options)
    for told in audio.parameters:
        told["recording"] = recording.name
    _write(audio, paths, time.perf_counter() - began, str(pipeline.device), spectrogram)
    return paths


def _check_writable(paths: Sequence[Path]) -> None:
    """Before any work is done. Raises InputError for what is a folder, or lies where none can be."""
    for path in paths:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise InputError(f"cannot write {path}: {above} is {'not writable' if above.is_dir() else 'no folder'}")


def _check_plots(spectrogram: bool) -> None:
    if spectrogram and importlib.util.find_spec("matplotlib") is None:
        raise InputError("a spectrogram needs matplotlib, which is not installed: pip install matplotlib")


def _write(audio: Audio, paths: Sequence[Path], seconds: float, device: str, spectrogram: bool) -> None:
    for i, path in enumerate(paths):
        audio.save(path, i)
        clip, told = audio.samples[i], audio.parameters[i]
        rms, peak = (f"{20 * x.clamp_min(1e-5).log10():.1f}" for x in (clip.square().mean().sqrt(), clip.abs().max()))
        drawn = f"  seed {told['seed']}" if "seed" in told else ""
        if "score" in told:
            drawn += f"  score {told['score']:.3f} (seed {told['chosen_seed']})"
        print(f"{path}{drawn}  {len(clip) / audio.sample_rate:.2f} s  rms {rms} dBFS  peak {peak} dBFS")
        if spectrogram:
            save_spectrogram(path.with_suffix(".png"), clip, audio.sample_rate, told["prompt"])
    length = audio.samples.numel() / audio.sample_rate
    print(
        f"{seconds:.2f} s for {length:.2f} s of sound: real-time factor {seconds / length:.4f} on {device}, "
        f"{audio.evaluations:g} network evaluation(s) a clip"
    )
