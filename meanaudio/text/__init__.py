"""Text encoders, by name. Each is a callable: captions -> TextFeatures on the encoder's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from meanaudio.errors import InputError
from meanaudio.text.flan_t5_clap import FlanT5Clap
from meanaudio.text.minilm import MiniLM
from meanaudio.types import TextFeatures


class TextEncoder(Protocol):
    """fingerprint: name and hash of the weights, so that stored features can be told from another encoder's."""

    sequence_dim: int
    pooled_dim: int

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, captions: Sequence[str]) -> TextFeatures: ...


ENCODERS: dict[str, Callable[..., TextEncoder]] = {"minilm": MiniLM, "flan_t5+clap": FlanT5Clap}
IN_CHECKPOINT = {"flan_t5+clap"}  # encoders whose files lie in the checkpoint's folder


def make_encoder(
    name: str, *, max_tokens: int, device: str = "cpu", folder: Path | None = None, dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """Build the encoder called `name`; its weights are read at the first call.

    folder, dtype: the checkpoint's, and the precision of matrix products, for the large encoders that lie there.
    """
    if name not in ENCODERS:
        raise InputError(f"unknown text encoder {name!r}: must be one of {', '.join(ENCODERS)}")
    if name not in IN_CHECKPOINT:
        return ENCODERS[name](max_tokens=max_tokens, device=device)
    if folder is None:
        raise InputError(f"text encoder {name!r} is read from a checkpoint's folder, and here is none")
    return ENCODERS[name](max_tokens=max_tokens, device=device, folder=folder, dtype=dtype)
