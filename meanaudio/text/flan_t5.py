"""FLAN-T5-large's encoder (341 M, Apache-2.0): token states. Files: config.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio.precision import computing_in
from meanaudio.text.files import load_encoder, load_tokenizer, locate, tokenize

REPOS = ("google/flan-t5-large",)
FOLDER = "flan_t5"  # inside a checkpoint
FILES = ("config.json", "model.safetensors", "tokenizer.json")
SAME_WEIGHTS = {"encoder.embed_tokens.weight": "shared.weight"}


class FlanT5:
    """captions -> token states [B, max_tokens, 1024] and mask [B, max_tokens].

    Always max_tokens long, as in the release [code]. The states at padding are T5's own, not zero: a network that attends to padding
    (NetworkConfig.mask_text False) was trained with them; one that does not never sees them.
    folder: where the files lie; without them there the Hugging Face cache is looked into. They are read at the first call.
    """

    def __init__(self, folder: Path, *, max_tokens: int = 77, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.max_tokens, self.device, self.dtype = folder, max_tokens, device, dtype

    @cached_property
    def files(self) -> dict[str, Path]:
        return locate(self.folder, FILES, REPOS)

    @property
    def weights(self) -> list[Path]:
        """The files that decide what comes out."""
        return [self.files["model.safetensors"], self.files["tokenizer.json"]]

    @cached_property
    def model(self) -> torch.nn.Module:
        # the published file holds the decoder too; ours, written by `meanaudio convert`, does not
        names: dict[str, Any] = {"ignore": ("decoder.", "lm_head."), "aliases": SAME_WEIGHTS}
        return load_encoder("T5EncoderModel", "T5Config", self.files, self.device, self.dtype, **names)

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.files["tokenizer.json"], self.max_tokens)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = (x.to(self.device) for x in tokenize(self.tokenizer, captions))
        with computing_in(self.dtype, tokens.device):
            return self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float(), mask
