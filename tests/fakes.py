"""Small stand-ins that several tests share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from meanaudio.checkpoint import read_json, save_weights, write_json
from meanaudio.config import CodecConfig, NetworkConfig, ScorerCheckpointConfig, VAEConfig, VocoderConfig
from meanaudio.models.scorer import KNOWN_FILE, SCORER_FILE, make_scorer
from meanaudio.types import TextFeatures

LATENT_DIM = 8
TINY_CODEC = CodecConfig(
    vae=VAEConfig(latent_dim=LATENT_DIM, width=16, blocks=1), vocoder=VocoderConfig(width=16, intermediate=32, blocks=1)
)


def tiny_network(**changes) -> NetworkConfig:
    """Config of the smallest network, 16-wide text; `changes` win."""
    return NetworkConfig.model_validate({"preset": "tiny", "latent_dim": LATENT_DIM, "sequence_dim": 16, "pooled_dim": 16, **changes})


def fill(module: nn.Module, seed: int = 0, std: float = 0.1) -> nn.Module:
    """Small normals in every parameter, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


def random_text(lengths: Sequence[int], width: int = 16, seed: int = 0) -> TextFeatures:
    """Features of one caption a length, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    sequence = torch.randn(*mask.shape, width, generator=generator) * mask[..., None]
    return TextFeatures(sequence, torch.randn(len(lengths), width, generator=generator), mask)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class WordHash:
    """A text encoder without weights: each word's features are drawn from the word's hash; the first token stands for the start."""

    sequence_dim = 384
    pooled_dim = 384
    fingerprint = "word-hash"

    def __init__(self, *, max_tokens: int = 64, device: str = "cpu") -> None:
        self.max_tokens, self.device = max_tokens, device

    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        rows = [torch.stack([_word(w) for w in ["<start>", *caption.split()][: self.max_tokens]]) for caption in captions]
        sequence = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(sequence.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
        return TextFeatures(sequence, torch.stack([row.mean(0) for row in rows]), mask).to(self.device)


class NarrowWordHash(WordHash):
    """As wide as the tiny network's text."""

    sequence_dim = pooled_dim = 16

    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        found = super().__call__(captions)
        return TextFeatures(found.sequence[..., :16], found.pooled[..., :16], found.mask)


def _word(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:6], "big")
    return torch.randn(WordHash.sequence_dim, generator=torch.Generator().manual_seed(seed))


def floats(path) -> dict[str, Tensor]:
    """Stored tensors; every floating one as float32."""
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}


def write_scorer(folder: Path, checkpoint: Path, known: dict[str, int], outside: float = 0.8) -> ScorerCheckpointConfig:
    """A scorer's folder for that tiny checkpoint: random weights, WordHash's vectors of what it knows."""
    settings = read_json(checkpoint / "config.json")
    config = ScorerCheckpointConfig(
        codec_hash=settings["codec_hash"], text=settings["text"], latent_dim=LATENT_DIM, pooled_dim=WordHash.pooled_dim,
        width=8, blocks=1, dim=16, outside=outside,
    )  # fmt: skip
    scorer = fill(make_scorer(config, known), 4, 0.3)
    scorer.known_text.copy_(nn.functional.normalize(WordHash()(list(known)).pooled, dim=-1))
    save_weights(folder / SCORER_FILE, scorer.state_dict())
    write_json(folder / KNOWN_FILE, known)
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return config


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
