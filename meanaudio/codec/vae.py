"""A small 1-D convolutional VAE over log-mel frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from meanaudio.codec.blocks import ConvNeXtBlock, Downsample, Upsample
from meanaudio.types import Gaussian, InputError


class MelVAE(nn.Module):
    """mel [B, M, F] <-> latents [B, L, C], L = F / product(strides).

    The mel is normalised inside by `mel_mean` and `mel_std` [M], which the training sets once from its data.
    Each level holds `blocks` ConvNeXt blocks at its own frame rate, then a linear change of rate; the decoder mirrors the encoder.
    """

    mel_mean: Tensor
    mel_std: Tensor

    def __init__(self, n_mels: int, latent_dim: int, width: int, blocks: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.frames_per_latent = 1
        for stride in strides:
            self.frames_per_latent *= stride
        self.register_buffer("mel_mean", torch.zeros(n_mels))
        self.register_buffer("mel_std", torch.ones(n_mels))

        def level() -> list[nn.Module]:
            return [ConvNeXtBlock(width, 2 * width, scale=0.2) for _ in range(blocks)]

        down = [module for stride in strides for module in (*level(), Downsample(width, stride))]
        up = [module for stride in reversed(strides) for module in (Upsample(width, stride), *level())]
        self.encoder = nn.Sequential(
            nn.Linear(n_mels, width), *down, *level(), nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 2 * latent_dim)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, width), *level(), *up, nn.LayerNorm(width, eps=1e-6), nn.Linear(width, n_mels)
        )

    def normalize(self, mel: Tensor) -> Tensor:
        """mel [B, M, F] -> normalised frames [B, F, M]."""
        return (mel.mT - self.mel_mean) / self.mel_std

    def encode(self, mel: Tensor) -> Gaussian:
        """mel [B, M, F] -> posterior [B, L, C]. F must be a multiple of the strides' product."""
        if mel.shape[-1] % self.frames_per_latent or mel.shape[-1] == 0:
            raise InputError(f"{mel.shape[-1]} mel frames are no positive multiple of {self.frames_per_latent}")
        mean, log_variance = self.encoder(self.normalize(mel)).float().chunk(2, dim=-1)
        return Gaussian(mean, (0.5 * log_variance.clamp(-14, 6)).exp())

    def decode_normalized(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> normalised frames [B, F, M]."""
        return self.decoder(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> mel [B, M, F]."""
        return (self.decode_normalized(latents).float() * self.mel_std + self.mel_mean).mT
