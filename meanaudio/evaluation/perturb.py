"""Mels as they might also have been: what a network is to please should not hang on one of them (as the cutouts do by which pictures are
guided by CLIP)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

LEFT = 0.25  # share of rows that stay as they are
SHIFT = 1.5  # bands: deviation of how far everything moves down
STRETCH = 0.05  # deviation of the speed, about the middle
CURVE = 0.2  # log10 magnitude: deviation of the slowest of CURVES cosines that change the tone, 4 dB
CURVES = 5
FLOOR = (-3.5, -1.2)  # log10 magnitude of the noise below the loud parts of the sound
LOUD = 0.98  # quantile of a mel
TILT = 0.5  # of the noise, over all bands
ROUGH = 0.1  # deviation of the noise
GONE = 0.5  # share of rows that lose some bands, and of those that lose a moment
DEPTH = 3.0  # log10 magnitude below the loud parts of what is gone


@dataclass(frozen=True)
class Perturbation:
    """Of B mels of M bands and F frames. left [B] True: as it was. shift, speed [B]: in bands downwards, and a factor; past an
    end its outermost band or frame goes on. tone [B, M] in log10 magnitude, noise [B, M, F]
    below the loud parts; kept [B, M, F] 0 where all is gone, otherwise 1.
    """

    left: Tensor
    shift: Tensor
    speed: Tensor
    tone: Tensor
    noise: Tensor
    kept: Tensor


def draw_perturbation(seed: int, bands: int, frames: int) -> Perturbation:
    """Of one mel, without the first axis."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    place, number = torch.linspace(0, 1, bands), torch.arange(1, CURVES + 1)
    gains = CURVE * normal(CURVES) / number.sqrt()
    tone = (gains[:, None] * torch.cos(math.pi * number[:, None] * place)).sum(0)
    noise = uniform(*FLOOR) + TILT * normal() * (place - 0.5)[:, None] + ROUGH * normal(bands, frames)
    kept = torch.ones(bands, frames)
    for size, axis in ((bands // 6, kept), (frames // 8, kept.T)):
        if size > 2 and uniform() < GONE:
            width = int(uniform(2, size))
            start = int(uniform(0, len(axis) - width))
            axis[start : start + width] = 0
    return Perturbation(torch.tensor(uniform() < LEFT), SHIFT * normal(), 1 + STRETCH * normal(), tone, noise, kept)


def perturb(mel: Tensor, seeds: Sequence[int]) -> Tensor:
    """log10 mel [B, M, F] -> a little higher or lower, slower or faster, of another tone, with a floor of noise, some bands and a moment
    gone; a row's own is drawn from its seed, and a quarter of the rows stay as they are.
    """
    assert len(seeds) == len(mel)
    drawn = [draw_perturbation(seed, *mel.shape[1:]) for seed in seeds]
    return apply_perturbation(
        mel, Perturbation(*(torch.stack([getattr(p, f.name) for p in drawn]).to(mel.device) for f in fields(Perturbation)))
    )


def apply_perturbation(mel: Tensor, by: Perturbation) -> Tensor:
    """All levels are relative to the row's own, with their gradient: a level held fixed would make it pay to be louder."""
    rows, bands, frames = mel.shape
    # By hand: autocast would round the places that affine_grid makes to half a frame.
    along = torch.linspace(-1, 1, frames, device=mel.device) * by.speed[:, None]
    across = torch.linspace(-1, 1, bands, device=mel.device) + 2 * by.shift[:, None] / max(1, bands - 1)
    places = torch.stack([along[:, None].expand(rows, bands, frames), across[:, :, None].expand(rows, bands, frames)], -1)
    new = F.grid_sample(mel[:, None], places, padding_mode="border", align_corners=True)[:, 0] + by.tone[:, :, None]
    loud = new.flatten(1).quantile(LOUD, 1)[:, None, None]
    new = torch.logaddexp(new * math.log(10), (loud + by.noise) * math.log(10)) / math.log(10)
    new = new * by.kept + (loud - DEPTH) * (1 - by.kept)
    return torch.where(by.left[:, None, None], mel, new)
