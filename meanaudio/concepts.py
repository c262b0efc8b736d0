"""Which sounds a text names: words as classes, found in captions and prompts alike."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence


def words(text: str) -> list[str]:
    """Lower-case words of letters."""
    return re.findall(r"[a-z]+", text.lower())


# Words that say how, how much, where and when, but not what sounds.
IDLE = frozenset(
    words("""a an the this that its it he she they and or but of in on at by to from with without into onto over under through across
    against near off out up down away back around along as is are was be being been has have while then when before after during
    followed once twice again one two three four five times time several many few some single double another other multiple continuous
    continuously sound sounds noise noises sounding recording clip effect short long brief small little tiny large big huge giant old
    new soft softly hard heavy heavily light lightly loud loudly quiet quietly high low deep fast quick quickly slow slowly distant
    close nearby very something someone game retro video""")
)


def names(text: str, concept: str) -> bool:
    """Whether `text` holds all words of one of `concept`'s comma-separated names, each as it is or with an s."""
    found = set(words(text))
    alternatives = [words(name) for name in concept.split(",")]
    return any(name and all(word in found or f"{word}s" in found for word in name) for name in alternatives)


def concept_index(captions: Iterable[str]) -> dict[str, list[str]]:
    """Word -> captions that hold it, idle words left out; a word and its form with an s are one. That of most captions comes first, ties
    go by the alphabet.
    """
    held: dict[str, list[str]] = defaultdict(list)
    for caption in captions:
        for word in {word for word in words(caption) if len(word) > 2} - IDLE:
            held[word].append(caption)
    merged: dict[str, list[str]] = defaultdict(list)
    for word in sorted(held):
        merged[word[:-1] if word.endswith("s") and word[:-1] in held else word] += held[word]
    return dict(sorted(merged.items(), key=lambda entry: (-len(entry[1]), entry[0])))


def frequent_concepts(captions: Iterable[str], count: int) -> tuple[str, ...]:
    """The first `count` words of `concept_index`."""
    return tuple(concept_index(captions))[:count]


def leading_words(captions: Iterable[str], count: int) -> tuple[str, ...]:
    """The `count` words that most captions begin with, idle words left out; of equals that which comes first."""
    firsts = (next((word for word in words(caption) if len(word) > 2 and word not in IDLE), None) for caption in captions)
    return tuple(word for word, _ in Counter(word for word in firsts if word is not None).most_common(count))


def labels(texts: Sequence[str], concepts: Sequence[str]) -> list[list[bool]]:
    """For each text, which concepts it names."""
    return [[names(text, concept) for concept in concepts] for text in texts]
