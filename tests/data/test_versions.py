"""Other versions of a sound: as long, as loud and as high as they say, and nothing drawn but from the generator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanaudio.data.versions import ROOM_DB, ROOM_SECONDS, change_speed, change_tone, in_room

RATE = 8000


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def pitch(audio: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(audio * np.hanning(len(audio)))).argmax() * RATE / len(audio))


def noise(seed: int, seconds: float = 1.0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=round(seconds * RATE))).astype(np.float32)


@settings(max_examples=30)
@given(factor=st.floats(0.6, 1.6), hertz=st.floats(200, 1500))
def test_faster_is_shorter_and_higher_by_the_same_factor(factor, hertz):
    changed = change_speed(tone(hertz), factor, RATE)
    assert changed.dtype == np.float32
    assert len(changed) == pytest.approx(RATE / factor, abs=2)
    assert pitch(changed) == pytest.approx(hertz * factor, abs=2.5 * factor)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), spread=st.floats(0.5, 6.0))
def test_another_ear_changes_octaves_by_what_was_drawn_and_not_the_level(seed, spread):
    sound = noise(seed, 4.0)
    changed = change_tone(sound, spread, RATE, np.random.default_rng(seed))
    assert changed.dtype == np.float32
    assert len(changed) == len(sound)
    assert np.square(changed).mean() == pytest.approx(np.square(sound).mean(), rel=1e-3)
    gains = np.random.default_rng(seed).normal(0, spread, 8)
    ratio = np.abs(np.fft.rfft(changed)) / np.maximum(np.abs(np.fft.rfft(sound)), 1e-9)
    at = np.array([250.0, 500.0, 1000.0, 2000.0])
    found = 20 * np.log10(ratio[(at * len(sound) / RATE).astype(int)])
    np.testing.assert_allclose(np.diff(found), np.diff(gains[2:6]), atol=0.3)


def test_silence_stays_silence_in_every_version():
    silence, rng = np.zeros(RATE, np.float32), np.random.default_rng(0)
    for changed in (change_speed(silence, 1.2, RATE), change_tone(silence, 3.0, RATE, rng), in_room(silence, RATE, rng)):
        assert np.isfinite(changed).all()
        assert np.abs(changed).max() == 0


@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_a_room_adds_an_echo_that_dies_away(seed):
    click = np.zeros(RATE, np.float32)
    click[100] = 1.0
    heard = in_room(click, RATE, np.random.default_rng(seed))
    assert heard.dtype == np.float32
    assert len(heard) == len(click)
    assert np.abs(heard[:100]).max() < 1e-5  # not before the sound
    echo = heard - click
    level = 10 * np.log10(np.square(echo).sum())
    assert ROOM_DB[0] - 0.1 < level < ROOM_DB[1] + 0.1
    late = echo[100 + round(ROOM_SECONDS[1] * RATE) :]
    assert np.abs(late).max() < 1e-5
    begin, end = np.square(echo[100:500]).sum(), np.square(echo[500:900]).sum()
    assert end < begin
