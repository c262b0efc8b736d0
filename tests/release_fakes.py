"""The published files in small: the stored official networks and tiny random text encoders, laid out as they are downloaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from fakes import fill, floats
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from meanaudio.codec.bigvgan import low_pass

TESTS = Path(__file__).parent
GOLDEN, KEYS = TESTS / "golden", TESTS / "release"
WORDS = ["rain", "wind", "a", "dog", "barks", "on", "the", "roof"]
NETWORK, VAE, VOCODER, CLAP = "meanaudio_s_full.pth", "v1-16.pth", "best_netG.pt", "music_speech_audioset_epoch_15_esc_89.98.pt"


def meta(name: str) -> dict[str, torch.Tensor]:
    """Tensors without data, with the names and shapes of a full-size released file."""
    shapes = json.loads((KEYS / f"keys_{name}.json").read_text(encoding="utf-8"))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def write_tokenizer(path: Path, specials: list[str], template: str) -> None:
    """One token a word; `specials` get the first ids, as T5's and RoBERTa's do."""
    tokens = [*specials, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(t, i) for i, t in enumerate(specials)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def tiny_t5(folder: Path):
    """Write a T5 (encoder and decoder, 48 wide) as google/flan-t5-large is laid out; return its encoder."""
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=16, d_model=48, d_kv=8, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    model = fill(T5ForConditionalGeneration(config), 1, 0.3)
    model.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json", ["<pad>", "</s>", "<unk>"], "$A </s>")
    encoder = T5EncoderModel(config)
    encoder.load_state_dict({k: v for k, v in model.state_dict().items() if k in encoder.state_dict()})
    return encoder.eval()


def tiny_clap():
    """A CLAP text tower, 64 wide, 32 out, with RoBERTa's norm epsilon."""
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    config = ClapTextConfig(
        vocab_size=16, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=48, max_position_embeddings=90,
        projection_dim=32, layer_norm_eps=1e-5,
    )  # fmt: skip
    return fill(ClapTextModelWithProjection(config), 2, 0.3).eval()


def laion_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tower's weights under the names of LAION's training, which has no table of token types."""
    theirs = {}
    for key, value in state.items():
        for ours, name in (("text_model.", "text_branch."), ("linear1", "0"), ("linear2", "2")):
            key = key.replace(ours, name)
        theirs[f"module.{key}"] = value
    del theirs["module.text_branch.embeddings.token_type_ids"]
    return theirs


def laion(model) -> dict:
    """What LAION's training wrote: prefixes, an audio branch, an optimiser, and a number that is numpy's."""
    state = laion_names(model.state_dict()) | {"module.audio_branch.conv.weight": torch.ones(3)}
    return {"epoch": 15, "name": "clap", "state_dict": state, "optimizer": {"lr": np.float64(1e-4)}}


def write_release(folder: Path) -> tuple:
    """All files of a small MeanAudio release; returns the T5 encoder and the CLAP tower."""
    folder.mkdir(parents=True)
    vocoder = floats(GOLDEN / "bigvgan_state.safetensors")
    pair = ".parametrizations.weight.original"
    legacy = {k.replace(f"{pair}0", ".weight_g").replace(f"{pair}1", ".weight_v"): v for k, v in vocoder.items()}
    torch.save(floats(GOLDEN / "net_state.safetensors"), folder / NETWORK)
    torch.save(floats(GOLDEN / "vae_state.safetensors"), folder / VAE)
    torch.save({"generator": legacy}, folder / VOCODER)
    clap = tiny_clap()
    torch.save(laion(clap), folder / CLAP)
    write_tokenizer(folder / "roberta-base" / "tokenizer.json", ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    return tiny_t5(folder / "flan-t5-large"), clap


def write_full_size(folder: Path, network: str = "meanaudio_s") -> None:
    """A release of full-size random weights (about 2.9 GB with S): no test makes one, a measurement of time and memory does."""
    from transformers import T5Config, T5EncoderModel

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def value(key: str, shape: torch.Size) -> torch.Tensor:
        if key.endswith(".filter"):
            return low_pass().view(shape)
        if key.endswith(("_norm.weight", "LayerNorm.weight", "_std", "original0")):
            return torch.ones(shape)
        if len(shape) < 2:
            return torch.zeros(shape)
        return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))

    def full(name: str) -> dict[str, torch.Tensor]:
        return {key: value(key, x.shape) for key, x in meta(name).items()}

    file = {"meanaudio_s": NETWORK, "meanaudio_l": "meanaudio_l_full.pth", "fluxaudio_s": "fluxaudio_s_full.pth"}[network]
    torch.save(full(network), folder / file)
    torch.save(full("vae_16k"), folder / VAE)
    torch.save({"generator": full("bigvgan_16k_train_weightnorm")}, folder / VOCODER)
    torch.save({"state_dict": laion_names(full("clap_text"))}, folder / CLAP)
    write_tokenizer(folder / "roberta-base" / "tokenizer.json", ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    config = T5Config(vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, feed_forward_proj="gated-gelu")
    T5EncoderModel(config).save_pretrained(folder / "flan-t5-large")
    write_tokenizer(folder / "flan-t5-large" / "tokenizer.json", ["<pad>", "</s>", "<unk>"], "$A </s>")
