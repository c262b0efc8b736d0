"""Time statistics of a checkpoint's own codec latents: no listener, but there is nothing to download, and it is quick.

Not comparable between checkpoints, nor with anybody's published numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from meanaudio import DEFAULT_MODEL
from meanaudio.checkpoint import file_hash, read_json
from meanaudio.codec.codec import VAE_FILE, load_codec
from meanaudio.config import CheckpointConfig, parse
from meanaudio.convert.hub import find_checkpoint
from meanaudio.evaluation.extractors.frames import at_least, exactly
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint
from meanaudio.evaluation.latents import summary

VERSION = "1"


class Latents:
    """Clips at the codec's rate -> mean, deviation and mean change of each normalised latent channel over time, one row [3 C] a clip.

    weights: a checkpoint's folder or name; the default checkpoint's if left out. A clip shorter than four latents is zero-padded to them.
    """

    name = "latents"
    classes: tuple[str, ...] | None = None
    multi_label = False

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        folder = find_checkpoint(weights or DEFAULT_MODEL)
        config = parse(CheckpointConfig, read_json(folder / "config.json"), str(folder / "config.json"))
        self.codec = load_codec(folder).to(device)
        self.mean, self.std = (torch.tensor(x, device=device) for x in (config.latent_mean, config.latent_std))
        self.sample_rate = self.codec.spec.sample_rate
        self.dim = 3 * len(config.latent_mean)
        self.device = device
        self.fingerprint = fingerprint(self.name, VERSION, file_hash(folder / VAE_FILE), str(config.latent_mean), str(config.latent_std))

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        shortest = 4 * self.codec.spec.samples_per_latent
        features = []
        for clip in clips:
            latents = self.codec.encode(at_least(clip, shortest)[None].to(self.device)).mean
            features.append(ClipFeatures(summary((latents - self.mean) / self.std).float().cpu(), None))
        return features
