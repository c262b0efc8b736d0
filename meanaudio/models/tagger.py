"""A small network that hears which concepts a clip's latents hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from meanaudio.checkpoint import load_module, read_json
from meanaudio.config import TaggerCheckpointConfig, parse
from meanaudio.errors import InputError
from meanaudio.models.layers import SequenceConv, SwiGLU

TAGGER_FILE = "tagger.safetensors"


class Tagger(nn.Module):
    """Codec latents [B, L, C] of any length -> logits [B, K] over `classes`, for one softmax.

    Convolutions over time, then mean and maximum over time. mean, std [C]: buffers that normalise latents as they were in training.
    related [K, K]: a buffer, True for classes that captions name together, as guitar and strums: the one is no mistake for the other.
    """

    mean: Tensor
    std: Tensor
    related: Tensor

    def __init__(self, *, latent_dim: int, width: int, blocks: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.register_buffer("related", torch.zeros(len(classes), len(classes), dtype=torch.bool))
        self.into = SequenceConv(latent_dim, width, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.blocks = nn.ModuleList(SwiGLU(width, 3) for _ in range(blocks))
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, len(classes))

    def forward(self, latents: Tensor) -> Tensor:
        x = self.into((latents - self.mean) / self.std)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.out(self.norm(torch.cat([x.mean(1), x.amax(1)], 1)))


def make_tagger(config: TaggerCheckpointConfig) -> Tagger:
    return Tagger(latent_dim=config.latent_dim, width=config.width, blocks=config.blocks, classes=config.classes)


def load_tagger(folder: Path, codecs: set[str]) -> Tagger:
    """A tagger's folder, in evaluation mode and frozen. Raises InputError if it hears latents of none of `codecs`, hashes of VAE files."""
    config = parse(TaggerCheckpointConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    if config.codec_hash not in codecs:
        raise InputError(f"{folder}: hears latents of codec {config.codec_hash[:12]}, this network makes those of {min(codecs)[:12]}")
    return load_module(partial(make_tagger, config), folder / TAGGER_FILE)
