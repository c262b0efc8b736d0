"""A small network that says how well a clip's latents fit a caption, and a list of the captions that a checkpoint was taught."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.checkpoint import load_module, read_json
from meanaudio.config import ScorerCheckpointConfig
from meanaudio.errors import InputError
from meanaudio.models.listener import Listener

SCORER_FILE, KNOWN_FILE = "scorer.safetensors", "known.json"
FIRST_SCALE = 10.0
MAX_SCALE = 50.0  # of cosines in the softmax
ALIKE = 0.6  # cosine of sentence vectors from which on captions are taken to mean the same: "rain falls", "heavy rain"


class Scorer(Listener):
    """Codec latents and a text encoder's sentence vectors into one space of unit vectors; their cosine is the score, in [-1, 1].

    known_text [K, P]: a buffer, unit sentence vectors of the K captions `known`, which come with the number of recordings each had.
    outside: cosine to the nearest of them below which a prompt counts as unknown. log_scale: of the inverse temperature in training.
    """

    known_text: Tensor

    def __init__(
        self, *, latent_dim: int, pooled_dim: int, dim: int, width: int, blocks: int, outside: float, known: Mapping[str, int]
    ) -> None:
        super().__init__(latent_dim=latent_dim, width=width, blocks=blocks)
        self.dim, self.outside, self.known = dim, outside, dict(known)
        self.register_buffer("known_text", torch.zeros(len(known), pooled_dim))
        self.audio_out = nn.Linear(2 * width, dim)
        self.text_out = nn.Sequential(nn.Linear(pooled_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.log_scale = nn.Parameter(torch.tensor([math.log(FIRST_SCALE)]))

    def hear(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> unit vectors [B, dim]."""
        return F.normalize(self.audio_out(self.pooled(latents)), dim=-1)

    def read(self, pooled: Tensor) -> Tensor:
        """Sentence vectors [B, P] -> unit vectors [B, dim]."""
        return F.normalize(self.text_out(F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5), dim=-1)

    def forward(self, latents: Tensor, pooled: Tensor) -> Tensor:
        """How well each clip [B, L, C] fits its own caption [B, P]: [B]."""
        return (self.hear(latents) * self.read(pooled)).sum(-1)

    def cosines(self, pooled: Tensor) -> Tensor:
        """Of sentence vectors [B, P] to those of the known captions: [B, K]."""
        return F.normalize(pooled.float(), dim=-1) @ self.known_text.T

    def nearest(self, pooled: Tensor, count: int = 3) -> list[list[tuple[str, float]]]:
        """For each of the sentence vectors [B, P] the nearest known captions and their cosines, the nearest first."""
        found = self.cosines(pooled).topk(min(count, len(self.known)))
        captions = list(self.known)
        return [
            [(captions[i], cosine) for i, cosine in zip(*row, strict=True)]
            for row in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]


class CaptionClassifier:
    """A scorer as a classifier of latents (guidance.Classifier): which of the captions that it was taught does a clip fit?"""

    related = None

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.classes = scorer, tuple(scorer.known)
        self.text = scorer.read(scorer.known_text)

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents [B, L, C] -> logits [B, K], of the softmax that the scorer was trained by."""
        return self.scorer.log_scale.exp() * self.scorer.hear(latents) @ self.text.T

    def wanted(self, pooled: Tensor) -> Tensor:
        """[B, K] True at the captions that mean what the prompts with sentence vectors [B, P] do, or come nearest to it."""
        cosines = self.scorer.cosines(pooled)
        return cosines >= cosines.amax(1, keepdim=True).clamp_max(ALIKE)


def make_scorer(config: ScorerCheckpointConfig, known: Mapping[str, int]) -> Scorer:
    sizes = config.model_dump(include={"latent_dim", "pooled_dim", "dim", "width", "blocks", "outside"})
    return Scorer(**sizes, known=known)


def load_scorer(folder: Path, config: ScorerCheckpointConfig, *, finite: bool = True) -> Scorer:
    """The scorer in `folder`, in evaluation mode and frozen. Strict; see `load_module`."""
    return load_module(partial(make_scorer, config, read_known(folder)), folder / SCORER_FILE, finite=finite)


def read_known(folder: Path) -> dict[str, int]:
    """Captions and their numbers of recordings. Raises InputError if the list is missing or not one."""
    known = read_json(folder / KNOWN_FILE)
    if not known or not all(isinstance(count, int) and count > 0 for count in known.values()):
        raise InputError(f"{folder / KNOWN_FILE}: must give each caption the number of its recordings")
    return known
