"""Words as classes: found in captions and prompts alike."""

import pytest

from meanaudio.concepts import concept_index, frequent_concepts, labels, leading_words, names


@pytest.mark.parametrize(
    ("text", "concept", "found"),
    [
        ("A dog barks!", "dog", True),
        ("two dogs bark", "dog", True),
        ("a hotdog stand", "dog", False),
        ("dogged rain", "dog", False),
        ("rain on a tin roof", "Rain on surface", False),
        ("rain on a surface", "Rain on surface", True),
        ("a car horn honks", "Vehicle horn, car horn, honking", True),
        ("a vehicle passes", "Vehicle horn, car horn, honking", False),
        ("", "dog", False),
        ("a dog", "", False),
        ("a dog", " , ", False),
    ],
)
def test_a_text_names_a_concept_if_it_holds_all_words_of_one_of_its_names(text, concept, found):
    assert names(text, concept) == found


def test_frequent_concepts_are_words_that_sound_by_the_captions_that_hold_them():
    captions = [
        "a dog barks",
        "two dogs, two dogs",
        "the dog and the bell",
        "a loud bell",
        "a large glass breaks",
        "glass",
        "glass",
        "by a door",
    ]
    assert frequent_concepts(captions, 3) == ("dog", "glass", "bell")
    assert set(frequent_concepts(captions, 99)) == {"dog", "glass", "bell", "barks", "breaks", "door"}
    assert frequent_concepts(captions, 99) == frequent_concepts(captions[::-1], 99)
    assert frequent_concepts(["a the of", "12 34"], 5) == ()
    assert concept_index(captions)["dog"] == ["a dog barks", "the dog and the bell", "two dogs, two dogs"]


def test_leading_words_are_those_that_captions_begin_with_when_idle_ones_are_left_out():
    captions = ["a dog barks", "a large dog by a door", "rain", "two doors", "a door and a dog", "of the", ""]
    assert leading_words(captions, 2) == ("dog", "rain")
    assert leading_words(captions, 9) == ("dog", "rain", "doors", "door")


def test_labels_say_which_concepts_each_text_names():
    assert labels(["a dog and a bell", "rain"], ("dog", "bell")) == [[True, True], [False, False]]
