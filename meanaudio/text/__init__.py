"""Text encoders, by name. Each is a callable: captions -> TextFeatures on the encoder's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from meanaudio.errors import InputError
from meanaudio.text.minilm import MiniLM
from meanaudio.types import TextFeatures


class TextEncoder(Protocol):
    """fingerprint names the weights, so that stored features can be told from another encoder's."""

    sequence_dim: int
    pooled_dim: int
    fingerprint: str

    def __call__(self, captions: Sequence[str]) -> TextFeatures: ...


ENCODERS: dict[str, Callable[..., TextEncoder]] = {"minilm": MiniLM}


def make_encoder(name: str, *, max_tokens: int, device: str = "cpu") -> TextEncoder:
    """Build the encoder called `name`; its weights are read at the first call."""
    if name not in ENCODERS:
        raise InputError(f"unknown text encoder {name!r}: must be one of {', '.join(ENCODERS)}")
    return ENCODERS[name](max_tokens=max_tokens, device=device)
