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
from meanaudio.models.listener import Listener

TAGGER_FILE = "tagger.safetensors"


class Tagger(Listener):
    """Codec latents [B, L, C] of any length -> logits [B, K] over `classes`, for one softmax.

    related [K, K]: a buffer, True for classes that captions name together, as guitar and strums: the one is no mistake for the other.
    """

    related: Tensor

    def __init__(self, *, latent_dim: int, width: int, blocks: int, classes: Sequence[str]) -> None:
        super().__init__(latent_dim=latent_dim, width=width, blocks=blocks)
        self.classes = tuple(classes)
        self.register_buffer("related", torch.zeros(len(classes), len(classes), dtype=torch.bool))
        self.out = nn.Linear(2 * width, len(classes))

    def forward(self, latents: Tensor) -> Tensor:
        return self.out(self.pooled(latents))


def make_tagger(config: TaggerCheckpointConfig) -> Tagger:
    return Tagger(latent_dim=config.latent_dim, width=config.width, blocks=config.blocks, classes=config.classes)


def load_tagger(folder: Path, codecs: set[str]) -> Tagger:
    """A tagger's folder, in evaluation mode and frozen. Raises InputError if it hears latents of none of `codecs`, hashes of VAE files."""
    config = parse(TaggerCheckpointConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    if config.codec_hash not in codecs:
        raise InputError(f"{folder}: hears latents of codec {config.codec_hash[:12]}, this network makes those of {min(codecs)[:12]}")
    return load_module(partial(make_tagger, config), folder / TAGGER_FILE)
