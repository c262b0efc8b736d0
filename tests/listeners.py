"""A listener without learned weights, for tests: band energies and their changes, and a fixed random projection to classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from fakes import normals
from torch import Tensor

from meanaudio.evaluation.extractors import ClipFeatures

BANDS, CLASSES = 24, 12


class Bands:
    """embeddings [1, 2 BANDS]: mean of the log band energies and of their absolute changes between frames of 32 ms."""

    name = "bands"
    sample_rate = 16000
    dim = 2 * BANDS
    classes = tuple(f"class {k}" for k in range(CLASSES))
    multi_label = True
    fingerprint = hashlib.sha256(b"bands").hexdigest()

    def __init__(self, *, weights=None, device: str = "cpu") -> None:
        self.projection = normals(2 * BANDS, CLASSES, seed=5)
        self.heard = 0

    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        self.heard += len(clips)
        return [self._one(clip) for clip in clips]

    def _one(self, clip: Tensor) -> ClipFeatures:
        clip = torch.nn.functional.pad(clip, (0, max(0, 1024 - len(clip))))
        power = torch.stft(clip, 512, 256, window=torch.hann_window(512), center=False, return_complex=True).abs().square()
        edges = torch.logspace(0.3, 2.408, BANDS + 1).round().long()
        bands = torch.stack([power[low : max(low + 1, high)].mean(0) for low, high in zip(edges[:-1], edges[1:], strict=True)])
        log = (bands + 1e-6).log10()
        embedding = torch.cat([log.mean(1), log.diff(dim=1).abs().mean(1)])
        return ClipFeatures(embedding[None], embedding @ self.projection)


class BandsWithText(Bands):
    """The same with a text tower: a caption's embedding is drawn from its hash."""

    name = "bands-with-text"
    classes = None
    multi_label = False

    def _one(self, clip: Tensor) -> ClipFeatures:
        return ClipFeatures(super()._one(clip).embeddings, None)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(caption.encode()).digest()[:6], "big") for caption in captions]
        return torch.stack([normals(self.dim, seed=seed) for seed in seeds])
