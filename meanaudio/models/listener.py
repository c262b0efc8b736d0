"""What networks that listen to a codec's latents share: normalisation, convolutions over time, statistics over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meanaudio.models.layers import SequenceConv, SwiGLU


class Listener(nn.Module):
    """Codec latents [B, L, C] of any length; `pooled` gives mean and maximum over time of their features.

    mean, std [C]: buffers that normalise latents as they were in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, latent_dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.into = SequenceConv(latent_dim, width, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.blocks = nn.ModuleList(SwiGLU(width, 3) for _ in range(blocks))
        self.norm = nn.LayerNorm(2 * width)

    def pooled(self, latents: Tensor) -> Tensor:
        """latents [B, L, C] -> [B, 2 * width]."""
        x = self.into((latents - self.mean) / self.std)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.norm(torch.cat([x.mean(1), x.amax(1)], 1))
