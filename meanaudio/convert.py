"""Checkpoints of others, brought into this project's names. Nothing else in the package knows foreign names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from meanaudio.errors import InputError

# Beginnings of keys that are no weights of the network: latent statistics, features of "", and tables computed from sizes.
RELEASE_EXTRAS = ("latent_mean", "latent_std", "empty_string_feat", "latent_rot", "text_rot")

# The release's names and ours, replaced in this order.
RELEASE_NAMES = (
    (r"^audio_input_proj\.", "audio_in."),
    (r"^text_input_proj\.", "sequence_in."),
    (r"^text_cond_proj\.", "pooled_in."),
    (r"^t_embed\.", "time_embedding."),
    (r"^r_embed\.", "interval_embedding."),
    (r"^fused_blocks\.", "single_blocks."),
    (r"\.latent_block\.", ".audio."),
    (r"\.text_block\.", ".text."),
    (r"^final_layer\.adaLN_modulation\.1\.", "out_modulation.linear."),
    (r"^final_layer\.conv\.", "out."),
    (r"\.adaLN_modulation\.1\.", ".modulation.linear."),
    (r"\.attn\.", ".attention."),
    (r"\.linear1\.", ".out."),
    (r"\.ffn\.", ".mlp."),
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


def release_network_state(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Weights of the official MeanAudio or FluxAudio network under our names, ready for a strict load into `Transformer`.

    The release interleaves q, k and v on the fastest axis of each head (channel = h 3d + i 3 + j); ours are [q heads | k heads | v heads].
    Latent statistics, the features of "" and tables computed from sizes are left out. Raises InputError for any other key.
    """
    ours = {}
    for key, value in state.items():
        if key.startswith(RELEASE_EXTRAS) or key.split(".")[-1] == "freqs":
            continue
        name = key
        for pattern, replacement in RELEASE_NAMES:
            name = re.sub(pattern, replacement, name)
        if not _KNOWN.fullmatch(name) or name == key:
            raise InputError(f"unknown key {key!r}: not a weight of a MeanAudio or FluxAudio network")
        if ".qkv." in name:
            value = value.unflatten(0, (num_heads, -1, 3)).movedim(2, 0).flatten(0, 2)
        ours[name] = value
    return ours
