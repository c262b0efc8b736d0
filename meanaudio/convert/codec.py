"""The release's mel VAE and its BigVGAN: names, and what can be computed once instead of at every call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from meanaudio.checkpoint import without_weights
from meanaudio.codec.bigvgan import TAPS, low_pass
from meanaudio.codec.codec import make_vae, make_vocoder
from meanaudio.codec.release_vae import NORM_FLOOR
from meanaudio.config import BigVGANConfig, CodecConfig, MelConfig, ReleaseVAEConfig
from meanaudio.convert.foreign import check_names, count, rename, rename_back, shape_of
from meanaudio.errors import InputError

VAE_NAMES = (
    ("^data_", "^mel_"),
    ("^encoder.down.0.downsample.conv1.", "^encoder.downsample.before."),
    ("^encoder.down.0.downsample.conv2.", "^encoder.downsample.after."),
    ("^decoder.up.1.upsample.", "^decoder.upsample."),
    ("^encoder.down.", "^encoder.levels."),
    ("^decoder.up.", "^decoder.levels."),
    (".block.", ".blocks."),
    (".mid.block_1.", ".middle.before."),
    (".mid.attn_1.", ".middle.attention."),
    (".mid.block_2.", ".middle.after."),
    (".proj_out.", ".out."),
    (".nin_shortcut.", ".shortcut."),
)
GAIN = "learnable_gain"  # of the encoder's and the decoder's last convolution

VOCODER_NAMES = (
    ("^conv_pre.", "^conv_in."),
    ("^conv_post.", "^conv_out."),
    *((f"^ups.{i}.0.", f"^upsamplers.{i}.") for i in range(10)),
    ("^resblocks.", "^blocks."),
    (".convs1.", ".dilated."),
    (".convs2.", ".plain."),
    ("^activation_post.", "^activation_out."),
    (".act.alpha", ".log_alpha"),
    (".act.beta", ".log_beta"),
)
FILTERS = ("upsample.filter", "downsample.lowpass.filter")  # of each activation; the same everywhere


def fold_magnitude(weight: Tensor) -> Tensor:
    """A kernel [rows, inputs, taps] as the release's magnitude-preserving convolution uses it: each row of norm about 1."""
    fan_in = math.sqrt(weight[0].numel())
    norm = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    return weight / (NORM_FLOOR + norm / fan_in) / fan_in


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each (magnitude, direction) pair, in torch's old or new naming, by the weight it stands for."""
    folded = dict(state)
    for magnitude, direction in ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1")):
        for key in [k for k in folded if k.endswith(magnitude)]:
            base = key.removesuffix(magnitude)
            if base + direction in folded:
                v = folded.pop(base + direction)
                norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
                folded[base + ".weight"] = v * (folded.pop(key) / norm)
    return folded


def convert_vae(state: Mapping[str, Tensor], mel: MelConfig, source: str | Path) -> tuple[ReleaseVAEConfig, dict[str, Tensor]]:
    """Config and weights of the release's VAE for our `ReleaseVAE`. Strict; sizes are read from shapes."""
    width, n_mels, _ = shape_of(state, "encoder.conv_in.weight", source, "the release's mel VAE")
    if n_mels != mel.n_mels:
        raise InputError(f"{source}: a VAE for {n_mels} mel bands; this codec has {mel.n_mels} at {mel.sample_rate} Hz (v1-16.pth)")
    levels = range(count(state, "encoder.down."))
    outputs = [shape_of(state, f"encoder.down.{i}.block.0.conv1.weight", source, "the release's mel VAE")[0] for i in levels]
    latent_dim = shape_of(state, "decoder.conv_in.weight", source, "the release's mel VAE")[1]
    if len(outputs) < 2 or any(n % width for n in outputs):
        raise InputError(f"{source}: levels of {outputs} channels; expected two or more, multiples of {width}")
    config = ReleaseVAEConfig(
        latent_dim=latent_dim, width=width, multipliers=tuple(n // width for n in outputs), blocks=count(state, "encoder.down.0.block.")
    )
    with without_weights():
        expected = make_vae(CodecConfig(mel=mel, vae=config)).state_dict()
    wanted = {rename_back(k, VAE_NAMES): v.shape for k, v in expected.items()}
    statistics = torch.Size((1, n_mels, 1))
    gains = {f"{part}.{GAIN}": torch.Size(()) for part in ("encoder", "decoder")}
    check_names(state, wanted | gains | {"data_mean": statistics, "data_std": statistics}, source)

    ours = {}
    for key, value in state.items():
        if key in gains:
            continue
        if key.startswith("data_"):
            value = value.flatten()
        else:
            value = fold_magnitude(value)
        if key.endswith(".qkv.weight"):  # q, k, v alternate: channel = 3 c + part; ours stand one after the other
            value = value.unflatten(0, (-1, 3)).movedim(1, 0).flatten(0, 1)
        if key.endswith("conv_out.weight"):
            value = value * (1 + state[key.replace("conv_out.weight", GAIN)])
        ours[rename(key, VAE_NAMES)] = value
    return config, ours


def convert_vocoder(state: Mapping[str, Tensor], mel: MelConfig, source: str | Path) -> tuple[BigVGANConfig, dict[str, Tensor]]:
    """Config and weights of a BigVGAN generator, with its weight norm folded or not. Strict.

    Sizes are read from shapes; strides are half their kernels and dilations 1, 3, 5, as in every BigVGAN with blocks of kind "1".
    """
    state = fold_weight_norm(state)
    what = "a BigVGAN generator"
    width, n_mels, _ = shape_of(state, "conv_pre.weight", source, what)
    if n_mels != mel.n_mels:
        raise InputError(f"{source}: a vocoder for {n_mels} mel bands; this codec has {mel.n_mels} at {mel.sample_rate} Hz")
    kernels = tuple(shape_of(state, f"ups.{i}.0.weight", source, what)[2] for i in range(count(state, "ups.")))
    if not kernels or math.prod(k // 2 for k in kernels) != mel.hop_length:
        raise InputError(f"{source}: up-sampling kernels {kernels} do not make {mel.hop_length} samples of a mel frame")
    blocks = count(state, "resblocks.") // len(kernels)
    block_kernels = tuple(shape_of(state, f"resblocks.{i}.convs1.0.weight", source, what)[2] for i in range(blocks))
    config = BigVGANConfig(width=width, rates=tuple(k // 2 for k in kernels), kernels=kernels, block_kernels=block_kernels)
    with without_weights():
        expected = make_vocoder(CodecConfig(mel=mel, vocoder=config)).state_dict()
    wanted = {rename_back(k, VOCODER_NAMES): v.shape for k, v in expected.items()}
    activations = {k.removesuffix("act.alpha") for k in wanted if k.endswith("act.alpha")}
    filters = {a + f: torch.Size((1, 1, TAPS)) for a in activations for f in FILTERS}
    check_names(state, wanted | filters, source)
    taps = low_pass()
    if other := [k for k in filters if not state[k].is_meta and not torch.allclose(state[k].flatten(), taps, atol=1e-5)]:
        raise InputError(f"{source}: {other[0]} is not BigVGAN's low-pass filter")
    return config, {rename(k, VOCODER_NAMES): v for k, v in state.items() if k not in filters}
