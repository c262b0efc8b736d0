"""Scenes: pure functions of (seed, index), exact in length, never clipped, with captions that name what is in them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meanaudio.data.manifest import Clip
from meanaudio.data.paraphrases import wordings
from meanaudio.data.phrases import caption_form, is_repeated, overlay_phrase, repeat_phrase, sequence_phrase
from meanaudio.data.scenes import WEIGHTS, SceneComposer, make_take
from meanaudio.errors import InputError

RATE = 4000
CAPTIONS = {
    "a dog barks": (0.4, 6),
    "an explosion": (0.9, 2),
    "wind blows": (5.0, 1),
    "footsteps on gravel": (2.0, 1),
    "a bell rings": (0.2, 1),
}


def clips_of(captions=CAPTIONS):
    return [
        Clip(f"{caption} {take}", Path(f"{caption}.wav"), caption, duration=seconds, group=caption)
        for caption, (seconds, takes) in captions.items()
        for take in range(takes)
    ]


def load(clip, rate):
    generator = torch.Generator().manual_seed(len(clip.id) + ord(clip.id[-1]))
    return torch.rand(round(clip.duration * rate), generator=generator) * 0.2 - 0.1


def composer(seconds=3.0, seed=0, **options):
    return SceneComposer(clips_of(), RATE, seconds, seed, load=load, **options)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 2**40), seconds=st.floats(1.0, 7.0), kind=st.sampled_from(list(WEIGHTS)))
def test_length_level_and_caption_of_every_kind(seed, index, seconds, kind):
    scene = composer(seconds, seed, weights={kind: 1.0})(index)
    assert scene.audio.shape == (round(seconds * RATE),)
    assert scene.audio.dtype == torch.float32
    assert torch.isfinite(scene.audio).all()
    assert 0.001 < scene.audio.abs().max() <= 0.98 + 1e-6
    for clip_id in scene.clip_ids:
        assert clip_id.rpartition(" ")[0] in scene.caption
    assert scene.id == f"scene-{seed}-{index}"


def test_a_scene_depends_on_seed_and_index_alone():
    first, second = composer(), composer()
    backwards = [second(i) for i in reversed(range(40))][::-1]
    for index in range(40):
        scene, other = first(index), backwards[index]
        assert (scene.caption, scene.id, scene.clip_ids) == (other.caption, other.id, other.clip_ids)
        assert torch.equal(scene.audio, other.audio)
    assert any(composer(seed=1)(i).caption != first(i).caption for i in range(5))


def test_clips_in_any_order_give_the_captions_evenly():
    make = composer(weights={"single": 1.0})
    counts = Counter(make(i).caption for i in range(1000))
    assert set(counts) == set(CAPTIONS)
    assert min(counts.values()) > 150  # five captions, 200 each, though one has six clips


def test_paraphrases_change_captions_alone_of_single_scenes():
    weights = {"single": 1.0}
    plain, other, some = (composer(weights=weights, paraphrased=share) for share in (0.0, 1.0, 0.5))
    unchanged = 0
    for index in range(60):
        scene, said = plain(index), other(index)
        assert scene.clip_ids == said.clip_ids
        assert torch.equal(scene.audio, said.audio)
        others = wordings(scene.caption)
        assert said.caption in (others or [scene.caption])
        unchanged += bool(others) and some(index).caption == scene.caption
    assert 10 < unchanged < 45


def test_every_sound_of_a_joined_scene_may_be_paraphrased():
    make = composer(weights={"sequence": 1.0}, paraphrased=1.0)
    captions = [make(index).caption for index in range(60)]
    assert not any(re.search(r"a dog barks\b.*a bell rings\b", caption) for caption in captions)
    assert any("barking" in caption and "ringing" in caption for caption in captions)


@pytest.mark.parametrize("version", [{"speed": 0.3}, {"tone": 4.0}, {"room": 1.0}], ids=["speed", "tone", "room"])
def test_versions_change_the_sound_of_a_scene_and_not_what_it_is_of(version):
    plain, other, again = composer(), composer(**version), composer(**version)
    for index in range(30):
        scene, changed = plain(index), other(index)
        assert changed.clip_ids[0] == scene.clip_ids[0]  # at another speed fewer or more repeats may fit
        if "speed" not in version:
            assert (changed.caption, changed.clip_ids) == (scene.caption, scene.clip_ids)
        assert changed.audio.shape == scene.audio.shape
        assert changed.audio.dtype == torch.float32
        assert 0.001 < changed.audio.abs().max() <= 0.98 + 1e-6
        assert not torch.allclose(changed.audio, scene.audio, atol=1e-3)
        assert torch.equal(changed.audio, again(index).audio)


def test_rooms_are_a_share_of_the_scenes():
    plain, some = composer(), composer(room=0.3)
    changed = sum(not torch.equal(plain(index).audio, some(index).audio) for index in range(200))
    assert 40 < changed < 80


def test_weights_choose_the_kind():
    make = composer(weights={"sequence": 1.0})
    assert all(len(make(i).clip_ids) >= 2 for i in range(30))
    counts = Counter(len(make(i).clip_ids) for i in range(200))
    assert counts[2] > counts[3] > 0
    assert all(len(composer(weights={"single": 1.0})(i).clip_ids) == 1 for i in range(30))
    assert all(len(composer(weights={"overlay": 1.0})(i).clip_ids) == 2 for i in range(30))


def test_a_scene_says_what_it_holds_and_whether_in_order():
    known = {c.id: c.caption for c in clips_of()}
    for kind in ("single", "repeat", "sequence", "overlay"):
        make = composer(weights={kind: 1.0})
        for scene in map(make, range(30)):
            assert scene.parts == tuple(dict.fromkeys(known[i] for i in scene.clip_ids))
            assert scene.in_order == (kind == "sequence")
            assert (len(scene.parts) > 1) == (kind in ("sequence", "overlay"))


def test_a_repeat_says_how_often():
    make = SceneComposer([c for c in clips_of() if c.caption == "a dog barks"], RATE, 10.0, load=load, weights={"repeat": 1.0})
    said = {2: "twice", 3: "three times", 4: "four times"}
    for index in range(60):
        scene = make(index)
        count = len(scene.clip_ids)
        assert count >= 2
        assert (said[count] in scene.caption) if count in said else not any(w in scene.caption for w in said.values())
        loud = np.flatnonzero(scene.audio.numpy() != 0)
        assert (np.diff(loud) > 0.03 * RATE).sum() <= count - 1  # no more pauses than between the takes


def test_clips_that_share_no_group_are_not_repeated_for_one_another():
    clips = [replace(c, group="") for c in clips_of() if c.caption == "a dog barks"]
    make = SceneComposer(clips, RATE, 10.0, load=load, weights={"repeat": 1.0})
    assert all(len(set(make(index).clip_ids)) == 1 for index in range(40))


def test_the_background_is_quieter():
    """The two are told apart by their frequencies."""
    pitch = {"low": 100, "high": 900}

    def tones(clip, rate):
        return 0.3 * torch.sin(2 * torch.pi * pitch[clip.caption] * torch.arange(3 * rate) / rate)

    clips = [Clip(name, Path(name), name, duration=3.0) for name in pitch]
    make = SceneComposer(clips, RATE, 3.0, load=tones, weights={"overlay": 1.0})
    for index in range(20):
        scene = make(index)
        spectrum = torch.fft.rfft(scene.audio).abs()
        front, back = (spectrum[pitch[name] * 3 - 5 : pitch[name] * 3 + 6].square().sum() for name in scene.clip_ids)
        assert 4.0 < 10 * torch.log10(front / back) < 14.0


def test_levels_are_near_the_aim_and_edges_are_faded():
    make = SceneComposer([c for c in clips_of() if c.caption == "wind blows"], RATE, 2.0, load=load)
    levels = [20 * np.log10(make(i).audio.square().mean().sqrt().item()) for i in range(50)]
    assert min(levels) > -26.5
    assert max(levels) < -13.5
    assert max(levels) - min(levels) > 6
    assert all(make(i).audio[0] == 0 and make(i).audio[-1].abs() < 0.02 for i in range(10))


def test_trim_and_measure():
    audio = np.zeros(RATE, dtype=np.float32)
    audio[1000:2000] = 0.5
    take = make_take(audio, RATE, "x")
    assert 1000 <= len(take.samples) <= 1160
    assert take.gain == pytest.approx(0.2, rel=0.1)
    with pytest.raises(InputError, match="'x' is silent"):
        make_take(np.zeros(RATE, dtype=np.float32), RATE, "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"chorus": 1}}, "unknown kind of scene chorus; known are single"),
        ({"weights": {"single": 0}}, "one above 0"),
        ({"weights": {"single": -1}}, "0 or more"),
        ({"seconds": 0.2}, "must last 1 s"),
        ({"seed": -1}, "the seed is -1"),
        ({"paraphrased": 1.5}, "paraphrased = 1.5: a share"),
        ({"speed": 1.0}, "speed = 1.0, tone = 0.0, room = 0.0: up to 0.5"),
        ({"room": -0.1}, "none below 0"),
        ({"clips": []}, "no clips"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        SceneComposer(**{"clips": clips_of(), "sample_rate": RATE, "load": load} | options)


@pytest.mark.parametrize(
    ("caption", "form"),
    [
        ("a dog barks", "clause"),
        ("an explosion", "noun"),
        ("wind blows", "clause"),
        ("birds sing in the forest", "clause"),
        ("a book is closed", "clause"),
        ("a footstep on grass", "noun"),
        ("a puff of smoke", "noun"),
        ("a retro video game laser", "noun"),
        ("digging in gravel", "other"),
        ("footsteps on stairs", "other"),
        ("computer beeps", "other"),
        ("a suit of armor rattles", "other"),
        ("", "other"),
    ],
)
def test_forms(caption, form):
    assert caption_form(caption) == form


def phrases(make, *arguments):
    return {make(*arguments, np.random.default_rng(seed)) for seed in range(100)}


def test_phrases_suit_the_form():
    assert "a dog barks three times" in phrases(repeat_phrase, "a dog barks", 3)
    assert "a dog barks repeatedly" in phrases(repeat_phrase, "a dog barks.", 6)
    assert "an explosion, three times" in phrases(repeat_phrase, "an explosion", 3)
    assert "an explosion three times" not in phrases(repeat_phrase, "an explosion", 3)
    assert "a dog barks, followed by an explosion" in phrases(sequence_phrase, ["a dog barks", "an explosion"])
    assert not any("followed by" in p for p in phrases(sequence_phrase, ["an explosion", "a dog barks"]))
    assert "a dog barks while wind blows" in phrases(overlay_phrase, "a dog barks", "wind blows")
    assert "a dog barks with an explosion in the background" in phrases(overlay_phrase, "a dog barks", "an explosion")
    assert not any("while" in p for p in phrases(overlay_phrase, "a dog barks", "an explosion"))
    assert is_repeated("a dog barks several times")
    assert not is_repeated("a dog barks")
