"""Plain checks of one sound, that need no network: is it silent, clipped, off centre, humming, too low; how loud and how wide is it?"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from meanaudio.data.check import CLIPPED_LEVEL, CLIPPED_SHARE, SILENCE

DC_SHARE = 0.1  # |mean| over root mean square
LOW_HZ, LOW_SHARE = 40.0, 0.5  # more than half of the energy below it: rumble that small speakers cannot give
TONE_WINDOW = 0.128  # seconds of a spectrum: lines 8 Hz apart
TONE_QUANTILE = 0.1  # a bin's floor: what it stays above nine tenths of the time
TONE_NEAR, TONE_FAR = 3, 6  # bins to either side that a line is compared with
TONE_PROMINENCE_DB, TONE_LEAST_DB = 12.0, -70.0
TONE_NARROW, TONE_NARROW_DB = 2, 6.0  # so far below it are the bins this near; a sine's are 14 dB below, a band of rumble is wider
BANDWIDTH_SHARE = 0.99
LEVEL_WINDOW = 0.4  # seconds; as in audio.match_level
FAULTS = ("silent", "clipped", "dc", "tone", "low")


@dataclass(frozen=True)
class Signal:
    """level_db: root mean square of the loudest 400 ms, dBFS. clipped: share of samples at full scale. dc: |mean| over root mean square.

    tone: (Hz, dBFS) of the most prominent line that is there all the time, or None. low: share of the energy below LOW_HZ.
    bandwidth: Hz below which 99 % of the energy lies. digest: hash of the samples; equal ones are exact duplicates.
    """

    seconds: float
    peak: float
    level_db: float
    clipped: float
    dc: float
    tone: tuple[float, float] | None
    low: float
    bandwidth: float
    sample_rate: int
    digest: str

    @property
    def faults(self) -> list[str]:
        """Names from FAULTS."""
        if self.peak < SILENCE:
            return ["silent"]
        found = (False, self.clipped > CLIPPED_SHARE, self.dc > DC_SHARE, self.tone is not None, self.low > LOW_SHARE)
        return [name for name, is_so in zip(FAULTS, found, strict=True) if is_so]


def inspect(audio: Tensor, sample_rate: int) -> Signal:
    """Check audio [N], N > 0."""
    audio = audio.detach().float().cpu()
    level = audio.abs()
    rms = audio.square().mean().sqrt().item()
    spectrum = _power(audio, sample_rate)
    energy = spectrum.sum(1).double()
    hertz = sample_rate / 2 / (len(energy) - 1)
    total = energy.sum().clamp_min(1e-20)
    low_bins = max(1, round(LOW_HZ / hertz))
    return Signal(
        seconds=len(audio) / sample_rate,
        peak=level.max().item(),
        level_db=level_db(audio, sample_rate),
        clipped=(level >= CLIPPED_LEVEL).float().mean().item(),
        dc=abs(audio.double().mean().item()) / rms if rms > 0 else 0.0,
        tone=_tone(spectrum, hertz),
        low=(energy[:low_bins].sum() / total).item(),
        bandwidth=int((energy.cumsum(0) < BANDWIDTH_SHARE * total).sum()) * hertz,
        sample_rate=sample_rate,
        digest=hashlib.sha256(audio.numpy().tobytes()).hexdigest(),
    )


def level_db(audio: Tensor, sample_rate: int) -> float:
    """Root mean square of the loudest 400 ms of audio [N] in dBFS, -120 at least."""
    size = min(len(audio), max(1, round(LEVEL_WINDOW * sample_rate)))
    power = audio.unfold(0, size, max(1, size // 4)).square().mean(1).max().item()
    return 10 * math.log10(max(power, 1e-12))


def _power(audio: Tensor, sample_rate: int) -> Tensor:
    """Power spectrum [bins, frames], scaled so that a sine's peak is its squared amplitude; short clips are padded to one frame."""
    n_fft = 2 ** round(math.log2(TONE_WINDOW * sample_rate))
    window = torch.hann_window(n_fft)
    audio = torch.nn.functional.pad(audio, (0, max(0, n_fft - len(audio))))
    spectrum = torch.stft(audio, n_fft, n_fft // 4, window=window, center=False, return_complex=True)
    return spectrum.abs().square() / (window.sum() / 2) ** 2


def _tone(power: Tensor, hertz: float) -> tuple[float, float] | None:
    """The line that stands out most of the background of a power spectrum [bins, frames], or None.

    Each bin's floor is its TONE_QUANTILE over time: sounds that come and go do not raise it, a hum does. A line's floor is at least
    TONE_PROMINENCE_DB above the floors on both of its sides (a slope is above one side only), TONE_NARROW_DB above those TONE_NARROW bins
    away, and at least TONE_LEAST_DB.
    Clips of under four windows are too short to tell; a note held all through a clip is found too: compare with the references.
    """
    frames_of_four_windows = 4 * 3 + 1
    if power.shape[1] < frames_of_four_windows:
        return None
    floor = 10 * power.quantile(TONE_QUANTILE, dim=1).clamp_min(1e-12).log10()
    sides = floor.unfold(0, TONE_FAR - TONE_NEAR + 1, 1).median(1).values  # sides[i]: of bins i ... i + 3
    bins = torch.arange(TONE_FAR, len(floor) - TONE_FAR)
    prominence = floor[bins] - torch.maximum(sides[bins - TONE_FAR], sides[bins + TONE_NEAR])
    nearest = torch.maximum(floor[bins - TONE_NARROW], floor[bins + TONE_NARROW])
    prominence[(floor[bins] < TONE_LEAST_DB) | (floor[bins] - nearest < TONE_NARROW_DB)] = 0
    best = int(prominence.argmax())
    if prominence[best] < TONE_PROMINENCE_DB:
        return None
    return int(bins[best]) * hertz, floor[bins[best]].item()
