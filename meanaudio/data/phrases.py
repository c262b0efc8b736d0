"""English for composed scenes: captions are clauses ("a dog barks"), noun phrases ("an explosion") or gerunds ("digging in gravel").

Each join has phrasings that are right for every form, and others that need a clause or a noun phrase. A caption in doubt counts as
neither, which only narrows the choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = ("a", "an", "the", "one", "someone", "somebody", "something", "this")
PREPOSITIONS = word_set("of on in with from at over for to under into onto through as behind near by heard during inside and")
AUXILIARIES = word_set("is are was were has have")
NOT_VERBS = word_set("news yes sports tennis castanets maracas notes times blocks its headphones scissors keys")
# verbs that bare subjects take ("birds sing", "wind blows"), without those that are more often nouns ("computer beeps")
VERBS = word_set(
    """
    applaud bark beat bleat blow boil breathe break burn buzz caw chatter cheer chirp clang clank clash clatter click clink cluck
    collapse crackle creak croak cry crow drip drop explode extend fall fizzle flap flow flutter freeze fire gallop grind grow
    grunt growl hiss honk howl hum hit jingle laugh meow moan moo neigh play pour quack rattle retract ring roar roll rumble run
    rustle scream screech shatter shout sing sizzle skid splash spark speak squeak squeal strike swim swing talk tick trot turn
    twitter wail whine whistle whoosh work write yell
    """
)
MASS = word_set(
    "wind rain thunder water glass ice wood leather chalk cloth acid steam smoke gas fire lightning lava electricity dirt metal"
)
REPEATED = re.compile(
    r"\b(times|single|twice|thrice|repeatedly|again|several|once|burst|shots|constantly|continuously|two|three|four|five)\b"
)
NUMBERS = {2: "twice", 3: "three times", 4: "four times"}


def head_length(words: Sequence[str]) -> int:
    """How many words stand before the first preposition: where the verb of a short clause stands."""
    return next((n for n, word in enumerate(words) if n and word in PREPOSITIONS), len(words))


def is_third_person(word: str) -> bool:
    """Could it be a verb in the third person singular, by its ending?"""
    return bool(re.search(r"[^su']s$", word)) and word not in NOT_VERBS


def caption_form(caption: str) -> str:
    """`clause`, `noun`, or `other` where it could be either."""
    words = re.findall(r"[\w'-]+", caption.lower())
    if not words:
        return "other"
    head = words[: head_length(words)]
    if any(word in AUXILIARIES for word in head[1:]):
        return "clause"
    third_person = [word for word in head[1:] if is_third_person(word)]
    if words[0] in ARTICLES:
        # the verb may come after the preposition: "a suit of armor rattles"
        late = any(map(is_third_person, words[len(head) :]))
        return "clause" if third_person else "other" if late else "noun"
    if words[0].endswith("ing"):
        return "noun" if len(head) == len(words) == 1 else "other"
    if words[0] in MASS or (len(head) > 1 and head[-2] in MASS):
        return "clause" if any(w.removesuffix("s") in VERBS or w.removesuffix("es") in VERBS for w in third_person) else "other"
    return "clause" if any(w in VERBS for w in head[1:]) and head[-1] != "hit" else "other"


def is_repeated(caption: str) -> bool:
    """Does the caption count already ("a dog barks several times")?"""
    return bool(REPEATED.search(caption.lower()))


def choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def without_stop(caption: str) -> str:
    """Ready to stand inside a sentence."""
    return caption.strip().rstrip(".!;,")


def repeat_phrase(caption: str, count: int, rng: np.random.Generator) -> str:
    """The same heard `count` >= 2 times."""
    caption, form = without_stop(caption), caption_form(caption)
    if count in NUMBERS:
        options = [f"{caption}, {NUMBERS[count]}", f"{caption}, {NUMBERS[count]} in a row"]
        if form == "clause":
            options += [f"{caption} {NUMBERS[count]}"] * 3
    else:
        options = [f"{caption}, again and again", f"{caption}, over and over", f"{caption}, many times in a row"]
        if form == "clause":
            options += [f"{caption} repeatedly", f"{caption} several times", f"{caption} again and again"]
    return choose(options, rng)


def sequence_phrase(captions: Sequence[str], rng: np.random.Generator) -> str:
    """One heard after another; two or three captions."""
    first, *rest = map(without_stop, captions)
    last = rest[-1]
    if len(rest) == 1:
        options = [f"{first}, then {last}", f"{first} and then {last}", f"{first}, and then {last}", f"first {first}, then {last}"]
        if caption_form(last) == "noun":
            options += [f"{first}, followed by {last}", f"{first} followed by {last}", f"{first}, and afterwards {last}"]
        if caption_form(first) == "clause" and caption_form(last) == "clause":
            options += [f"{first} before {last}", f"after {first}, {last}"]
    else:
        start = ", then ".join([first, *rest[:-1]])
        options = [f"{start}, and then {last}", f"{start}, then {last}", f"{start}, and finally {last}"]
        if caption_form(last) == "noun":
            options += [f"{start}, followed by {last}"]
    return choose(options, rng)


def overlay_phrase(front: str, back: str, rng: np.random.Generator) -> str:
    """`back` heard more quietly behind `front`."""
    form, front, back = caption_form(back), without_stop(front), without_stop(back)
    options = [f"{front}, and {back} in the background", f"{front}; in the background, {back}", f"{back} in the background, and {front}"]
    if form == "clause":
        options += [f"{front} while {back}", f"{front} as {back}", f"{front} while {back} in the background"]
    if form == "noun":
        options += [f"{front} with {back} in the background", f"{front} over {back}"]
    return choose(options, rng)
