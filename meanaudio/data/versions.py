"""Other versions of a sound, of which one would say the same: played faster or slower, through another ear, in a room."""

from __future__ import annotations

import numpy as np

from meanaudio.audio import resample

OCTAVES = 62.5 * 2.0 ** np.arange(8)  # Hz: where an ear's gain is drawn
ROOM_SECONDS = (0.1, 0.5)  # until an echo has fallen by 60 dB
ROOM_DB = (-15.0, -3.0)  # of the echo's power, relative to the sound itself


def change_speed(audio: np.ndarray, factor: float, sample_rate: int) -> np.ndarray:
    """[N] -> [about N / factor], `factor` times as fast and as high."""
    return resample(audio, round(factor * sample_rate), sample_rate)


def change_tone(audio: np.ndarray, spread_db: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """[N] through gains drawn for each octave (normal, `spread_db`), smooth between them; as loud (root mean square) as before."""
    gains = rng.normal(0, spread_db, len(OCTAVES))
    spectrum = np.fft.rfft(audio)
    frequencies = np.fft.rfftfreq(len(audio), 1 / sample_rate)
    spectrum *= 10 ** (np.interp(np.log2(np.maximum(frequencies, 1.0)), np.log2(OCTAVES), gains) / 20)
    changed = np.fft.irfft(spectrum, len(audio)).astype(np.float32)
    power = np.square(changed).mean()
    return changed * np.sqrt(np.square(audio).mean() / power) if power > 0 else changed


def in_room(audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """[N] with its echo in a room: noise that dies away exponentially (Schroeder's statistical model of late reverberation)."""
    seconds, level = rng.uniform(*ROOM_SECONDS), rng.uniform(*ROOM_DB)
    length = round(seconds * sample_rate)
    echo = rng.normal(size=length) * 10 ** (-3 * np.arange(length) / length)
    echo *= 10 ** (level / 20) / np.sqrt(np.square(echo).sum())
    size = 2 ** int(np.ceil(np.log2(len(audio) + length)))
    late = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(echo, size), size)[: len(audio)]
    return audio + late.astype(np.float32)
