"""The judge of a reward: how well what is heard of a mel, by a network that knows sound effects, fits a caption."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.checkpoint import load_into, load_module, read_json
from meanaudio.codec.codec import VAE
from meanaudio.codec.mel import slaney_points
from meanaudio.config import JudgeCheckpointConfig, MelConfig, TextConfig, parse
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.aisfx import DIM, HOP, N_FFT, SAMPLE_RATE, AisfxNetwork, band_filters, compress, load_aisfx
from meanaudio.models.scorer import MAX_SCALE
from meanaudio.types import TextFeatures

JUDGE_FILE = "judge.safetensors"
LEAST_FRAMES = 8  # the network halves them three times
FIRST_SCALE = 2.3  # of cosines, as a logarithm
# A mel has no phase: the power of a band is read off its neighbours' magnitudes, and the peak of the sound off its loudest frame. Both
# factors are medians over recordings of the default corpus; the first is 10^3.03 to 10^3.21 in the bands under 8 kHz.
POWER = 10**3.15
PEAK = 0.0284
LOUDEST = 2.5  # log10 magnitude of a mel, above which what a network makes is cut off


class MelEars(nn.Module):
    """log10 mel [B, M, F] of `config` -> aiSFX's features [B, 512], through which gradients flow back to the mel.

    What aiSFX would see of the sound, a mel of other bands, other frames and clips with a peak of 1, is made of the mel it already has.
    """

    bands: Tensor
    widths: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.frame_rate = config.sample_rate / config.hop_length
        points = slaney_points(config.n_mels + 2, config.f_min, config.f_max).float()
        at = _between(torch.arange(N_FFT // 2 + 1) * (SAMPLE_RATE / N_FFT), points[1:-1], config.f_max)
        self.register_buffer("bands", band_filters() @ at)  # [96, M]
        self.register_buffer("widths", (points[2:] - points[:-2])[:, None] / 2)
        self.network = AisfxNetwork()

    def frames(self, mel: Tensor) -> Tensor:
        """[B, M, F] -> [B, T, 96], what the network sees. In float32, also under autocast."""
        with torch.autocast(mel.device.type, enabled=False):
            power = 10 ** (2 * mel.float().clamp(max=LOUDEST))
            # With its gradient: held fixed, it lets a network please the judge by a level that the next look takes away again.
            peak = PEAK**2 * (power * self.widths).sum(1).amax(1).clamp_min(1e-9)
            last = mel.shape[2] - 1
            count = 1 + int(mel.shape[2] / self.frame_rate * SAMPLE_RATE) // HOP
            place = (torch.arange(count, device=mel.device) * (HOP / SAMPLE_RATE * self.frame_rate) - 0.5).clamp(0, last)
            before = place.long().clamp(max=max(0, last - 1))
            power = torch.lerp(power[..., before], power[..., (before + 1).clamp(max=last)], place - before)
            return compress(POWER / peak[:, None, None] * (self.bands @ power).mT)

    def forward(self, mel: Tensor) -> Tensor:
        frames = self.frames(mel)
        return self.network(F.pad(frames, (0, 0, 0, max(0, LEAST_FRAMES - frames.shape[1])))).float()


def _between(frequencies: Tensor, centres: Tensor, f_max: float) -> Tensor:
    """[N, M] weights by which values at `centres` [M] are interpolated at `frequencies` [N]; the outermost go on, and end at f_max."""
    above = torch.searchsorted(centres, frequencies).clamp(1, len(centres) - 1)
    share = ((frequencies - centres[above - 1]) / (centres[above] - centres[above - 1])).clamp(0, 1)
    weights = torch.zeros(len(frequencies), len(centres))
    weights.scatter_(1, above[:, None] - 1, 1 - share[:, None])
    weights.scatter_(1, above[:, None], share[:, None])
    return weights * (frequencies <= f_max)[:, None]


class Judge(nn.Module):
    """Features of sounds [B, 512] and sentence vectors [B, P] into one space of unit vectors.

    mean, std [512]: buffers, of recordings' features. others [K, P]: sentence vectors of captions that a clip's own is told apart from;
    captions whose sentence vectors have a cosine of `near` or more to it take no part.
    """

    mean: Tensor
    std: Tensor
    others: Tensor

    def __init__(self, *, pooled_dim: int, width: int, dim: int, others: int, near: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.near = near
        self.register_buffer("mean", torch.zeros(DIM))
        self.register_buffer("std", torch.ones(DIM))
        self.register_buffer("others", torch.zeros(others, pooled_dim))
        self.audio = _two_layers(DIM, width, dim, dropout)
        self.text = _two_layers(pooled_dim, width, dim, dropout)
        self.log_scale = nn.Parameter(torch.tensor([FIRST_SCALE]))

    def hear(self, features: Tensor) -> Tensor:
        """[B, 512] -> [B, dim]."""
        return F.normalize(self.audio((features - self.mean) / self.std), dim=-1)

    def read(self, pooled: Tensor) -> Tensor:
        """[B, P] -> [B, dim]."""
        return F.normalize(self.text(F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5), dim=-1)

    def forward(self, features: Tensor, pooled: Tensor) -> Tensor:
        """How little each clip fits its own caption, among those of the batch and the others: cross entropy in nats [B]."""
        captions = torch.cat([pooled, self.others])
        unit = F.normalize(captions, dim=-1)
        own = torch.arange(len(pooled), device=pooled.device)
        ignored = (unit[: len(pooled)] @ unit.T >= self.near).scatter(1, own[:, None], False)
        logits = self.log_scale.exp().clamp_max(MAX_SCALE) * self.hear(features) @ self.read(captions).T
        return F.cross_entropy(logits.masked_fill(ignored, float("-inf")), own, reduction="none")


def _two_layers(into: int, width: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, out))


def make_judge(config: JudgeCheckpointConfig, dropout: float = 0.0) -> Judge:
    return Judge(**config.model_dump(include={"pooled_dim", "width", "dim", "others", "near"}), dropout=dropout)


def make_ears(config: MelConfig, device: torch.device) -> MelEars:
    """With aiSFX's published weights, frozen. Raises InputError where they cannot be had."""
    ears = MelEars(config)
    load_into(ears.network, load_aisfx(None), "aiSFX")
    return ears.requires_grad_(False).eval().to(device)


def load_opinion(
    folder: Path, vae: VAE, codec: MelConfig, *, codec_hash: str, text: TextConfig, mean: Tensor, std: Tensor
) -> Callable[[Tensor, TextFeatures], Tensor]:
    """What the judge in `folder` says of normalised latents that `vae` decodes: (latents [B, L, C], text) -> [B], see `Judge.forward`.

    mean, std [C]: what denormalises. Raises InputError for a judge that was taught with other latents, mels or another text encoder.
    """
    found = parse(JudgeCheckpointConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    wanted = {"codec_hash": codec_hash, "text": text, "mel": codec}
    if other := [f"{key} {getattr(found, key)} in place of {value}" for key, value in wanted.items() if getattr(found, key) != value]:
        raise InputError(f"judge {folder}: it was taught with {', '.join(other)}")
    judge = load_module(partial(make_judge, found), folder / JUDGE_FILE).to(mean.device)
    ears, vae = make_ears(codec, mean.device), vae.to(mean.device)

    def opinion(latents: Tensor, text: TextFeatures) -> Tensor:
        features = ears(vae.decode(latents * std + mean))
        with torch.autocast(latents.device.type, enabled=False):
            return judge(features, text.pooled.float())

    return opinion
