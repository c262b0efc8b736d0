"""Log-mel, VAE and vocoder joined: audio to latents and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meanaudio.audio import fit
from meanaudio.checkpoint import file_hash, load_module, read_json
from meanaudio.codec.bigvgan import BigVGAN
from meanaudio.codec.mel import LogMel
from meanaudio.codec.release_vae import ReleaseVAE
from meanaudio.codec.texture import add_texture
from meanaudio.codec.vae import MelVAE
from meanaudio.codec.vocos import Vocos
from meanaudio.config import BigVGANConfig, CodecConfig, MelConfig, ReleaseVAEConfig, VAEConfig, VocoderConfig, parse
from meanaudio.errors import InputError
from meanaudio.types import Gaussian

VAE_FILE, VOCODER_FILE = "vae.safetensors", "vocoder.safetensors"


# A VAE has encode(mel [B, M, F]) -> Gaussian and decode(latents [B, L, C]) -> mel; a vocoder maps mel [B, M, F] to audio [B, F * hop].
VAE = MelVAE | ReleaseVAE
Vocoder = Vocos | BigVGAN

# One line a kind: its config class, and how a network is made from the config of the whole codec.
VAES: dict[type, Callable[[Any, MelConfig], VAE]] = {
    VAEConfig: lambda v, m: MelVAE(m.n_mels, v.latent_dim, v.width, v.blocks, v.strides, linear=v.kind == "linear_conv"),
    ReleaseVAEConfig: lambda v, m: ReleaseVAE(m.n_mels, v.latent_dim, v.width, v.multipliers, v.blocks),
}
VOCODERS: dict[type, Callable[[Any, MelConfig], Vocoder]] = {
    VocoderConfig: lambda v, m: Vocos(
        m.n_mels,
        v.width,
        v.intermediate,
        v.blocks,
        v.n_fft,
        m.hop_length,
        sample_rate=m.sample_rate,
        f_min=m.f_min,
        f_max=m.f_max,
        log_mel=LogMel(m),
        corrections=v.corrections,
    ),
    BigVGANConfig: lambda v, m: BigVGAN(m.n_mels, v.width, v.rates, v.kernels, v.block_kernels, v.dilations),
}


def make_vae(config: CodecConfig) -> VAE:
    return VAES[type(config.vae)](config.vae, config.mel)


def make_vocoder(config: CodecConfig) -> Vocoder:
    return VOCODERS[type(config.vocoder)](config.vocoder, config.mel)


class Codec(nn.Module):
    """audio [B, N] <-> latents [B, L, C]. Latents are the VAE's own; their normalisation belongs to the network that makes them."""

    def __init__(self, config: CodecConfig, vae: VAE | None = None, vocoder: Vocoder | None = None) -> None:
        """vae, vocoder: of that config and ready-made; a part left out gets random weights."""
        super().__init__()
        self.config = config
        self.spec = config.audio_spec()
        self.mel = LogMel(config.mel)
        self.vae = make_vae(config) if vae is None else vae
        self.vocoder = make_vocoder(config) if vocoder is None else vocoder

    def encode(self, audio: Tensor) -> Gaussian:
        """audio [B, N] in [-1, 1] -> posterior [B, L, C]; zero-padded at the end to L = ceil(N / samples_per_latent) whole latents."""
        if audio.ndim != 2 or audio.shape[1] == 0:
            raise InputError(f"expected audio [B, N] with N > 0, got {tuple(audio.shape)}")
        num_latents = -(-audio.shape[1] // self.spec.samples_per_latent)
        return self.vae.encode(self.mel(fit(audio, num_latents * self.spec.samples_per_latent)))

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> audio [B, L * samples_per_latent], not limited to [-1, 1]."""
        return self.vocoder(self.decode_mel(latents))

    def decode_mel(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> log10 mel [B, M, F] as the vocoder gets it, with the config's texture."""
        return add_texture(self.vae.decode(latents), self.config.texture)

    def reconstruct(self, audio: Tensor) -> Tensor:
        """Through the posterior's mean and back: audio [B, N] -> audio [B, N]."""
        return self.decode(self.encode(audio).mean)[:, : audio.shape[1]]


def read_codec_config(folder: Path) -> CodecConfig:
    """The codec section of a folder's config.json."""
    path = Path(folder) / "config.json"
    values = read_json(path)
    if not isinstance(values.get("codec"), dict):
        raise InputError(f"{path}: no section 'codec'")
    return parse(CodecConfig, values["codec"], str(path))


def latents_name(folder: Path) -> str:
    """What the latents of the VAE in `folder` go by: the sha256 of the VAE file that first made them.

    A config keeps it (codec_hash) while the file is stored in 16 bits or its decoder goes on: latents stay what they are. It is believed;
    whoever puts another encoder into a folder must take it out.
    """
    stated = read_json(Path(folder) / "config.json").get("codec_hash")
    return stated if isinstance(stated, str) else file_hash(Path(folder) / VAE_FILE)


def load_vae(folder: Path, *, dtype: torch.dtype = torch.float32, finite: bool = True) -> tuple[VAE, CodecConfig]:
    """The VAE of a folder with config.json and vae.safetensors, in evaluation mode."""
    config = read_codec_config(folder)
    halve = ("decoder",) if dtype == torch.bfloat16 else ()
    return load_module(partial(make_vae, config), Path(folder) / VAE_FILE, finite=finite, halve=halve), config


def load_codec(folder: Path, *, vocoder_from: Path | None = None, dtype: torch.dtype = torch.float32, finite: bool = True) -> Codec:
    """The whole codec of a folder with config.json, vae.safetensors and vocoder.safetensors. Strict.

    vocoder_from: take the vocoder of this folder instead. dtype: bfloat16 stores what decodes in half the memory.
    finite: refuse NaN and infinite weights, which reads every file to its end.
    Raises InputError too if that vocoder was made for other mels.
    """
    vae, config = load_vae(folder, dtype=dtype, finite=finite)
    source = Path(vocoder_from or folder)
    config = with_vocoder(config, source)
    halve = ("",) if dtype == torch.bfloat16 else ()
    vocoder = load_module(partial(make_vocoder, config), source / VOCODER_FILE, finite=finite, halve=halve)
    return Codec(config, vae, vocoder).eval().requires_grad_(False)


def with_vocoder(config: CodecConfig, source: Path) -> CodecConfig:
    """`config` with the vocoder of the folder `source`. Raises InputError if that one was made for other mels."""
    other = read_codec_config(source)
    if other.mel != config.mel:
        raise InputError(f"{source}: its vocoder takes {other.mel}, the VAE gives {config.mel}")
    return config.model_copy(update={"vocoder": other.vocoder})
