"""The noise on decoded mels: as strong as asked for, the same wherever and whenever, none on silence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.codec.mel import FLOOR
from meanaudio.codec.texture import FADE, add_texture

SILENCE = math.log10(FLOOR)


@given(frames=st.integers(1, 200), longer=st.integers(0, 200), rows=st.integers(1, 3))
def test_a_function_of_the_place_alone(frames, longer, rows):
    mel = torch.zeros(rows, 80, frames + longer)
    whole = add_texture(mel, 0.1)
    assert torch.equal(add_texture(mel[:1, :, :frames], 0.1), whole[:1, :, :frames])
    assert torch.equal(whole, whole[:1].expand_as(whole))


@pytest.mark.parametrize("deviation", [0.02, 0.3])
def test_as_strong_as_asked_for(deviation):
    mel = torch.linspace(SILENCE + FADE, 1, 80)[None, :, None].expand(1, 80, 640)
    noise = add_texture(mel, deviation) - mel
    assert noise.std().item() == pytest.approx(deviation, rel=0.02)
    assert abs(noise.mean().item()) < 0.02 * deviation
    flat = noise[0] / deviation
    assert abs((flat[1:] * flat[:-1]).mean().item()) < 0.02  # neither from band to band
    assert abs((flat[:, 1:] * flat[:, :-1]).mean().item()) < 0.02  # nor from frame to frame


def test_silence_stays_silent_and_no_global_state_is_touched():
    silence = torch.full((2, 80, 33), SILENCE)
    before = torch.get_rng_state()
    assert torch.equal(add_texture(silence, 0.5), silence)
    assert torch.equal(add_texture(silence - 1, 0.5), silence - 1)
    assert torch.equal(torch.get_rng_state(), before)
