"""Layers that the mel VAE and the vocoder share. Everything is channel-last: [B, F, C]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DepthwiseConv(nn.Module):
    """Depthwise convolution over F of [B, F, C], zero-padded at both ends.

    A 2-D convolution over a channels-last view: on CPU it is many times faster than `Conv1d(groups=C)`.
    """

    def __init__(self, width: int, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, (kernel, 1), padding=(kernel // 2, 0), groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mT.unsqueeze(-1)).squeeze(-1).mT


class ConvNeXtBlock(nn.Module):
    """x [B, F, C] + scale * MLP(LayerNorm(depthwise convolution of x))."""

    def __init__(self, width: int, intermediate: int, scale: float) -> None:
        super().__init__()
        self.mix = DepthwiseConv(width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, intermediate)
        self.project = nn.Linear(intermediate, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x))
        return x + self.scale * self.project(nn.functional.gelu(self.expand(y), approximate="tanh"))


class Downsample(nn.Module):
    """[B, F, C] -> [B, F / stride, C]: each `stride` neighbours become one by a linear map."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(width * stride, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(x.shape[0], x.shape[1] // self.stride, -1))


class Upsample(nn.Module):
    """[B, F, C] -> [B, F * stride, C], the mirror of `Downsample`."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(width, width * stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).reshape(x.shape[0], x.shape[1] * self.stride, -1)
