"""Prompts in the words that a network knows best.

A network that learned from few captions makes a neighing horse of "a horse whinnies" and something else of "a horse neighs", and prompts
that it was never taught fall between. What is heard in what it makes of each caption (evaluation/words.py) says which of the captions near
a prompt to give it in the prompt's place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from meanaudio.checkpoint import WORDS_FILE, load_weights
from meanaudio.concepts import IDLE, words
from meanaudio.errors import InputError
from meanaudio.models.scorer import Scorer

NEAREST = 4  # captions that may take a prompt's place
ALIKE = 0.6  # cosine of sentence vectors that they need
KNOWN = 0.999  # cosine from which on a prompt is a known caption
SAME = 0.7  # cosine of two captions, each of which may stand for what the other says
SPREAD = 0.1  # of cosines, by which what is heard as a caption near the prompt counts for it
HEARD = 16  # captions that are stored of what one is heard as, the likeliest
SUFFIX = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|e)$")


def stems(text: str) -> set[str]:
    """Words that name something, without their endings: "a bell is ringing" -> {"bell", "ring"}."""
    return {SUFFIX.sub("", word) for word in words(text) if word not in IDLE}


class KnownWords:
    """What two listeners hear in outputs of a scorer's known captions.

    heard [K, K]: how likely an output of caption i is taken for caption j.
    """

    def __init__(self, scorer: Scorer, heard: Tensor) -> None:
        self.scorer, self.heard, self.captions = scorer, heard, list(scorer.known)
        self.stems = [stems(caption) for caption in self.captions]
        self.all_stems = set[str]().union(*self.stems)

    def __call__(self, prompts: Sequence[str], pooled: Tensor) -> list[str]:
        """Each prompt, with sentence vectors [B, P], or the caption in whose words it is made best.

        Of the captions that mean nearly the same, that whose outputs are most often heard as what is near the prompt. Not one that lacks a
        word of the prompt, unless those near both have it, or none at all: it may be a second sound's. A known caption stays as it is.
        """
        cosines = self.scorer.cosines(pooled)
        fits = (cosines / SPREAD).softmax(1) @ self.heard.to(cosines).T
        return [self._said(prompt, *row) for prompt, row in zip(prompts, zip(cosines, fits, strict=True), strict=True)]

    def _said(self, prompt: str, cosines: Tensor, fits: Tensor) -> str:
        near = [i for i in cosines.topk(min(NEAREST, len(cosines))).indices.tolist() if cosines[i] >= ALIKE]
        named = stems(prompt) & self.all_stems
        alike = self.scorer.known_text[near] @ self.scorer.known_text[near].T >= SAME
        fitting = [
            i
            for k, i in enumerate(near)
            if named <= set[str]().union(*(self.stems[j] for j, same in zip(near, alike[k].tolist(), strict=True) if same))
        ]
        if not fitting or cosines[near[0]] >= KNOWN:
            return prompt
        return self.captions[max(fitting, key=lambda i: fits[i].item())]


def sparse(heard: Tensor) -> dict[str, Tensor]:
    """[K, K] -> what is stored: the HEARD likeliest of each row."""
    found = heard.topk(min(HEARD, heard.shape[1]))
    return {"heard": found.values.half(), "heard_as": found.indices.to(torch.int16 if len(heard) < 2**15 else torch.int32)}


def load_words(folder: Path, scorer: Scorer) -> KnownWords:
    """Raises InputError if the file was made for other captions than the scorer knows."""
    path = folder / WORDS_FILE
    state, count = load_weights(path), len(scorer.known)
    if set(state) != {"heard", "heard_as"} or state["heard"].shape != state["heard_as"].shape or state["heard"].ndim != 2:
        raise InputError(f"{path}: not a table of known words; `meanaudio learn-words` makes it")
    places = state["heard_as"].long()
    if len(places) != count or not 0 <= places.min() <= places.max() < count:
        raise InputError(f"{path}: made for other captions than the {count} that the scorer knows; make it again with learn-words")
    return KnownWords(scorer, torch.zeros(count, count).scatter_(1, places, state["heard"].float()).to(scorer.known_text.device))
