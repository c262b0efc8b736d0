"""Building blocks of the transformer. Sequences are [B, N, W], channel last."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def inner_width(width: int) -> int:
    """Width inside a SwiGLU: 8/3 of `width`, rounded up to a multiple of 256."""
    return 256 * -(-int(8 * width / 3) // 256)


class SequenceConv(nn.Conv1d):
    """Conv1d over a channel-last sequence [B, N, W], same length out. kernel 1 is a plain linear layer."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and torch.compiler.is_compiling():
            return self.as_product(x)
        return super().forward(x.transpose(1, 2)).transpose(1, 2)

    def as_product(self, x: Tensor) -> Tensor:
        """The same as one matrix product of the windows [B, N, kernel W], which compiled code makes while it does what stands before.

        A GPU's libraries have no good way for convolutions of this layout; uncompiled, to write the windows costs what is gained.
        """
        kernel, length = self.kernel_size[0], x.shape[1]
        padded = F.pad(x, (0, 0, kernel // 2, kernel // 2))
        windows = torch.cat([padded[:, i : i + length] for i in range(kernel)], -1)
        return F.linear(windows, self.weight.transpose(1, 2).flatten(1), self.bias)


def projection(inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> nn.Module:
    """A linear layer over tokens (kernel 1) or a convolution over time."""
    return nn.Linear(inputs, outputs, bias=bias) if kernel == 1 else SequenceConv(inputs, outputs, kernel, bias=bias)


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), no bias; kernel > 1 makes all three convolutions over time."""

    def __init__(self, width: int, kernel: int = 1) -> None:
        super().__init__()
        inner = inner_width(width)
        self.w1 = projection(width, inner, kernel, bias=False)
        self.w2 = projection(inner, width, kernel, bias=False)
        self.w3 = projection(width, inner, kernel, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TimeEmbedding(nn.Module):
    """[B] in [0, 1] -> [B, W]: 256-d sinusoid of the unscaled time (frequencies 1 ... 1e-4), then Linear-SiLU-Linear."""

    def __init__(self, width: int, channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def reset_parameters(self, *, silent: bool) -> None:
        """N(0, 0.02) weights; silent: the embedding starts as zero for every time."""
        first, last = (layer for layer in self.mlp if isinstance(layer, nn.Linear))
        nn.init.normal_(first.weight, std=0.02)
        nn.init.normal_(last.weight, std=0.0 if silent else 0.02)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)

    def forward(self, t: Tensor) -> Tensor:
        exponents = torch.arange(0, self.channels, 2, dtype=torch.float32, device=t.device) / self.channels
        angles = t.to(torch.promote_types(t.dtype, torch.float32))[:, None] * 10000.0**-exponents
        return self.mlp(torch.cat([angles.cos(), angles.sin()], 1))


def rotary_angles(positions: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [..., head_dim / 2] in float32 of the rotary position embedding of positions [...]."""
    rates = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim)
    angles = positions.float()[..., None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate adjacent pairs of x [B, heads, N, head_dim] by their positions' angles ([N, head_dim / 2], or [B, 1, N, head_dim / 2]); x
    should be float32 or better.
    """
    cos, sin = angles
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2)


class QueryKeyValue(nn.Module):
    """Project [B, N, W] to queries, keys, values [B, heads, N, head_dim]; q and k RMS-normalised and rotated in float32 or better."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // num_heads)
        self.k_norm = nn.RMSNorm(width // num_heads)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b n (part h d) -> part b h n d", part=3, h=self.num_heads)
        wide = torch.promote_types(v.dtype, torch.float32)
        q, k = rotate(self.q_norm(q.to(wide)), angles), rotate(self.k_norm(k.to(wide)), angles)
        return q.to(v.dtype), k.to(v.dtype), v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention; [B, heads, N, head_dim] -> [B, N, W]. mask [B, 1, 1, keys] is True where a key may be seen, or is added."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        # in 16 bits torch's fused kernel is slower than its parts here: twice forward, 3 to 6 times with the gradient [measured]
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        attended = scores.softmax(-1).to(v.dtype) @ v
    else:
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(attended, "b h n d -> b n (h d)")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then x * (1 + scale) + shift."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Modulation(nn.Module):
    """SiLU and a zero-initialised linear layer: the global condition [B, 1, W] -> `parts` tensors of the same shape."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(c)).chunk(self.parts, -1)


class StreamBlock(nn.Module):
    """One stream's half of a block. With attention over its own tokens only it is a single block; two joined make a joint block.

    kernel: 3 for audio (convolutions over time), 1 for text. last: a text stream whose output nobody reads keeps only q, k, v.
    """

    def __init__(self, width: int, num_heads: int, kernel: int, *, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.attention = QueryKeyValue(width, num_heads)
        self.modulation = Modulation(width, 2 if last else 6)
        if not last:
            self.out = projection(width, width, kernel)
            self.mlp = SwiGLU(width, kernel)

    def before(self, x: Tensor, c: Tensor, angles: tuple[Tensor, Tensor]):
        """-> (q, k, v), the modulation that `after` needs."""
        shift, scale, *rest = self.modulation(c)
        return self.attention(modulate(x, shift, scale), angles), rest

    def after(self, x: Tensor, attended: Tensor, rest: list[Tensor]) -> Tensor:
        if self.last:
            return x
        gate, shift, scale, mlp_gate = rest
        x = x + gate * self.out(attended)
        return x + mlp_gate * self.mlp(modulate(x, shift, scale))

    def forward(self, x: Tensor, c: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        (q, k, v), rest = self.before(x, c, angles)
        return self.after(x, attend(q, k, v, None), rest)


class JointBlock(nn.Module):
    """Audio and text streams with their own weights and one attention over both; audio tokens stand first."""

    def __init__(self, width: int, num_heads: int, *, last: bool = False) -> None:
        super().__init__()
        self.audio = StreamBlock(width, num_heads, 3)
        self.text = StreamBlock(width, num_heads, 1, last=last)

    def forward(self, x: Tensor, text: Tensor, c: Tensor, angles, text_angles, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        audio_qkv, audio_rest = self.audio.before(x, c, angles)
        text_qkv, text_rest = self.text.before(text, c, text_angles)
        q, k, v = (torch.cat(pair, 2) for pair in zip(audio_qkv, text_qkv, strict=True))
        attended = attend(q, k, v, mask)
        length = x.shape[1]
        return self.audio.after(x, attended[:, :length], audio_rest), self.text.after(text, attended[:, length:], text_rest)
