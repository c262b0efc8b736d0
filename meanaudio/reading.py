"""With which of the captions that it was taught a checkpoint reads a prompt.

What a network that learned from few captions makes of a prompt hangs on how it is said; read together with others that say nearly the same
(types.read_together) it hangs less on each. What is heard in what the network makes of each caption that it was taught
(evaluation/words.py) says which of them are good company.
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
from meanaudio.models.scorer import Scorer
from meanaudio.models.transformer import NETWORK_FILE

NEAR = 0.5  # cosine of sentence vectors below which a caption is no company for a prompt
AMONG = 4  # for each caption that is read so many are looked at, where it is known which the network makes best
SPREAD = 0.1  # of cosines, by which what is heard as a caption near the prompt counts for it
HEARD = 16  # captions that are stored of what one is heard as, the likeliest
# Words that a caption must have if the prompt has them: they join sounds, or deny them.
JOINING = frozenset(words("and with while as amid during before after then no not without never"))
IDLER = (IDLE | JOINING).union(
    ARTICLES, AUXILIARIES, PREPOSITIONS,
    words("you we there hear heard go goes going come comes make makes making"),
)  # fmt: skip


def stems(text: str) -> set[str]:
    """Words that say what sounds, without their endings: "a small bell is ringing" -> {"bel", "ring"}."""
    return {_stem(word) for word in words(text) if word not in IDLER}


def _stem(word: str) -> str:
    """One for "cry" and "cries", "drip" and "dripping", "hiss" and "hisses"."""
    word = re.sub(r"ies$", "y", word)
    word = re.sub(r"(?<=\w{3})(?:ing|ed|es|e|(?<!s)s)$", "", word)
    return re.sub(r"([a-z])\1$", r"\1", word)


class Company:
    """heard [K, K]: how likely an output of a scorer's known caption i is taken for caption j; None if nobody has listened."""

    def __init__(self, scorer: Scorer, heard: Tensor | None = None) -> None:
        self.scorer, self.heard, self.captions = scorer, heard, list(scorer.known)

    def __call__(self, prompts: Sequence[str], pooled: Tensor, count: int) -> list[list[str]]:
        """Up to `count` captions for each prompt, with sentence vectors [B, P].

        They mean nearly the same, have all the words of the prompt that join or deny something, and share one with it that says what
        sounds, if any does; of these the nearest, or, if there is a table, of four times as many those whose outputs are most often heard
        as what is near the prompt.
        """
        cosines = self.scorer.cosines(pooled)
        fits = cosines if self.heard is None else (cosines / SPREAD).softmax(1) @ self.heard.T
        among = min(count if self.heard is None else AMONG * count, len(self.captions))
        found = []
        for prompt, near, fit in zip(prompts, cosines, fits, strict=True):
            joining, own = JOINING.intersection(words(prompt)), stems(prompt)
            places = [i for i in near.topk(among).indices.tolist() if near[i] >= NEAR and joining <= set(words(self.captions[i]))]
            sharing = [i for i in places if own & stems(self.captions[i])]
            best = sorted(sharing or places, key=fit.tolist().__getitem__, reverse=True)[:count]
            found.append([self.captions[i] for i in best])
        return found


def sparse(heard: Tensor) -> dict[str, Tensor]:
    """[K, K] -> what is stored: the HEARD likeliest of each row."""
    found = heard.topk(min(HEARD, heard.shape[1]))
    return {"heard": found.values.half(), "heard_as": found.indices.to(torch.int32)}


def made_for(folder: Path, captions: Sequence[str]) -> dict[str, str]:
    """What a table is of: the network's weights in `folder`, and the captions in their order."""
    return {"made_for": hashlib.sha256(json.dumps([file_hash(folder / NETWORK_FILE), *captions]).encode()).hexdigest()}


def load_heard(folder: Path, captions: Sequence[str]) -> Tensor:
    """The table of a checkpoint's folder [K, K]. Raises InputError for one of other weights or other captions."""
    path, count = folder / WORDS_FILE, len(captions)
    state = load_weights(path)
    with safe_open(path, "pt") as file:
        told = file.metadata()
    again = f"delete it, or make it again: meanaudio learn-words MANIFEST -m {folder}"
    if told != made_for(folder, captions):
        raise InputError(f"{path} was made for another network or other captions; {again}")
    shapes = {name: tuple(values.shape) for name, values in state.items()}
    if shapes != dict.fromkeys(("heard", "heard_as"), (count, min(HEARD, count))):
        raise InputError(f"{path} holds {shapes}, which is no table of known captions; {again}")
    places = state["heard_as"].long()
    if not 0 <= places.min() <= places.max() < count:
        raise InputError(f"{path} speaks of captions that are not among the {count} known; {again}")
    return torch.zeros(count, count).scatter_(1, places, state["heard"].float())
