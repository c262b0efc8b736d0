"""Training windows for the codec: short clips strung together until a window of fixed length is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor

from meanaudio.audio import load_audio
from meanaudio.data.manifest import read_manifest
from meanaudio.errors import InputError

PEAK = 0.98
SPEED_CHANGE = 0.18  # largest change of speed and pitch by resampling


@dataclass(frozen=True)
class Sound:
    """A clip held in memory: int16 samples [N]."""

    id: str
    caption: str
    samples: np.ndarray


def load_sounds(manifest: Path, splits: Sequence[str], sample_rate: int) -> list[Sound]:
    """Read the clips of some splits into memory (115 MB an hour at 16 kHz)."""
    sounds = []
    for clip in read_manifest(manifest):
        if clip.split in splits:
            audio = load_audio(clip.audio, sample_rate, clip.start, clip.duration)
            sounds.append(Sound(clip.id, clip.caption, (audio.numpy().clip(-1, 1) * 32767).astype(np.int16)))
    if not sounds:
        raise InputError(f"{manifest}: no clip of split {' or '.join(splits)}")
    return sounds


class WindowSampler:
    """Draws batches of windows [B, N] float32, peak at most 0.98; batch number `step` depends on (seed, step) alone.

    Captions are drawn evenly, then a clip of the caption. A window enters its first clip anywhere, so long clips are seen whole over time;
    later clips begin at their beginning. Gaps of digital silence, level changes, changes of speed and overlays are part of the draw,
    because generated audio holds all of them.
    """

    def __init__(self, sounds: Sequence[Sound], num_samples: int, seed: int, *, augment: bool = True) -> None:
        self.num_samples, self.seed, self.augment = num_samples, seed, augment
        groups: dict[str, list[Sound]] = {}
        for sound in sounds:
            groups.setdefault(sound.caption, []).append(sound)
        self.groups = [groups[caption] for caption in sorted(groups)]

    def batch(self, step: int, rows: int) -> tuple[Tensor, list[str]]:
        """Windows [rows, N] and for each row the ids it is made of."""
        made = [self.window(np.random.default_rng((self.seed, step, row))) for row in range(rows)]
        return torch.from_numpy(np.stack([audio for audio, _ in made])), ["+".join(ids) or "silence" for _, ids in made]

    def window(self, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """One window [N] and the ids of its clips."""
        if rng.random() < 0.01:
            return np.zeros(self.num_samples, np.float32), []
        audio, ids = self._sequence(rng)
        if rng.random() < 0.2:
            other, more = self._sequence(rng)
            audio, ids = audio + other * _gain(rng, -12, 0), ids + more
        return audio * min(1.0, PEAK / max(float(np.abs(audio).max()), 1e-9)), ids

    def _sequence(self, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        audio = np.zeros(self.num_samples, np.float32)
        ids: list[str] = []
        position, sound = 0, None
        while position < self.num_samples:
            if sound is None or rng.random() > 0.2:
                group = self.groups[rng.integers(len(self.groups))]
                sound = group[rng.integers(len(group))]
                samples = self._samples(sound, rng)
            first = position == 0 and not ids
            piece = samples[rng.integers(max(1, len(samples) - self.num_samples // 4)) :] if first else samples
            piece = piece[: self.num_samples - position]
            audio[position : position + len(piece)] = piece
            ids.append(sound.id)
            position += max(1, len(piece)) + self._gap(rng)
        return audio, ids

    def _samples(self, sound: Sound, rng: np.random.Generator) -> np.ndarray:
        samples = sound.samples.astype(np.float32) / 32767
        if not self.augment:
            return samples
        samples = samples * _gain(rng, -12, 3)
        if rng.random() < 0.3:
            # Clips longer than two windows would cost time for samples that are then not used.
            start = rng.integers(max(1, len(samples) - 2 * self.num_samples))
            speed = 1 + rng.uniform(-SPEED_CHANGE, SPEED_CHANGE)
            samples = soxr.resample(samples[start : start + 2 * self.num_samples], 1000, round(1000 * speed), quality="MQ")
        return samples * min(1.0, PEAK / max(float(np.abs(samples).max(initial=0)), 1e-9))

    def _gap(self, rng: np.random.Generator) -> int:
        """Samples of silence after a clip: none in half of the draws, else up to 0.15 of a window, rarely up to half of one."""
        kind = rng.random()
        share = 0.0 if kind < 0.5 else 0.15 if kind < 0.95 else 0.5
        return int(rng.uniform(0, share) * self.num_samples)


def _gain(rng: np.random.Generator, low: float, high: float) -> np.float32:
    """A random factor, uniform in dB."""
    return np.float32(10 ** (rng.uniform(low, high) / 20))
