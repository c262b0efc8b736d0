"""BigVGAN vocoder for inference (arXiv 2206.04658): the release's `best_netG.pt`. Inside, everything is [B, channels, N].

Weight norm is folded by `convert`, so convolutions are plain. [code] of the release; outputs are compared with its own in
tests/codec/test_bigvgan.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.codec.fused_snake import fused_snake
from meanaudio.codec.spectral_conv import SpectralConv1d
from meanaudio.precision import cpu_kernel_dtype

TAPS = 12  # of the low-pass filter at twice the rate


def low_pass() -> Tensor:
    """Kaiser-windowed sinc [TAPS] of unit sum: cut-off at a quarter of the doubled rate, transition width 0.3 of it."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * 0.3 + 7.95  # dB, Kaiser's formula
    beta = 0.1102 * (attenuation - 8.7)  # his choice above 50 dB; this one is 51
    # on the CPU whatever the default device is: a network built on the meta device still needs the numbers
    where = torch.device("cpu")
    time = torch.arange(TAPS, device=where) + 0.5 - TAPS // 2
    taps = torch.kaiser_window(TAPS, periodic=False, beta=beta, device=where) * torch.sinc(time / 2)
    return taps / taps.sum()


def _filter(x: Tensor, taps: Sequence[float], length: int, first: int) -> Tensor:
    """sum_q taps[q] x[..., n + first + q] for n in [0, length)."""
    total = taps[0] * x[..., first : first + length]
    for q, tap in enumerate(taps[1:], first + 1):
        total = total + tap * x[..., q : q + length]
    return total


class SmoothSnake(nn.Module):
    """x + sin(alpha x)^2 / beta at twice the rate, between a low-pass up-sampler and its mirror: [B, channels, N] -> same.

    Even and odd samples of the doubled rate are kept apart, so there is neither zero-stuffing nor a stride: each half is six shifted
    multiply-adds, and the whole is pointwise but for the shifts. torch.compile can make one kernel of it; on a CPU without gradients
    it is one already (fused_snake.py).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.zeros(channels))
        self.log_beta = nn.Parameter(torch.zeros(channels))
        taps = low_pass().tolist()
        self.even_taps, self.odd_taps = taps[0::2], taps[1::2]

    def snake(self, x: Tensor) -> Tensor:
        alpha, beta = self.log_alpha.exp()[:, None], self.log_beta.exp()[:, None]
        return x + (x * alpha).sin().square() / (beta + 1e-9)

    def of_sum(self, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x + added, its activation); of x where `added` is None."""
        if (dtype := cpu_kernel_dtype(x, self.log_alpha)) is not None:
            return fused_snake(x, self.log_alpha.exp(), 1 / (self.log_beta.exp() + 1e-9), low_pass(), dtype, added)
        x = x if added is None else x + added
        return x, self._activate(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_sum(x, None)[1]

    def _activate(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        # y[2n] = 2 sum_q f[2q] x[n - 3 + q], y[2n + 1] = 2 sum_q f[2q + 1] x[n - 2 + q]; the ends of x are repeated
        x = F.pad(x, (3, 3), mode="replicate")
        even = self.snake(2 * _filter(x, self.even_taps, length, 0))
        odd = self.snake(2 * _filter(x, self.odd_taps, length, 1))
        # out[n] = sum_k f[k] y[2n + k - 5]; the ends of y are its first even and its last odd sample
        start, end = even[..., :1], odd[..., -1:]
        even = torch.cat([start, start, even, end, end, end], -1)
        odd = torch.cat([start, start, start, odd, end, end], -1)
        return _filter(even, self.odd_taps, length, 0) + _filter(odd, self.even_taps, length, 0)


class ResBlock(nn.Module):
    """One pair of convolutions a dilation, each behind its activation: the paper's AMP block with two convolutions."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(SpectralConv1d(channels, channels, kernel, d) for d in dilations)
        self.plain = nn.ModuleList(SpectralConv1d(channels, channels, kernel) for _ in dilations)
        # in the order of use: before the first dilated convolution, before the first plain one, and so on
        self.activations = nn.ModuleList(SmoothSnake(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor | None = None
        firsts = cast("Iterable[SmoothSnake]", self.activations[::2])
        for dilated, plain, first, second in zip(self.dilated, self.plain, firsts, self.activations[1::2], strict=True):
            x, active = first.of_sum(x, added)
            added = plain(second(dilated(active)))
        return x if added is None else x + added


class BigVGAN(nn.Module):
    """mel [B, M, F] (log10, see codec/mel.py) -> audio [B, F * hop_length] in [-1, 1], hop_length = product of `rates`.

    width: channels before the first up-sampling; each of them halves the number. rates, kernels: stride and kernel of each.
    block_kernels: the residual blocks run side by side after each up-sampling; dilations: of each block.
    The trunk that every residual block adds to is float32 under autocast too: its few convolutions hold a third of the error otherwise.
    """

    float32_parts = ("conv_in", "upsamplers", "conv_out")

    def __init__(
        self,
        n_mels: int,
        width: int,
        rates: Sequence[int],
        kernels: Sequence[int],
        block_kernels: Sequence[int],
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        widths = [width >> i for i in range(len(rates) + 1)]
        self.conv_in = nn.Conv1d(n_mels, width, 7, padding=3)
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose1d(a, b, kernel, stride=rate, padding=(kernel - rate) // 2)
            for a, b, rate, kernel in zip(widths[:-1], widths[1:], rates, kernels, strict=True)
        )
        # len(block_kernels) blocks for each up-sampling in turn
        self.blocks = nn.ModuleList(ResBlock(w, kernel, dilations) for w in widths[1:] for kernel in block_kernels)
        self.activation_out = SmoothSnake(widths[-1])
        self.conv_out = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        with torch.autocast(mel.device.type, enabled=False):
            x = self.conv_in(mel.float())
        side_by_side = len(self.blocks) // len(self.upsamplers)
        for i, upsample in enumerate(self.upsamplers):
            with torch.autocast(mel.device.type, enabled=False):
                x = upsample(x)
            first, *others = self.blocks[i * side_by_side : (i + 1) * side_by_side]
            total = first(x)
            for block in others:
                total += block(x)
            x = total.div_(side_by_side)
        with torch.autocast(mel.device.type, enabled=False):
            return self.conv_out(self.activation_out(x)).tanh().squeeze(1)
