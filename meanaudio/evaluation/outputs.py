"""Clips that a checkpoint makes for an evaluation, kept as files: what is there already, from the same weights, is not made again."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from meanaudio import DEFAULT_MODEL
from meanaudio.audio import limit_peak, load_audio, match_level, read_metadata, save_audio
from meanaudio.checkpoint import file_hash, folder_hash, read_json
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE, Codec, load_codec
from meanaudio.config import CheckpointConfig, parse
from meanaudio.convert.hub import find_checkpoint
from meanaudio.errors import InputError
from meanaudio.evaluation.clips import Sound, SoundSet, Treatment, same_metadata, stem_of, write_rows
from meanaudio.evaluation.signal import level_db
from meanaudio.pipeline import FAST, MeanAudio, resolve_device, resolve_dtype

# options of generation that an evaluation sets
OURS = {"self", "prompts", "duration", "steps", "guidance_scale", "seed", "keep", "level_db"}


@dataclass(frozen=True)
class Wish:
    """One output to be made. name: unique; pair: name of its reference or "". seed: of its noise."""

    name: str
    pair: str
    caption: str
    seed: int


class Checkpoint:
    """A checkpoint whose weights are read when something has to be made. root: where made clips are kept, by the checkpoint's hash.

    vocoder: as in MeanAudio.from_pretrained; another one is part of the hash.
    """

    def __init__(self, model: str, root: Path, *, device: str | None, dtype: str | None, vocoder: str | None = None) -> None:
        self.folder, self.device, self.vocoder = find_checkpoint(model), device, vocoder
        self.vocoder_folder = self.folder if vocoder is None else find_checkpoint(DEFAULT_MODEL if vocoder == FAST else vocoder)
        self.dtype = str(resolve_dtype(dtype, resolve_device(device))).removeprefix("torch.").replace("bfloat16", "bf16")
        self.name, self.hash = self.folder.name, folder_hash(self.folder)
        if vocoder is not None:
            self.hash = hashlib.sha256(f"{self.hash} {file_hash(self.vocoder_folder / VOCODER_FILE)}".encode()).hexdigest()
        self.config = parse(CheckpointConfig, read_json(self.folder / "config.json"), str(self.folder / "config.json"))
        self.home = root / f"{stem_of(self.name)}-{self.hash[:12]}"

    @cached_property
    def pipeline(self) -> MeanAudio:
        return MeanAudio.from_pretrained(self.folder, device=self.device, dtype=self.dtype, vocoder=self.vocoder)

    @cached_property
    def codec(self) -> Codec:
        return load_codec(self.folder, vocoder_from=self.vocoder_folder).to(resolve_device(self.device))

    def generate(
        self, wishes: Sequence[Wish], treatment: Treatment, *, steps: int, options: Mapping[str, Any], batch: int, progress_bar: bool
    ) -> SoundSet:
        """One clip a wish at `steps` steps. options: others of MeanAudio.generate.

        Metadata of each file holds all that it depends on, and how loud it came (raw_level_db).
        """
        folder = self.home / f"{steps}-steps"
        shared = {"steps": steps, **options, **treatment.facts, "dtype": self.dtype, "checkpoint": self.hash}
        facts = [{"prompt": wish.caption, "seed": wish.seed, **shared} for wish in wishes]
        paths = [folder / f"{stem_of(wish.name)}.wav" for wish in wishes]
        missing = [k for k, path in enumerate(paths) if not same_metadata(path, facts[k])]
        bar = tqdm(total=len(missing), desc=f"generate, {steps} step(s)", disable=not progress_bar or not missing, leave=False)
        for run in _runs(missing, wishes, batch):
            captions, seed = [wishes[k].caption for k in run], wishes[run[0]].seed
            audio = self.pipeline.generate(captions, duration=treatment.duration, steps=steps, seed=seed, level_db=None, **options)
            for k, samples, parameters in zip(run, audio.samples, audio.parameters, strict=True):
                raw = {"raw_level_db": round(level_db(samples, audio.sample_rate), 2)}
                self._save(paths[k], samples, treatment, {**parameters, **facts[k], **raw})
                bar.update()
        bar.close()
        sounds = [Sound(wish.name, path, wish.caption, wish.pair) for wish, path in zip(wishes, paths, strict=True)]
        rows = [{"id": s.name, "audio": s.path.name, "caption": s.caption, **f} for s, f in zip(sounds, facts, strict=True)]
        write_rows(folder / "manifest.jsonl", rows)
        made: dict[str, Any] = {"made": len(missing), "found": len(wishes) - len(missing), "steps": steps, "seeds": _range(wishes)}
        return SoundSet(f"{self.name}, {steps} step{'s' if steps > 1 else ''}", sounds, facts=made)

    def _save(self, path: Path, samples: Tensor, treatment: Treatment, facts: dict[str, Any]) -> None:
        rate = self.config.codec.mel.sample_rate
        if treatment.level_db is not None:
            samples = match_level(samples[None], treatment.level_db, rate)[0]
        save_audio(path, limit_peak(samples), rate, facts)

    @torch.inference_mode()
    def reconstruct(self, references: SoundSet, treatment: Treatment, progress_bar: bool) -> SoundSet:
        """Every reference through the VAE's posterior mean and the vocoder: the best that a network over these latents could give."""
        codec_hash = file_hash(self.folder / VAE_FILE) + file_hash(self.vocoder_folder / VOCODER_FILE)
        sounds = []
        for sound in tqdm(references.sounds, "codec", disable=not progress_bar, leave=False):
            path = self.home / "codec" / f"{stem_of(sound.name)}.wav"
            facts = {"of": file_hash(sound.path), "codec": codec_hash, **treatment.facts}
            if not same_metadata(path, facts):
                audio = load_audio(sound.path, self.codec.spec.sample_rate)
                through = self.codec.reconstruct(audio[None].to(next(self.codec.parameters()).device))[0]
                self._save(path, through.float().cpu(), treatment, facts)
            sounds.append(Sound(sound.name, path, sound.caption, sound.name))
        return SoundSet("references through the codec", sounds, facts={"codec": codec_hash})


def check_options(names: Iterable[str], *, but: Iterable[str] = ()) -> None:
    """Raises InputError if one of `names` is no option of MeanAudio.generate that an evaluation leaves free, or one of `but`."""
    free = set(inspect.signature(MeanAudio.generate).parameters) - OURS - set(but)
    if unknown := sorted(set(names) - free):
        raise InputError(f"no option of generation that can be set here: {', '.join(unknown)}; there are {', '.join(sorted(free))}")


def raw_levels(sounds: Sequence[Sound]) -> dict[str, float]:
    """How loud outputs came, before they were brought to one level; names without such a note are left out."""
    notes = ((sound.name, read_metadata(sound.path).get("raw_level_db")) for sound in sounds if sound.path.is_file())
    return {name: level for name, level in notes if isinstance(level, int | float)}


def were_ranked(sounds: Sequence[Sound]) -> bool:
    """Whether some output says that it was chosen from several candidates."""
    return any("chosen_seed" in read_metadata(sound.path) for sound in sounds if sound.path.is_file())


def _runs(missing: Sequence[int], wishes: Sequence[Wish], batch: int) -> Iterator[list[int]]:
    """`missing` in batches of successive seeds, because the pipeline counts seeds up from the first."""
    run: list[int] = []
    for k in missing:
        if run and (len(run) == batch or wishes[k].seed != wishes[run[-1]].seed + 1):
            yield run
            run = []
        run.append(k)
    if run:
        yield run


def _range(wishes: Sequence[Wish]) -> list[int]:
    seeds = [wish.seed for wish in wishes]
    return [min(seeds), max(seeds)]
