"""Prompts in the words that a network knows best.

What a network that learned from few captions makes of a prompt hangs on how it is said. What is heard in what it makes of each caption that
it was taught (evaluation/words.py) says in which of those that say the same it is asked best.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from meanaudio.checkpoint import WORDS_FILE, file_hash, load_weights
from meanaudio.concepts import IDLE, words
from meanaudio.data.phrases import ARTICLES, AUXILIARIES, PREPOSITIONS
from meanaudio.errors import InputError
from meanaudio.models.scorer import ALIKE, Scorer
from meanaudio.models.transformer import NETWORK_FILE

NEAREST = 4  # captions that may take a prompt's place
SPREAD = 0.1  # of cosines, by which what is heard as a caption near the prompt counts for it
HEARD = 16  # captions that are stored of what one is heard as, the likeliest
# Words that a caption must have if the prompt has them: they join sounds, or deny them.
JOINING = frozenset(words("and with while as amid during before after then no not without never"))
LIGHT = frozenset(
    (*ARTICLES, *AUXILIARIES, *PREPOSITIONS)
    + tuple(words("be being been you we there hear heard sound sounds noise noises recording go goes going come comes make makes making"))
)
QUALIFYING = IDLE - LIGHT  # which a caption may lack, but not add: "large", "twice", "distant"


def stems(text: str) -> set[str]:
    """Words that say what sounds, without their endings: "a small bell is ringing" -> {"bell", "ring"}; and those that join or deny."""
    return {_stem(word) for word in words(text) if word in JOINING or word not in IDLE | LIGHT}


def qualifiers(text: str) -> set[str]:
    return {_stem(word) for word in words(text) if word in QUALIFYING - JOINING}


def _stem(word: str) -> str:
    """One for "cry" and "cries", "drip" and "dripping", "hiss" and "hisses"."""
    word = re.sub(r"ies$", "y", word)
    word = re.sub(r"(?<=\w{3})(?:ing|ed|es|e|(?<!s)s)$", "", word)
    return re.sub(r"([a-z])\1$", r"\1", word)


def key(caption: str) -> str:
    return caption.strip().rstrip(".!").casefold()


class KnownWords:
    """What is heard in outputs of a scorer's known captions.

    heard [K, K]: how likely an output of caption i is taken for caption j.
    """

    def __init__(self, scorer: Scorer, heard: Tensor) -> None:
        self.scorer, self.heard, self.captions = scorer, heard, list(scorer.known)
        self.keys, self.stems = {key(caption) for caption in self.captions}, [stems(caption) for caption in self.captions]
        self.qualifiers = [qualifiers(caption) for caption in self.captions]
        self.known = set(map(_stem, JOINING)).union(*self.stems)

    def __call__(self, prompts: Sequence[str], pooled: Tensor) -> list[str]:
        """Each prompt, with sentence vectors [B, P], or the caption in whose words it is made best.

        Of the captions that mean nearly the same, have all of the prompt's words that any caption has, and do not say more of how large,
        near or often, that is the one whose outputs are most often heard as what is near the prompt. A known caption stays as it is, and so
        does a prompt for which there is none.
        """
        cosines = self.scorer.cosines(pooled)
        fits = (cosines / SPREAD).softmax(1) @ self.heard.to(cosines).T
        return [self._said(prompt, *row) for prompt, row in zip(prompts, zip(cosines, fits, strict=True), strict=True)]

    def _said(self, prompt: str, cosines: Tensor, fits: Tensor) -> str:
        if key(prompt) in self.keys:
            return prompt
        named, qualified = stems(prompt) & self.known, qualifiers(prompt)
        near = cosines.topk(min(NEAREST, len(cosines))).indices.tolist()
        fitting = [i for i in near if cosines[i] >= ALIKE and named <= self.stems[i] and self.qualifiers[i] <= qualified]
        return self.captions[max(fitting, key=lambda i: fits[i].item())] if fitting else prompt


def sparse(heard: Tensor) -> dict[str, Tensor]:
    """[K, K] -> what is stored: the HEARD likeliest of each row."""
    found = heard.topk(min(HEARD, heard.shape[1]))
    return {"heard": found.values.half(), "heard_as": found.indices.to(torch.int32)}


def made_for(folder: Path, captions: Sequence[str]) -> dict[str, str]:
    """What a table is of: the network's weights in `folder`, and the captions in their order."""
    return {"made_for": hashlib.sha256(json.dumps([file_hash(folder / NETWORK_FILE), *captions]).encode()).hexdigest()}


def load_words(folder: Path, scorer: Scorer) -> KnownWords:
    """Raises InputError for a table of other weights or other captions."""
    path = folder / WORDS_FILE
    state, count = load_weights(path), len(scorer.known)
    with safe_open(path, "pt") as file:
        told = file.metadata()
    again = f"delete it, or make it again: meanaudio learn-words MANIFEST -m {folder}"
    if told != made_for(folder, list(scorer.known)):
        raise InputError(f"{path} was made for another network or other captions; {again}")
    shapes = {name: tuple(values.shape) for name, values in state.items()}
    if shapes != dict.fromkeys(("heard", "heard_as"), (count, min(HEARD, count))):
        raise InputError(f"{path} holds {shapes}, which is no table of known words; {again}")
    places = state["heard_as"].long()
    if not 0 <= places.min() <= places.max() < count:
        raise InputError(f"{path} speaks of captions that are not among the {count} known; {again}")
    return KnownWords(scorer, torch.zeros(count, count).scatter_(1, places, state["heard"].float()).to(scorer.known_text.device))
