"""The release's mel VAE (`v1-16.pth`), encoder and decoder. Inside, everything is [B, channels, F].

Magnitude-preserving convolutions: the release normalises every kernel at each call. `convert` stores the normalised kernels, so here they
are plain convolutions without bias. [code] of the release; outputs are compared with its own in tests/codec/test_release_vae.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.errors import InputError
from meanaudio.types import Gaussian

SILU_GAIN = 0.596  # root mean square of silu(x) for a standard normal x
NORM_FLOOR = 1e-4
CLAMP = 256.0  # activations are held within this, as the release does against overflow in half precision
MIX = 0.3  # share of a block's branch in its output


def pixel_norm(x: Tensor, dim: int) -> Tensor:
    """Divide by the root mean square over `dim`."""
    return x / (NORM_FLOOR + x.norm(dim=dim, keepdim=True) / math.sqrt(x.shape[dim]))


def mp_silu(x: Tensor) -> Tensor:
    """silu, scaled to keep unit magnitude."""
    return F.silu(x) / SILU_GAIN


def mp_sum(a: Tensor, b: Tensor) -> Tensor:
    """(1 - MIX) a + MIX b, scaled to keep unit magnitude where a and b are uncorrelated."""
    return ((1 - MIX) * a + MIX * b) / math.hypot(1 - MIX, MIX)


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv1d:
    """[B, inputs, F] -> [B, outputs, F], zero-padded, no bias."""
    return nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


class ResBlock(nn.Module):
    """Pixel norm, then two convolutions beside a shortcut; [B, inputs, F] -> [B, outputs, F]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs)
        self.conv2 = conv(outputs, outputs)
        self.shortcut = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_norm(x, 1)
        return mp_sum(self.shortcut(x), self.conv2(mp_silu(self.conv1(mp_silu(x)))))


class Attention(nn.Module):
    """One head over all frames of [B, channels, F]; queries, keys and values are pixel-normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = conv(channels, 3 * channels, 1)
        self.out = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (pixel_norm(part, 1).mT.unsqueeze(1) for part in self.qkv(x).chunk(3, 1))
        return mp_sum(x, self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1).mT))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = ResBlock(channels, channels)
        self.attention = Attention(channels)
        self.after = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.attention(self.before(x))).clamp(-CLAMP, CLAMP)


class Level(nn.Module):
    """Residual blocks at one frame rate; the clamp stands behind each."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).clamp(-CLAMP, CLAMP)
        return x


class HalveRate(nn.Module):
    """[B, channels, F] -> [B, channels, F / 2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = conv(channels, channels, 1)
        self.after = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.avg_pool1d(self.before(x), 2))


class DoubleRate(nn.Module):
    """[B, channels, F] -> [B, channels, 2 F]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest-exact"))


class Encoder(nn.Module):
    """Normalised mel [B, M, F] -> mean and log-variance [B, 2 C, F / 2]; the rate is halved after the first level."""

    def __init__(self, n_mels: int, latent_dim: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.conv_in = conv(n_mels, widths[0])
        self.levels = nn.ModuleList(Level(a, b, blocks) for a, b in zip([widths[0], *widths], widths, strict=False))
        self.downsample = HalveRate(widths[0])
        self.middle = Middle(widths[-1])
        self.conv_out = conv(widths[-1], 2 * latent_dim)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_in(mel)
        for i, level in enumerate(self.levels):
            x = level(x)
            if i == 0:
                x = self.downsample(x)
        return self.conv_out(mp_silu(self.middle(x)))


class Decoder(nn.Module):
    """Latents [B, C, L] -> normalised mel [B, M, 2 L]; the encoder's mirror, with one block more a level."""

    def __init__(self, n_mels: int, latent_dim: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.conv_in = conv(latent_dim, widths[-1])
        self.middle = Middle(widths[-1])
        # levels[i] mirrors the encoder's level i; they run from the last to the first
        self.levels = nn.ModuleList(Level(a, b, blocks + 1) for a, b in zip([*widths[1:], widths[-1]], widths, strict=True))
        self.upsample = DoubleRate(widths[1])
        self.conv_out = conv(widths[0], n_mels)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.middle(self.conv_in(latents))
        for i in reversed(range(len(self.levels))):
            x = self.levels[i](x)
            if i == 1:
                x = self.upsample(x)
        return self.conv_out(mp_silu(x))


class ReleaseVAE(nn.Module):
    """mel [B, M, F] <-> latents [B, L, C], L = F / 2. The mel is normalised inside by `mel_mean` and `mel_std` [M]."""

    mel_mean: Tensor
    mel_std: Tensor
    frames_per_latent = 2

    def __init__(self, n_mels: int, latent_dim: int, width: int, multipliers: Sequence[int], blocks: int) -> None:
        super().__init__()
        widths = [width * m for m in multipliers]
        self.latent_dim = latent_dim
        self.register_buffer("mel_mean", torch.zeros(n_mels))
        self.register_buffer("mel_std", torch.ones(n_mels))
        self.encoder = Encoder(n_mels, latent_dim, widths, blocks)
        self.decoder = Decoder(n_mels, latent_dim, widths, blocks)

    def encode(self, mel: Tensor) -> Gaussian:
        """mel [B, M, F], F even -> posterior [B, L, C]."""
        if mel.shape[-1] % self.frames_per_latent or mel.shape[-1] == 0:
            raise InputError(f"{mel.shape[-1]} mel frames are no positive multiple of {self.frames_per_latent}")
        normalised = (mel - self.mel_mean[:, None]) / self.mel_std[:, None]
        mean, log_variance = self.encoder(normalised).float().mT.chunk(2, -1)
        return Gaussian(mean, (0.5 * log_variance.clamp(-30, 20)).exp())

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> mel [B, M, F]."""
        return self.decoder(latents.mT).float() * self.mel_std[:, None] + self.mel_mean[:, None]
