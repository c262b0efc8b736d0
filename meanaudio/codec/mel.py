"""Log-mel spectrogram, as the 16 kHz release defines it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from meanaudio.config import MelConfig
from meanaudio.errors import InputError

FLOOR = 1e-5  # mel magnitude under which everything counts as silence: log10 gives -5


def slaney_points(count: int, f_min: float, f_max: float) -> Tensor:
    """`count` frequencies [count] in Hz, float64, evenly spaced on Slaney's mel scale: linear under 1 kHz, logarithmic above."""

    def to_mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    mel = torch.linspace(to_mel(f_min), to_mel(f_max), count, dtype=torch.float64)
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


def mel_filters(config: MelConfig) -> Tensor:
    """Slaney filters of unit area [n_fft // 2 + 1, M], as librosa's defaults.

    Written here because the libraries that have them take seconds to import, or need a torchaudio that loads.
    """
    hz = torch.linspace(0, config.sample_rate / 2, config.n_fft // 2 + 1, dtype=torch.float64)[:, None]
    edges = slaney_points(config.n_mels + 2, config.f_min, config.f_max)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)).clamp_min(0)
    return (triangles * 2 / (right - left)).float()


class LogMel(nn.Module):
    """audio [B, N] in [-1, 1] -> log10 mel magnitude [B, M, F] with F = N // hop_length.

    Frame f is centred at sample (f + 0.5) * hop_length. Of an N that is no multiple of hop_length the last N % hop_length samples get no
    frame of their own; the last frames' windows still see them. Differentiable; float32 inside, also under autocast.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.pad = (config.n_fft - config.hop_length) // 2
        with torch.device("cpu"):  # whatever the default device is: a codec built on the meta device still needs the numbers
            self.register_buffer("filters", mel_filters(config), persistent=False)
            self.register_buffer("window", torch.hann_window(config.win_length), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        c = self.config
        if audio.ndim != 2 or audio.shape[1] <= self.pad:
            raise InputError(f"log-mel needs audio [B, N] with N > {self.pad} samples, got {tuple(audio.shape)}")
        with torch.autocast(audio.device.type, enabled=False):
            audio = nn.functional.pad(audio.float().clamp(-1, 1), (self.pad, self.pad), mode="reflect")
            spectrum = torch.stft(audio, c.n_fft, c.hop_length, c.win_length, self.window, center=False, return_complex=True)
            magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
            return torch.log10((magnitude.mT @ self.filters).clamp_min(FLOOR)).mT
