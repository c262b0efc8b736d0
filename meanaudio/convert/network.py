"""The release's transformer: its names, the order of its q, k, v, and its sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from meanaudio.checkpoint import without_weights
from meanaudio.config import NetworkConfig
from meanaudio.convert.foreign import check_names, count, rename, rename_back, shape_of
from meanaudio.errors import InputError
from meanaudio.models.transformer import make_network

# Beginnings of keys that are no weights of the network: latent statistics, features of "", and tables computed from sizes.
RELEASE_EXTRAS = ("latent_mean", "latent_std", "empty_string_feat", "latent_rot", "text_rot")

RELEASE_NAMES = (
    ("^audio_input_proj.", "^audio_in."),
    ("^text_input_proj.", "^sequence_in."),
    ("^text_cond_proj.", "^pooled_in."),
    ("^t_embed.", "^time_embedding."),
    ("^r_embed.", "^interval_embedding."),
    ("^fused_blocks.", "^single_blocks."),
    (".latent_block.", ".audio."),
    (".text_block.", ".text."),
    ("^final_layer.adaLN_modulation.1.", "^out_modulation.linear."),
    ("^final_layer.conv.", "^out."),
    (".adaLN_modulation.1.", ".modulation.linear."),
    (".attn.", ".attention."),
    (".linear1.", ".out."),
    (".ffn.w", ".mlp.w"),
)

# What a renamed key must look like.
_BLOCK = r"(attention\.(qkv|q_norm|k_norm)|modulation\.linear|out|mlp\.w[123])"
_PARTS = (
    r"(audio_in|sequence_in|pooled_in)\.\d(\.w[123])?",
    r"(time|interval)_embedding\.mlp\.\d",
    rf"joint_blocks\.\d+\.(audio|text)\.{_BLOCK}",
    rf"single_blocks\.\d+\.{_BLOCK}",
    r"out_modulation\.linear",
    r"out",
)
_KNOWN = re.compile(rf"({'|'.join(_PARTS)})\.(weight|bias)")


def is_extra(key: str) -> bool:
    return key.startswith(RELEASE_EXTRAS) or key.split(".")[-1] == "freqs"


def release_network_state(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Weights of the official MeanAudio or FluxAudio network under our names, ready for a strict load into `Transformer`.

    The release interleaves q, k and v on the fastest axis of each head (channel = h 3d + i 3 + j); ours are [q heads | k heads | v heads].
    Latent statistics, the features of "" and tables computed from sizes are left out. Raises InputError for any other key.
    """
    ours = {}
    for key, value in state.items():
        if is_extra(key):
            continue
        name = rename(key, RELEASE_NAMES)
        if not _KNOWN.fullmatch(name) or name == key:
            raise InputError(f"unknown key {key!r}: not a weight of a MeanAudio or FluxAudio network")
        if ".qkv." in name:
            value = value.unflatten(0, (num_heads, -1, 3)).movedim(2, 0).flatten(0, 2)
        ours[name] = value
    return ours


@dataclass(frozen=True)
class ReleaseNetwork:
    """A converted network. latent_mean, latent_std: [C]. null_text: what the release stores for "", sequence [1, S, D], pooled [1, P]."""

    config: NetworkConfig
    state: dict[str, Tensor]
    latent_mean: Tensor
    latent_std: Tensor
    null_text: dict[str, Tensor]


def convert_network(state: Mapping[str, Tensor], source: str | Path) -> ReleaseNetwork:
    """Weights, sizes, latent statistics and null text of a released transformer. Strict; sizes are read from shapes."""
    config = _sizes(state, source)
    with without_weights():
        expected = make_network(config).state_dict()
    wanted = {rename_back(k, RELEASE_NAMES): v.shape for k, v in expected.items()}
    latent, sequence = (1, 1, config.latent_dim), state.get("empty_string_feat")
    wanted |= {"latent_mean": torch.Size(latent), "latent_std": torch.Size(latent)}
    if sequence is None or sequence.ndim != 2:
        raise InputError(f"{source}: no 'empty_string_feat' [tokens, {config.sequence_dim}] in it")
    # an older file lacks the pooled features of "": they were the mean over its tokens
    pooled = state.get("empty_string_feat_c", sequence.mean(0))
    wanted |= {"empty_string_feat": torch.Size((len(sequence), config.sequence_dim))}
    check_names({k: v for k, v in state.items() if k in wanted or not is_extra(k)}, wanted, source)
    if pooled.shape != (config.pooled_dim,):
        raise InputError(f"{source}: pooled features of '' are {tuple(pooled.shape)}; this network takes {(config.pooled_dim,)}")
    mask = torch.ones(1, len(sequence), dtype=torch.bool)
    null_text = {"sequence": sequence[None], "pooled": pooled[None], "mask": mask}
    ours = release_network_state(state, config.num_heads)
    return ReleaseNetwork(config, ours, state["latent_mean"].flatten(), state["latent_std"].flatten(), null_text)


def _sizes(state: Mapping[str, Tensor], source: str | Path) -> NetworkConfig:
    def shape(key: str) -> torch.Size:
        return shape_of(state, key, source, "a MeanAudio or FluxAudio network")

    width, latent_dim, _ = shape("audio_input_proj.0.weight")
    (head_dim,) = shape("joint_blocks.0.latent_block.attn.q_norm.weight")
    return NetworkConfig(
        latent_dim=latent_dim,
        sequence_dim=shape("text_input_proj.0.weight")[1],
        pooled_dim=shape("text_cond_proj.0.weight")[1],
        width=width,
        num_heads=width // head_dim,
        joint_depth=count(state, "joint_blocks."),
        single_depth=count(state, "fused_blocks."),
        interval="absolute" if count(state, "r_embed.mlp.") else "none",
        mask_text=False,
    )
