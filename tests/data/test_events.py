"""What a sentence puts one after another, found again in every phrase that data/phrases.py makes of captions, and nowhere else."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.data.events import split_events
from meanaudio.data.phrases import overlay_phrase, repeat_phrase, sequence_phrase, without_stop

CAPTIONS = [
    "a dog barks", "an explosion", "digging in gravel", "birds sing", "wind blows", "footsteps on snow", "a door is shut.",
    "somebody walks in front of a house", "a suit of armor rattles", "rain and thunder", "Glass Breaking", "x", "ein Hund bellt",
]  # fmt: skip
captions = st.sampled_from(CAPTIONS)


@given(st.lists(captions, min_size=2, max_size=3), st.integers(0, 10**6))
def test_composed_sequences_fall_into_what_they_were_composed_of(told, seed):
    assert split_events(sequence_phrase(told, np.random.default_rng(seed))) == [without_stop(caption) for caption in told]


@given(captions, captions, st.integers(2, 7), st.integers(0, 10**6))
def test_what_is_heard_at_once_or_repeated_stays_whole(front, back, count, seed):
    rng = np.random.default_rng(seed)
    for sentence in (front, overlay_phrase(front, back, rng), repeat_phrase(front, count, rng)):
        assert split_events(sentence) == [sentence]


@pytest.mark.parametrize(
    ("sentence", "events"),
    [
        ("First, a dog barks. Then a door slams.", ["a dog barks", "a door slams"]),
        ("a clock strikes and, after that, birds sing", ["a clock strikes", "birds sing"]),
        ("an explosion is followed by a crackling fire", ["an explosion", "a crackling fire"]),
        ("a train passes, followed closely by wind; then, finally, rain", ["a train passes", "wind", "rain"]),
        ("a door slams after a dog barks", ["a dog barks", "a door slams"]),
        ("After a dog barks, a door slams", ["a dog barks", "a door slams"]),
        ("a dog barks while rain falls, then a door slams", ["a dog barks while rain falls", "a door slams"]),
        ("a horse neighs and then gallops away", ["a horse neighs", "a horse gallops away"]),
        ("a bus pulls away, then birds sing", ["a bus pulls away", "birds sing"]),
        ("a cat meows twice, then purrs", ["a cat meows twice", "a cat purrs"]),
        ("a door opens, then footsteps", ["a door opens", "footsteps"]),
        ("a man shouts and then he laughs", ["a man shouts", "a man laughs"]),
        ("a bark, which is then closely followed by a slam", ["a bark", "a slam"]),
        ("a bell rings and shortly afterwards a dog barks", ["a bell rings", "a dog barks"]),
        ("a dog barks - then a door slams", ["a dog barks", "a door slams"]),
        ("a dog barks,then footsteps on gravel", ["a dog barks", "footsteps on gravel"]),
        ("a car drives by then a horn honks", ["a car drives by", "a horn honks"]),
        ("water drips then splashes", ["water drips", "water splashes"]),
        ("thunder then rain", ["thunder", "rain"]),
        ("Before a door slams, a dog barks", ["a dog barks", "a door slams"]),
        ("And then a dog barks, and next a   door\nslams", ["a dog barks", "a door slams"]),
    ],
)
def test_the_ways_in_which_people_tell_an_order(sentence, events):
    assert split_events(sentence) == events


@pytest.mark.parametrize(
    "sentence",
    [
        "a dog barks and a door slams", "a bell rings before noon", "two hits, one after the other", "the day after", "then", "and then",
        "a dog barks, then", "followed by", "now and then a bird sings", "it was quiet until then", "every now and then, a hit", "", " ",
        "strengthen the wind", "then ...", "And then a dog barks", "by then a dog barks", "a man walks up then down the stairs",
        # what does not sound by itself
        "a bell rings, then fades", "music gets louder, then softer", "a dog barks twice, then three times", "rain falls, then it stops",
        "a dog barks, then silence, then barks again", "thunder, then it rumbles",
        # one clause, or one in another
        "the rain finally stops", "the door then closes", "a dog barks and a man then laughs", "If it rains then thunder rolls",
        "a kettle whistles and is then taken off", "a crowd cheers when the team finally wins", "a horn honks after that car passes",
        "a dog runs after a cat that meows", "a man followed by a dog walks on gravel", "a dog barks while a man talks after a door slams",
    ],
)  # fmt: skip
def test_words_that_only_look_like_an_order(sentence):
    assert split_events(sentence) == [sentence]


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["then", "and", "after", ",", "before", "a dog", "barks", "."]), max_size=12).map(" ".join)
)
def test_any_text_gives_something_to_be_heard(sentence):
    events = split_events(sentence)
    assert events == [sentence] or (len(events) > 1 and all(event.strip() for event in events))


@pytest.mark.parametrize(
    "sentence",
    [
        "a" + " " * 998 + "x", "a after" + " " * 900 + "that", "is" + " " * 330 + "followed" + " " * 300 + "x" + "ly" * 150, "a, " * 333,
        "then " * 200, " and" * 250, "a followed " * 90, "after a, " * 110, "a before a dog barks after " * 38, "x then " * 140,
    ],
)  # fmt: skip
def test_long_prompts_take_no_time(sentence):
    began = time.process_time()
    split_events(sentence)
    assert time.process_time() - began < 1
