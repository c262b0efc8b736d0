"""Other wordings of captions are English, say the same, and are drawn from the generator they are given."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.data.paraphrases import base, gerund, paraphrase, wordings
from meanaudio.data.sounds import read_table

PARTICLES = "a an and are being can close female human is male man of old the there up voice we woman you"  # what wordings may add or lose
OPENERS = "elderly heard hear person recording someone somebody sound sounds"
SMALL_WORDS = {word for words in (PARTICLES, OPENERS) for word in words.split()}


@pytest.mark.parametrize(
    ("verb", "infinitive", "participle"),
    [
        ("barks", "bark", "barking"), ("flies", "fly", "flying"), ("dies", "die", "dying"), ("closes", "close", "closing"),
        ("hisses", "hiss", "hissing"), ("buzzes", "buzz", "buzzing"), ("crashes", "crash", "crashing"), ("hits", "hit", "hitting"),
        ("runs", "run", "running"), ("opens", "open", "opening"), ("revs", "rev", "revving"), ("blows", "blow", "blowing"),
        ("breathes", "breathe", "breathing"), ("goes", "go", "going"), ("shuts", "shut", "shutting"), ("falls", "fall", "falling"),
        ("roars", "roar", "roaring"), ("squeaks", "squeak", "squeaking"), ("aches", "ache", "aching"),
    ],
)  # fmt: skip
def test_verbs(verb, infinitive, participle):
    assert base(verb) == infinitive
    assert gerund(infinitive) == participle


@pytest.mark.parametrize(
    ("caption", "among", "never"),
    [
        ("a dog barks", ["a dog is barking", "dog barking", "the sound of a dog barking", "barking of a dog"], []),
        ("a dog barks and whines", ["a dog is barking and whining"], ["barking of a dog"]),
        ("a pistol is fired", ["a pistol is being fired", "the sound of a pistol being fired"], ["pistol being"]),
        ("birds sing", ["birds are singing", "singing of birds"], ["birds is singing"]),
        ("rain falls", ["rain is falling"], []),
        ("an explosion", ["the sound of an explosion", "there is an explosion"], ["an explosion is exploding"]),
        ("hammering on metal", ["the sound of hammering on metal"], ["there is hammering on metal"]),
        ("a man laughs", ["somebody is laughing", "a person laughs"], []),
        ("a radio crackles with static and voices", ["a radio is crackling with static and voices"], []),
        ("water drops drip in a cave", [], ["water is dropping drip in a cave"]),
    ],
)
def test_wordings(caption, among, never):
    found = wordings(caption)
    assert set(among) <= set(found)
    assert not set(never) & set(found)


def stems(text):
    return {gerund(base(word))[:3] for word in re.findall(r"[\w'-]+", text.lower()) if word not in SMALL_WORDS}


CAPTIONS = sorted({sound.caption for sound in read_table()})


def test_every_caption_of_the_sounds_says_the_same_in_other_words():
    said = 0
    for caption in CAPTIONS:
        found = wordings(caption)
        assert caption not in found
        assert len(set(found)) == len(found)
        for wording in found:
            assert stems(wording) == stems(caption), (caption, wording)
        said += len(found) > 3
    assert said > 0.95 * len(CAPTIONS)


@given(caption=st.sampled_from(CAPTIONS), seed=st.integers(0, 2**32))
def test_drawn_from_the_generator_alone(caption, seed):
    first, second = (paraphrase(caption, np.random.default_rng(seed)) for _ in range(2))
    assert first == second
    assert first in [caption, *wordings(caption)]
