"""The release's pair: FLAN-T5 for the sequence, LAION-CLAP for the pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from meanaudio.text import clap, flan_t5
from meanaudio.text.files import name_with_hash
from meanaudio.types import TextFeatures


class FlanT5Clap:
    """captions -> sequence [B, max_tokens, 1024] of FLAN-T5 and pooled [B, 512] of CLAP; the mask is True at T5's real tokens.

    folder: a checkpoint's; the encoders' files lie in flan_t5/ and clap/ inside it (see there for what else is looked into).
    """

    sequence_dim = 1024
    pooled_dim = 512

    def __init__(self, *, folder: Path, max_tokens: int = 77, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.flan_t5 = flan_t5.FlanT5(folder / flan_t5.FOLDER, max_tokens=max_tokens, device=device, dtype=dtype)
        self.clap = clap.ClapText(folder / clap.FOLDER, max_tokens=max_tokens, device=device, dtype=dtype)

    @cached_property
    def fingerprint(self) -> str:
        return name_with_hash("flan-t5 + LAION-CLAP", [*self.flan_t5.weights, *self.clap.weights])

    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        sequence, mask = self.flan_t5(captions)
        return TextFeatures(sequence, self.clap(captions), mask)
