"""A small 1-D convolutional VAE over log-mel frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from meanaudio.codec.blocks import ConvNeXtBlock, Downsample, Upsample
from meanaudio.errors import InputError
from meanaudio.types import Gaussian


class MelVAE(nn.Module):
    """mel [B, M, F] <-> latents [B, L, C], L = F / product(strides).

    The mel is normalised inside by `mel_mean` and `mel_std` [M], which the training sets once from its data.
    `linear` adds a linear map of each latent's frames beside the deep path, both ways. Started at the data's principal components
    (`start_linear`), it gives the sharp picture at once and leaves the deep path the rest.
    Each level holds `blocks` ConvNeXt blocks at its own frame rate, then a linear change of rate; the decoder mirrors the encoder.
    """

    mel_mean: Tensor
    mel_std: Tensor

    def __init__(self, n_mels: int, latent_dim: int, width: int, blocks: int, strides: Sequence[int], *, linear: bool = False) -> None:
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
        self.decoder = nn.Sequential(nn.Linear(latent_dim, width), *level(), *up, nn.LayerNorm(width, eps=1e-6), nn.Linear(width, n_mels))

        self.linear_encoder: nn.Linear | None = None
        self.linear_decoder: nn.Linear | None = None
        if linear:
            self.linear_encoder = nn.Linear(n_mels * self.frames_per_latent, latent_dim)
            self.linear_decoder = nn.Linear(latent_dim, n_mels * self.frames_per_latent)

    @torch.no_grad()
    def start_linear(self, mel: Tensor) -> None:
        """Set the linear maps to the principal components of mel [B, M, F], latents of unit variance; the deep path starts at zero."""
        if self.linear_encoder is None or self.linear_decoder is None:
            return
        patches = self._patches(self.normalize(mel)).flatten(0, 1)
        centre = patches.mean(0)
        _, singular, directions = torch.linalg.svd(patches - centre, full_matrices=False)
        directions = directions[: self.latent_dim]
        scale = (singular[: self.latent_dim] / len(patches) ** 0.5).clamp_min(1e-3)
        self.linear_encoder.weight.copy_(directions / scale[:, None])
        self.linear_encoder.bias.copy_(-(directions @ centre) / scale)
        self.linear_decoder.weight.copy_(directions.T * scale)
        self.linear_decoder.bias.copy_(centre)
        for path in (self.encoder, self.decoder):
            for parameter in path[-1].parameters():
                parameter.zero_()
        list(self.encoder[-1].parameters())[-1][self.latent_dim :] = -4.0  # a small posterior deviation

    def _patches(self, frames: Tensor) -> Tensor:
        """[B, F, M] -> [B, L, frames_per_latent * M]."""
        return frames.reshape(frames.shape[0], frames.shape[1] // self.frames_per_latent, -1)

    def normalize(self, mel: Tensor) -> Tensor:
        """mel [B, M, F] -> normalised frames [B, F, M]."""
        return (mel.mT - self.mel_mean) / self.mel_std

    def encode(self, mel: Tensor) -> Gaussian:
        """mel [B, M, F] -> posterior [B, L, C]. F must be a multiple of the strides' product."""
        if mel.shape[-1] % self.frames_per_latent or mel.shape[-1] == 0:
            raise InputError(f"{mel.shape[-1]} mel frames are no positive multiple of {self.frames_per_latent}")
        frames = self.normalize(mel)
        mean, log_variance = self.encoder(frames).float().chunk(2, dim=-1)
        if self.linear_encoder is not None:
            mean = mean + self.linear_encoder(self._patches(frames)).float()
        return Gaussian(mean, (0.5 * log_variance.clamp(-14, 6)).exp())

    def decode_normalized(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> normalised frames [B, F, M]."""
        frames = self.decoder(latents)
        if self.linear_decoder is not None:
            frames = frames + self.linear_decoder(latents).reshape(frames.shape)
        return frames

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> mel [B, M, F]."""
        return (self.decode_normalized(latents).float() * self.mel_std + self.mel_mean).mT
