"""Convolutions as products of short spectra: fewer multiplications than a direct one for long kernels over many channels.

Overlap-save in tiles of 32 samples. Transforms are products with small matrices, and the spectra of one frequency for all channels and
tiles are one matrix, so that nearly all work is in matrix products of the size the hardware likes. A complex product takes three real ones
(Gauss). Per output and pair of channels: 47 / (33 - kernel) multiplications in place of `kernel`, so 1.8 for 7 and 2.1 for 11.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.precision import cpu_kernel_dtype

TILE = 32
CACHE = 32 << 20  # bytes: so many output channels at a time that the spectra of their weights and products stay in the last cache
LEAST_ROWS = 32
LEAST_KERNEL, LEAST_TERMS = 7, 1000  # below, in a sum of kernel * channels terms, a direct convolution is as fast


@cache
def _matrices(kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """of_tile [M, TILE], of_kernel [M, kernel], to_tile [TILE - kernel + 1, M], so that the valid correlation of a tile with a kernel is

    to_tile ((of_tile x) * (of_kernel w)). M = 47: two real frequencies, and for each of the 15 others the three products of
    (a + ib)(p + iq): with k1 = p (a + b), k2 = a (q - p), k3 = b (p + q) the real part is k1 - k3 and the imaginary one k1 + k2.
    """
    time = torch.arange(TILE, dtype=torch.float64, device="cpu")
    angle = 2 * math.pi / TILE * torch.arange(1, TILE // 2, dtype=torch.float64, device="cpu")[:, None] * time
    cos, sin = angle.cos(), angle.sin()
    real = torch.stack([torch.ones_like(time), 1 - 2 * (time % 2)])
    of_tile = torch.cat([real, cos - sin, cos, -sin])
    of_kernel = torch.cat([real, cos, sin - cos, cos + sin])[:, :kernel]  # conjugate: a correlation
    to_tile = torch.cat([real, 2 * (cos - sin), -2 * sin, -2 * cos]).T[: TILE - kernel + 1] / TILE
    return of_tile.to(dtype), of_kernel.to(dtype), to_tile.to(dtype)


def spectral_conv(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """x [B, C, N], weight [O, C, K], bias [O] -> [B, O, N], as a zero-padded convolution that keeps the length. K is odd, below TILE."""
    batch, channels, length = x.shape
    outputs, _, kernel = weight.shape
    of_tile, of_kernel, to_tile = _matrices(kernel, x.dtype)
    step = TILE - kernel + 1
    # every dilation-th sample makes a sequence of its own, a phase; along a phase, tiles overlap by kernel - 1
    tiles = math.ceil(math.ceil(length / dilation) / step)
    left = dilation * (kernel // 2)
    padded = F.pad(x, (left, (tiles * step + kernel - 1) * dilation - left - length))
    phases = padded.unflatten(2, (-1, dilation)).permute(1, 0, 3, 2).flatten(0, 2)  # [C * B * dilation, samples]
    spectra = F.conv2d(phases[None, None], of_tile[:, None, None], stride=(1, step)).view(len(of_tile), channels, -1)
    out = x.new_empty(outputs, batch, dilation, tiles, step)
    at_once = max(LEAST_ROWS, CACHE // (len(of_tile) * (channels + spectra.shape[2]) * x.element_size()))
    for first in range(0, outputs, at_once):
        rows = slice(first, first + at_once)
        kernels = weight[rows].permute(2, 0, 1).reshape(kernel, -1)  # [K, rows * C]
        products = torch.bmm((of_kernel @ kernels).view(len(of_kernel), -1, channels), spectra)
        products[0] += TILE * bias[rows, None]  # the mean's frequency
        torch.mm(products.flatten(1).mT, to_tile.mT, out=out[rows].view(-1, step))
    return out.permute(1, 0, 3, 4, 2).flatten(2)[..., :length]


class SpectralConv1d(nn.Conv1d):
    """A zero-padded Conv1d of unit stride that keeps the length; by spectra where that pays: on a CPU, without gradients."""

    bias: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, dilation=dilation, padding=dilation * (kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        pays = self.kernel_size[0] >= LEAST_KERNEL and self.kernel_size[0] * self.in_channels >= LEAST_TERMS
        dtype = cpu_kernel_dtype(x, self.weight)
        if dtype is None or not pays:
            return super().forward(x)
        return spectral_conv(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype), self.dilation[0])

    def plain(self) -> nn.Conv1d:
        """The same weights in an ordinary layer."""
        with torch.device("meta"):
            layer = nn.Conv1d(
                self.in_channels, self.out_channels, self.kernel_size[0], dilation=self.dilation[0], padding=int(self.padding[0])
            )
        layer.weight, layer.bias = self.weight, self.bias
        return layer
