"""Audio from a log-mel without any network: the yardstick for vocoders."""

from __future__ import annotations

import torch
from torch import Tensor

from meanaudio.config import MelConfig


def griffin_lim(mel: Tensor, config: MelConfig, *, seed: int, iterations: int = 32) -> Tensor:
    """log10 mel [M, F] -> audio [F * hop_length]: non-negative least squares for the magnitudes, then fast Griffin-Lim (momentum 0.99)."""
    import librosa

    m = config
    magnitude = librosa.feature.inverse.mel_to_stft(
        (10**mel).numpy(), sr=m.sample_rate, n_fft=m.n_fft, power=1.0, fmin=m.f_min, fmax=m.f_max
    )
    pad = (m.n_fft - m.hop_length) // 2
    length = mel.shape[1] * m.hop_length
    audio = librosa.griffinlim(
        magnitude,
        n_iter=iterations,
        hop_length=m.hop_length,
        win_length=m.win_length,
        n_fft=m.n_fft,
        center=False,
        momentum=0.99,
        length=length + 2 * pad,
        random_state=seed,
    )
    return torch.from_numpy(audio)[pad : pad + length].float()
