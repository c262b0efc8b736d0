"""What an extractor is, and what it says of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class ClipFeatures:
    """What an extractor says of one clip, float32 on the CPU.

    embeddings: [F, D]; one row where the metric takes one vector a clip, a row a frame where it pools all frames.
    logits: [K] before softmax or sigmoid, None for an extractor without classes.
    """

    embeddings: Tensor
    logits: Tensor | None


class Extractor(Protocol):
    """fingerprint: sha256 over the weights and our preprocessing's version, so that stored features are never silently stale.

    classes: names of the K logits, or None. multi_label: the logits are for sigmoids, not for one softmax.
    """

    name: str
    sample_rate: int
    dim: int
    classes: tuple[str, ...] | None
    multi_label: bool
    fingerprint: str

    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        """clips: mono [N_i] at `sample_rate`, in [-1, 1], of any lengths."""
        ...
