"""What several extractors do: cut and pad clips, turn them into log-mel patches, send them through a network exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from meanaudio.audio import fit

SAMPLE_RATE = 16000
WINDOW, HOP, N_FFT = 400, 160, 512  # samples: 25 ms, 10 ms
PATCH = 96  # frames: 0.96 s
PATCH_SAMPLES = (PATCH - 1) * HOP + WINDOW


def htk_mel_filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """[n_fft // 2 + 1, n_mels]: triangles of height 1, evenly spaced and straight on the scale 1127 ln(1 + f / 700).

    As in TensorFlow and Kaldi; librosa and torchaudio draw theirs straight in Hz.
    """

    mel = 1127 * torch.log1p(torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64) / 700)[:, None]
    edges = torch.linspace(1127 * math.log1p(f_min / 700), 1127 * math.log1p(f_max / 700), n_mels + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0).float()


class LogMelPatches(nn.Module):
    """audio [N] at 16 kHz -> [P, 96, 64]: log(mel magnitude + offset) of 96 frames, a patch every `hop` frames, 64 bands in 125-7500 Hz.

    The front end of VGGish and YAMNet. The end that fills no whole patch is left out; N must be PATCH_SAMPLES or more.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, *, hop: int, offset: float) -> None:
        super().__init__()
        self.hop, self.offset = hop, offset
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", htk_mel_filters(SAMPLE_RATE, N_FFT, 64, 125, 7500), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        magnitude = torch.fft.rfft(audio.unfold(0, WINDOW, HOP) * self.window, N_FFT).abs()
        return torch.log(magnitude @ self.filters + self.offset).unfold(0, PATCH, self.hop).mT


def at_least(audio: Tensor, size: int) -> Tensor:
    """Zero-pad [N] at its end to `size` samples; longer clips stay as they are."""
    return fit(audio, max(size, len(audio)))


def equal_windows(audio: Tensor, size: int) -> Tensor:
    """audio [N] -> [W, size] with W = ceil(N / size): one after the other, the last one moved back so that it ends with the clip.

    A clip shorter than `size` stays as it is, [1, N].
    """
    if len(audio) <= size:
        return audio[None]
    starts = [*range(0, len(audio) - size, size), len(audio) - size]
    return torch.stack([audio[start : start + size] for start in starts])


@contextmanager
def exactly() -> Iterator[None]:
    """No gradients, and convolutions in float32 proper: on CUDA they round to TF32 otherwise, and features would depend on the device."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        with torch.no_grad():
            yield
    finally:
        cudnn.conv.fp32_precision = before


def listen(
    network: Callable[[Tensor], tuple[Tensor, Tensor]], clips: Sequence[Tensor], most: int, device: str
) -> list[tuple[Tensor, Tensor]]:
    """What `network` ([B, N] -> ([B, D], [B, K])) says of each clip [N]: ([D], [K]), float32 on the CPU, in the clips' order.

    Clips of equal length go through it together, `most` at once; none is padded to another's length.
    """
    groups: dict[int, list[int]] = {}
    for place, clip in enumerate(clips):
        groups.setdefault(len(clip), []).append(place)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for places in groups.values():
        for first in range(0, len(places), most):
            chosen = places[first : first + most]
            embeddings, logits = network(torch.stack([clips[i] for i in chosen]).to(device))
            found |= dict(zip(chosen, zip(embeddings.float().cpu(), logits.float().cpu(), strict=True), strict=True))
    return [found[i] for i in range(len(clips))]
