"""A small network that hears which concepts a clip's latents hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meanaudio.models.layers import SequenceConv, SwiGLU


class Tagger(nn.Module):
    """Codec latents [B, L, C] of any length -> logits [B, K] over concepts, for one softmax.

    Convolutions over time, then mean and maximum over time. mean, std [C]: buffers that normalise latents as they were in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, latent_dim: int, width: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.into = SequenceConv(latent_dim, width, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.blocks = nn.ModuleList(SwiGLU(width, 3) for _ in range(blocks))
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, classes)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.into((latents - self.mean) / self.std)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.out(self.norm(torch.cat([x.mean(1), x.amax(1)], 1)))
