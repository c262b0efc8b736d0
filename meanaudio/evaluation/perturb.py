"""Mels as they might also have been: what a network is to please should not hang on one of them (as the cutouts do by which pictures are
guided by CLIP)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEFT = 0.25  # share of rows that stay as they are
CURVE = 0.2  # log10 magnitude: deviation of the slowest of CURVES cosines that change the tone, 4 dB
CURVES = 5
FLOOR = (-3.5, -1.2)  # log10 magnitude of the noise below the loud parts of the sound
LOUD = 0.98  # quantile of a mel
TILT = 0.5  # of the noise, over all bands
ROUGH = 0.1  # deviation of the noise
GONE = 0.5  # share of rows that lose some bands, and of those that lose a moment
DEPTH = 3.0  # log10 magnitude below the loud parts of what is gone


def perturb(mel: Tensor, seeds: Sequence[int]) -> Tensor:
    """log10 mel [B, M, F] -> another tone, a floor of noise, some bands and a moment gone; a row's own is drawn from its seed.

    All levels are relative to the row's own, with their gradient: a level held fixed would make it pay to be louder.
    """
    return torch.stack([_perturb_row(row, seed) for row, seed in zip(mel, seeds, strict=True)])


def _perturb_row(mel: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    if uniform() < LEFT:
        return mel
    bands, frames = mel.shape
    place, number = torch.linspace(0, 1, bands), torch.arange(1, CURVES + 1)
    gains = CURVE * torch.randn(CURVES, generator=generator) / number.sqrt()
    curve = (gains[:, None] * torch.cos(math.pi * number[:, None] * place)).sum(0)
    tilt = TILT * torch.randn((), generator=generator) * (place - 0.5)
    rough = ROUGH * torch.randn(mel.shape, generator=generator)
    noise = (uniform(*FLOOR) + tilt[:, None] + rough).to(mel)
    kept = torch.ones(bands, frames)
    for size, axis in ((bands // 6, kept), (frames // 8, kept.T)):
        if size > 2 and uniform() < GONE:
            width = int(uniform(2, size))
            start = int(uniform(0, len(axis) - width))
            axis[start : start + width] = 0
    kept = kept.to(mel)
    mel = mel + curve.to(mel)[:, None]
    loud = mel.flatten().quantile(LOUD)
    ln10 = math.log(10)
    mel = torch.logaddexp(mel * ln10, (loud + noise) * ln10) / ln10
    return mel * kept + (loud - DEPTH) * (1 - kept)
