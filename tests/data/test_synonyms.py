"""Other words for what a caption names: the same sound, in English."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.data.phrases import caption_form
from meanaudio.data.sounds import read_table
from meanaudio.data.synonyms import NOUNS, VERBS, article, plural, reworded, third_person

CAPTIONS = sorted({sound.caption for sound in read_table()})


def drawn(caption: str, count: int = 200) -> set[str]:
    rng = np.random.default_rng(0)
    return {reworded(caption, rng) for _ in range(count)}


@pytest.mark.parametrize(
    ("verb", "form"),
    [("neigh", "neighs"), ("crash", "crashes"), ("cry", "cries"), ("fly past", "flies past"), ("go off", "goes off"), ("say", "says")],
)
def test_verbs(verb, form):
    assert third_person(verb) == form


@pytest.mark.parametrize(
    ("noun", "form"), [("gun", "guns"), ("crash", "crashes"), ("group of people", "groups of people"), ("cash register", "cash registers")]
)
def test_nouns(noun, form):
    assert plural(noun) == form


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("a airplane lands", "an airplane lands"), ("an plane lands", "a plane lands"), ("a underwater blast", "an underwater blast"),
        ("an unicorn", "a unicorn"), ("an one-note tune", "a one-note tune"), ("a hour", "an hour"), ("banana oil", "banana oil"),
    ],
)  # fmt: skip
def test_articles(wrong, right):
    assert article(wrong) == article(right) == right


@pytest.mark.parametrize(
    ("caption", "among", "never"),
    [
        ("a pistol fires", ["a pistol shoots", "a handgun fires", "a gun shoots"], []),
        ("a plane passes", ["an airplane passes", "an aircraft passes"], []),
        ("explosions", ["blasts", "detonations"], []),
        ("an old bus starts", ["a bus starts", "a bus starts up"], ["an bus starts"]),
        ("an old man", [], ["a man"]),  # which says all that there is
        ("a tom drum hit", ["a tom drum is struck", "a tom drum is being played"], []),
        ("a metal bucket is hit", ["a metal bucket is hit"], ["a hit on a metal bucket is"]),
        ("an old man says yes", ["a man speaks", "a man is speaking"], []),
        ("a woman cries out and dies", ["a lady cries out and dies"], ["a woman sobs out and dies"]),
        ("a shotgun shuts down", [], ["a shotgun closes down"]),
        ("night ambience with crickets", ["crickets", "the sound of crickets"], []),
        ("a flying-machine-gunner", ["a flying-machine-gunner"], []),
        ("", [""], []),
    ],
)
def test_reworded(caption, among, never):
    found = drawn(caption)
    assert set(among) <= found
    assert not set(never) & found


def test_a_word_is_not_its_own_synonym_and_has_one_line():
    for words in (NOUNS, VERBS):
        lines = [line.split(": ") for line in words.strip().split("\n")]
        assert len({word for word, _ in lines}) == len(lines)
        for word, others in lines:
            assert word not in others.split(", ")
            assert len(set(others.split(", "))) == len(others.split(", "))


@given(caption=st.sampled_from(CAPTIONS), seed=st.integers(0, 2**32))
def test_captions_stay_sentences_of_their_form(caption, seed):
    found = reworded(caption, np.random.default_rng(seed))
    assert found == reworded(caption, np.random.default_rng(seed))
    assert found == article(found)
    assert not re.search(r"\b(?:a|an|the) (?:is|are|a|an)\b|  ", found)
    assert not re.search(r"\b(\w+) \1\b", found) or re.search(r"\b(\w+) \1\b", caption)
    if caption_form(caption) == "clause" and not re.search(r"\bsays\b", caption):
        assert caption_form(found) != "noun"


@given(text=st.text(max_size=60), seed=st.integers(0, 2**32))
def test_any_text_comes_back_as_some_text(text, seed):
    assert isinstance(reworded(text, np.random.default_rng(seed)), str)
