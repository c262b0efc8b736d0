"""The release's text encoders in the form that transformers reads: LAION's CLAP text tower, and FLAN-T5's encoder half."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio.checkpoint import read_json, without_weights
from meanaudio.convert.foreign import check_names, count, read_foreign, rename, rename_back, shape_of
from meanaudio.errors import InputError

CLAP_NAMES = (
    ("^text_branch.", "^text_model."),
    ("^text_projection.0.", "^text_projection.linear1."),
    ("^text_projection.2.", "^text_projection.linear2."),
)
# Tables of the transformers class that are no weights; old files of LAION's hold the first.
CLAP_TABLES = ("embeddings.position_ids", "embeddings.token_type_ids")
HEAD_DIM = 64  # of RoBERTa's attention, whatever its width

T5_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def convert_clap(state: Mapping[str, Tensor], source: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights of `ClapTextModelWithProjection` from LAION's checkpoint. Strict in its text part; the rest is left out."""
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    plain = {k.removeprefix("module."): v for k, v in state.items()}
    text = {k: v for k, v in plain.items() if k.startswith(("text_branch.", "text_projection.")) and not k.endswith(CLAP_TABLES)}
    embedding = "text_branch.embeddings."
    what = "a LAION-CLAP checkpoint"
    vocabulary, width = shape_of(text, f"{embedding}word_embeddings.weight", source, what)
    config = ClapTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=count(text, "text_branch.encoder.layer."),
        num_attention_heads=max(1, width // HEAD_DIM),
        intermediate_size=shape_of(text, "text_branch.encoder.layer.0.intermediate.dense.weight", source, what)[0],
        max_position_embeddings=shape_of(text, f"{embedding}position_embeddings.weight", source, what)[0],
        projection_dim=shape_of(text, "text_projection.0.weight", source, what)[0],
        layer_norm_eps=1e-5,  # roberta-base's, which LAION's tower is; the class's own default is another
        architectures=["ClapTextModelWithProjection"],
    )
    with without_weights():
        expected = ClapTextModelWithProjection(config).state_dict()
    wanted = {rename_back(k, CLAP_NAMES): v.shape for k, v in expected.items() if not k.endswith(CLAP_TABLES)}
    check_names(text, wanted, source)
    ours = {rename(k, CLAP_NAMES): v for k, v in text.items()}
    positions = torch.arange(config.max_position_embeddings)[None]
    ours |= {"text_model.embeddings.position_ids": positions, "text_model.embeddings.token_type_ids": torch.zeros_like(positions)}
    return json.loads(config.to_json_string(use_diff=False)), ours


def convert_flan_t5(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the encoder's weights from a folder of google/flan-t5-large: the decoder, two thirds of it, is left out. Strict."""
    from transformers import T5Config, T5EncoderModel

    weights = next((folder / name for name in T5_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(f"{folder}: none of {', '.join(T5_WEIGHTS)} in it")
    values = read_json(folder / "config.json")
    if values.get("model_type") != "t5":
        raise InputError(f"{folder / 'config.json'}: model_type {values.get('model_type')!r}; FLAN-T5's is 't5'")
    config = T5Config.from_dict(values)
    copy = "encoder.embed_tokens.weight"  # the same table as shared.weight; some files state it twice
    state = {k: v for k, v in read_foreign(weights).items() if k.startswith(("encoder.", "shared.")) and k != copy}
    with without_weights():
        expected = T5EncoderModel(config).state_dict()
    check_names(state, {k: v.shape for k, v in expected.items() if k != copy}, weights)
    return values, state
