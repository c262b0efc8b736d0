"""What nobody hears makes no difference to a listener; what is heard does."""

import pytest
import torch
from fakes import normals
from listeners import Bands, BandsWithText

from meanaudio.evaluation.features import compare, gather
from meanaudio.evaluation.hearing import Hearing, Listener, trim

RATE = 16000


def hits(count: int = 24, seconds: float = 4.0) -> torch.Tensor:
    """Decaying noises of 0.2 to 1 s in digital silence, [count, N]."""
    time = torch.arange(round(seconds * RATE)) / RATE
    return torch.stack([0.3 * normals(len(time), seed=k) * (-time * (3 + k % 7)).exp() * (time < 0.2 + 0.035 * k) for k in range(count)])


def distance(listener, made: torch.Tensor, reference: torch.Tensor) -> float:
    ours, theirs = (gather(((str(k), f) for k, f in enumerate(listener(list(x)))), listener.dim) for x in (made, reference))
    return compare(ours, theirs.statistics).numbers["frechet"]


def test_a_hiss_nobody_hears_is_no_distance():
    clips = hits()
    hiss = clips + 10 ** (-93 / 20) * normals(*clips.shape, seed=99)
    duller = torch.nn.functional.avg_pool1d(clips, 5, stride=1, padding=2)  # what everybody hears
    bare, used = Listener(Bands(), Hearing()), Listener(Bands(), Hearing(50.0, -70.0))
    assert distance(used, hiss, clips) < 0.01 * distance(used, duller, clips)
    # where a clip is half silence and heard as it is, the hiss is all there is; this is why the above is worth its trouble
    with_floor = Listener(Bands(), Hearing(None, -70.0))
    assert distance(with_floor, hiss, clips) < 0.1 * distance(with_floor, duller, clips)
    assert distance(bare, clips, clips) == pytest.approx(0, abs=1e-6)


def test_trimming_keeps_from_the_first_to_the_last_sound():
    sound = torch.cat([torch.zeros(RATE), 0.3 * normals(RATE), torch.zeros(RATE), 0.3 * normals(RATE), 1e-5 * normals(3 * RATE)])
    kept = trim(sound, RATE, 50.0)
    assert abs(len(kept) - 3 * RATE) <= 2 * 320
    torch.testing.assert_close(kept[320:640], sound[RATE + 320 - RATE % 320 :][:320])
    assert len(trim(sound[: RATE + 1000], RATE, 50.0)) == RATE  # at least a second, zeros at its end
    for silence in (torch.zeros(1000), 1e-5 * normals(RATE)):
        assert torch.equal(trim(silence, RATE, 50.0), silence)


def test_equal_clips_are_heard_equally_and_others_under_other_noise():
    hearing = Hearing(None, -60.0)
    a, b = 0.1 * normals(RATE), 0.1 * normals(RATE, seed=1)
    assert torch.equal(hearing(a, RATE), hearing(a.clone(), RATE))
    noise = hearing(a, RATE) - a
    assert 20 * noise.square().mean().sqrt().log10() == pytest.approx(-60, abs=0.2)
    assert (noise * (hearing(b, RATE) - b)).mean().abs() < 0.1 * noise.square().mean()
    assert torch.equal(Hearing()(a, RATE), a)


def test_how_a_clip_is_heard_is_part_of_the_fingerprint():
    prints = {Listener(Bands(), hearing).fingerprint for hearing in (Hearing(), Hearing(50.0), Hearing(None, -70.0), Hearing(50.0, -70.0))}
    assert len(prints) == 4
    assert Listener(Bands(), Hearing(50.0)).fingerprint in prints
    assert Listener(Bands(), Hearing()).encode_text is None
    assert Listener(BandsWithText(), Hearing()).encode_text(["a", "b"]).shape == (2, Bands.dim)
