"""Requests: sentences composed of captions, each a function of its seed."""

from collections import Counter

import pytest

from meanaudio.data.requests import compose_request

CAPTIONS = ["a dog barks", "a door slams", "rain falls", "a bell rings three times", "wind"]
LASTING = ["rain falls", "wind"]


def requests(count: int = 400, **weights):
    shares = {"single": 0.0, "repeat": 0.0, "sequence": 0.0, "overlay": 0.0, **weights}
    return [compose_request(seed, CAPTIONS, LASTING, shares) for seed in range(count)]


def test_a_request_is_its_seed():
    mixed = {"single": 0.3, "repeat": 0.1, "sequence": 0.3, "overlay": 0.3}
    assert requests(50, **mixed) == requests(50, **mixed)
    assert len({r.text for r in requests(50, **mixed)}) > 20


def test_what_is_said_holds_its_parts_in_their_order():
    for request in requests(sequence=1.0):
        assert request.in_order == (len(request.parts) == 2)
        places = [request.text.find(part) for part in request.parts]
        assert min(places) >= 0
        assert places == sorted(places)


def test_backgrounds_last():
    some = requests(overlay=1.0)
    assert not any(request.in_order for request in some)
    two = [request for request in some if len(request.parts) == 2]
    assert {request.parts[1] for request in two} == set(LASTING)
    assert len(two) > 0.7 * len(some)  # a sound is no background of its own


def test_a_repeat_asks_for_one_sound_and_counts_what_is_not_counted_yet():
    for request in requests(repeat=1.0):
        assert len(request.parts) == 1
        assert (request.text == request.parts[0]) == ("three times" in request.parts[0])


def test_shares_are_kept_and_captions_drawn_evenly():
    some = requests(4000, single=3.0, sequence=1.0)
    assert sum(r.in_order for r in some) / len(some) == pytest.approx(0.25 * 0.8, abs=0.03)  # two draws in five captions may be one
    counts = Counter(r.parts[0] for r in some)
    assert min(counts.values()) > 0.85 * len(some) / len(CAPTIONS)


def test_other_words_mean_the_same_parts():
    shares = {"single": 1.0, "repeat": 0.0, "sequence": 0.0, "overlay": 0.0}
    said = [compose_request(seed, CAPTIONS, LASTING, shares, paraphrased=1.0) for seed in range(60)]
    assert sum(r.text != r.parts[0] for r in said) > 20
    assert {r.parts for r in said} == {(caption,) for caption in CAPTIONS}
