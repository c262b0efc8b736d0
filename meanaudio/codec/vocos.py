"""Vocoder: log-mel to audio by ConvNeXt blocks at frame rate and an inverse STFT (the idea of Vocos, arXiv 2306.00814)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from meanaudio.codec.blocks import ConvNeXtBlock
from meanaudio.codec.mel import FLOOR, LogMel, slaney_points
from meanaudio.errors import InputError

CLOCK = 64  # frames after which the position clock repeats
LOUDEST = 2.0  # log10 mel magnitude; a sine of full scale has 1.07, and what a network makes by far too much guidance has 6 and more


class InverseSTFT(nn.Module):
    """spectrum (complex) [B, F, n_fft // 2 + 1] -> audio [B, F * hop]: frame f is centred at sample (f + 0.5) * hop, as in codec/mel.py.

    n_fft must be a multiple of hop_length.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        if n_fft % hop_length or n_fft < 2 * hop_length:
            raise InputError(f"vocoder n_fft {n_fft} must be a multiple (2 or more) of hop_length {hop_length}")
        self.n_fft, self.hop_length = n_fft, hop_length
        self.pad = (n_fft - hop_length) // 2
        self.register_buffer("window", torch.hann_window(n_fft, device="cpu"), persistent=False)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Windowed frames, overlap-added and divided by the windows' summed squares."""
        frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
        weight = self.window.square().expand(1, frames.shape[1], -1)
        return self._overlap_add(frames) / self._overlap_add(weight).clamp_min(1e-8)

    def analyse(self, audio: Tensor) -> Tensor:
        """The way back: audio [B, F * hop] -> complex [B, F, n_fft // 2 + 1], silence assumed beyond both ends."""
        audio = nn.functional.pad(audio, (self.pad, self.pad))
        return torch.stft(audio, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True).mT

    def _overlap_add(self, frames: Tensor) -> Tensor:
        batch, count, _ = frames.shape
        parts = self.n_fft // self.hop_length
        pieces = frames.reshape(batch, count, parts, self.hop_length)
        shifted = [nn.functional.pad(pieces[:, :, i], (0, 0, i, parts - 1 - i)) for i in range(parts)]
        return torch.stack(shifted).sum(0).flatten(1)[:, self.pad : self.pad + count * self.hop_length]


def _interpolation(n_mels: int, bins: int, sample_rate: int, f_min: float, f_max: float) -> Tensor:
    """Matrix [M, K] that reads M band values at the K STFT bins, linearly between band centres."""
    centres = slaney_points(n_mels + 2, f_min, f_max)[1:-1]
    bin_hz = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64).clamp(centres[0], centres[-1])
    right = torch.searchsorted(centres, bin_hz).clamp(1, n_mels - 1)
    share = (bin_hz - centres[right - 1]) / (centres[right] - centres[right - 1])
    matrix = torch.zeros(n_mels, bins, dtype=torch.float64)
    columns = torch.arange(bins)
    matrix[right - 1, columns] = 1 - share
    matrix[right, columns] = share
    return matrix.float()


class Vocos(nn.Module):
    """mel [B, M, F] (log10, see codec/mel.py) -> audio [B, F * hop_length].

    Each STFT bin is the level that its mel bands state, times a complex number from the network: the level carries the dynamics, the
    network the fine structure and the phase. The level has the mel's floor taken off: digital silence stays silent whatever the weights.
    A learned clock (position modulo 64 frames) lets a stationary input give phases that move on, which a convolution alone cannot do.

    log_mel, corrections: in evaluation mode, so many times the output's own mel is measured and each STFT bin scaled by what is missing
    to the mel asked for. Cheap beside the network, and training is left as it is: the network learns what corrections cannot do.
    """

    to_bins: Tensor

    def __init__(
        self,
        n_mels: int,
        width: int,
        intermediate: int,
        blocks: int,
        n_fft: int,
        hop_length: int,
        *,
        sample_rate: int = 16000,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        log_mel: LogMel | None = None,
        corrections: int = 0,
    ) -> None:
        super().__init__()
        if corrections and log_mel is None:
            raise InputError(f"{corrections} corrections need the log-mel that they compare by")
        self.log_mel, self.corrections = log_mel, corrections
        bins = n_fft // 2 + 1
        self.inverse_stft = InverseSTFT(n_fft, hop_length)
        self.log_bin_hz = math.log(sample_rate / n_fft)
        with torch.device("cpu"):  # whatever the default device is: a vocoder built on the meta device still needs the numbers
            self.register_buffer("to_bins", _interpolation(n_mels, bins, sample_rate, f_min, f_max), persistent=False)
            self.clock = nn.Parameter(torch.randn(CLOCK, width, generator=torch.Generator().manual_seed(0)) * 0.1)
        self.embed = nn.Conv1d(n_mels, width, 7, padding=3)
        self.embed_norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, intermediate, scale=1 / blocks) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 2 * bins)

    def forward(self, mel: Tensor) -> Tensor:
        """mel [B, M, F] -> audio [B, F * hop_length], float32. What is louder than LOUDEST counts as that loud."""
        mel = mel.clamp_max(LOUDEST)
        frames = mel.shape[-1]
        clock = self.clock.repeat(frames // CLOCK + 1, 1)[:frames]
        x = self.embed_norm(self.embed((mel + 3) / 2).mT + clock)
        for block in self.blocks:
            x = block(x)
        real, imaginary = self.head(self.norm(x)).float().chunk(2, dim=-1)
        with torch.autocast(mel.device.type, enabled=False):
            level = self._level(mel.float())
            audio = self.inverse_stft(torch.complex(level * real, level * imaginary))
            if not self.training and self.log_mel is not None and audio.shape[1] > self.log_mel.pad:
                for _ in range(self.corrections):
                    audio = self._correct(self.log_mel, audio, mel.float())
        return audio

    def _correct(self, log_mel: LogMel, audio: Tensor, mel: Tensor) -> Tensor:
        """audio [B, F * hop] with every STFT bin scaled by the ratio of the mel asked for to the mel it has, at most e^3 either way."""
        missing = ((mel.clamp_min(math.log10(FLOOR)) - log_mel(audio)) * math.log(10)).clamp(-3, 3)
        return self.inverse_stft(self.inverse_stft.analyse(audio) * (missing.mT @ self.to_bins).exp())

    def _level(self, mel: Tensor) -> Tensor:
        """STFT magnitude [B, F, K] that a flat spectrum inside each band would have; none at 0 Hz, which lies in no band."""
        bands = torch.log((10**mel - FLOOR).clamp_min(0) + 1e-8)
        level = (bands.mT @ self.to_bins + self.log_bin_hz).exp()
        return nn.functional.pad(level[..., 1:], (1, 0))
