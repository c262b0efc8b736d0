"""Signal checks find what they are named after, and leave ordinary sounds alone."""

import math

import pytest
import torch
from fakes import normals

from meanaudio.evaluation.signal import inspect, level_db

RATE = 16000


def time(seconds: float, rate: int = RATE) -> torch.Tensor:
    return torch.arange(round(seconds * rate)) / rate


def sine(hertz: float, seconds: float = 4.0, rate: int = RATE) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * time(seconds, rate))


def noise(seconds: float = 4.0, rate: int = RATE, seed: int = 0) -> torch.Tensor:
    return normals(round(seconds * rate), seed=seed)


def brown(seconds: float = 4.0, seed: int = 0) -> torch.Tensor:
    walk = noise(seconds, seed=seed).cumsum(0)
    spectrum = torch.fft.rfft(walk - walk.mean())
    spectrum[: round(20 * seconds)] = 0  # what no loudspeaker gives
    walk = torch.fft.irfft(spectrum, len(walk))
    return 0.5 * walk / walk.abs().max()


def bursts(seconds: float = 4.0) -> torch.Tensor:
    return 0.2 * noise(seconds) * (time(seconds) % 0.5 < 0.2)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_fault(seed, rate):
    assert inspect(0.1 * noise(5, rate, seed), rate).faults == []


def test_ordinary_sounds_have_no_fault():
    decaying = sine(440) * (-3 * time(4)).exp()
    gliding = torch.sin(2 * math.pi * (300 * time(4) + 100 * time(4) ** 2))
    half = torch.cat([sine(800, 2), torch.zeros(2 * RATE)])
    for sound in (brown(), bursts(), 0.5 * decaying, 0.5 * gliding, 0.5 * half, 0.5 * sine(440, 0.4)):
        assert inspect(sound, RATE).faults == []


def test_silence():
    for sound in (torch.zeros(RATE), 5e-4 * noise(1).clamp(-1, 1), torch.zeros(3)):
        assert inspect(sound, RATE).faults == ["silent"]
    assert inspect(torch.zeros(RATE), RATE).level_db == -120


def test_clipping_needs_more_than_a_thousandth_of_the_samples():
    assert "clipped" in inspect((2 * sine(100)).clamp(-1, 1), RATE).faults
    single = 0.1 * noise(1).clamp(-3, 3)
    single[5] = 1.0
    assert inspect(single, RATE).faults == []


def test_an_offset():
    assert inspect(0.1 * noise() + 0.02, RATE).faults == ["dc"]
    assert inspect(0.1 * noise() + 0.02, RATE).dc == pytest.approx(0.2, abs=0.02)
    assert inspect(0.1 * noise() + 0.005, RATE).faults == []


@pytest.mark.parametrize("hertz", [50, 60, 440, 1000, 3999, 7000])
@pytest.mark.parametrize("background", [bursts, lambda: 0.003 * noise(), lambda: 0.01 * brown()], ids=["bursts", "noise", "brown"])
def test_a_hum_is_found_at_its_frequency_and_level(hertz, background):
    found = inspect(background() + 0.01 * sine(hertz), RATE).tone
    assert found is not None
    assert found[0] == pytest.approx(hertz, abs=8)
    assert found[1] == pytest.approx(-40, abs=5)  # between two lines of the spectrum, and in noise


def test_a_hum_below_hearing_or_inside_the_noise_is_none():
    assert inspect(bursts() + 1e-4 * sine(1000), RATE).tone is None
    assert inspect(0.1 * noise() + 0.001 * sine(1000), RATE).tone is None


@pytest.mark.parametrize("seed", range(6))
def test_a_band_of_rumble_is_no_hum(seed):
    """A fire's: 40 Hz wide, far above what lies to both of its sides."""
    spectrum = torch.fft.rfft(noise(5, seed=seed))
    hertz = torch.fft.rfftfreq(5 * RATE, 1 / RATE)
    rumble = torch.fft.irfft(spectrum * 10 ** (-(2 * (hertz - 47).abs() - 40).clamp(0, 40) / 20), 5 * RATE)
    sound = 0.3 * rumble
    assert inspect(sound, RATE).tone is None
    assert inspect(sound + 0.1 * sine(47, 5), RATE).tone is not None


def test_rumble_and_bandwidth():
    assert "low" in inspect(0.3 * sine(25), RATE).faults
    assert inspect(0.3 * sine(2000), RATE).bandwidth == pytest.approx(2000, abs=20)
    assert inspect(0.1 * noise(), RATE).bandwidth == pytest.approx(0.99 * RATE / 2, rel=0.01)


def test_the_level_is_that_of_the_loudest_part():
    quiet_then_loud = torch.cat([0.01 * sine(440, 3), 0.5 * sine(440, 1)])
    assert level_db(quiet_then_loud, RATE) == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=0.1)


def test_equal_samples_have_one_digest():
    a, b = inspect(0.1 * noise(), RATE), inspect(0.1 * noise(), RATE)
    assert a == b
    assert a.digest != inspect(0.1 * noise(seed=1), RATE).digest


@pytest.mark.parametrize("samples", [1, 7, 1000])
def test_any_length_can_be_checked(samples):
    found = inspect(0.1 * normals(samples), RATE)
    assert found.seconds == samples / RATE
    assert math.isfinite(found.level_db) and math.isfinite(found.bandwidth)
