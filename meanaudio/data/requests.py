"""What to ask a network for: sentences composed of captions as scenes are of their clips, a pure function of a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from meanaudio.data.extract import encode_text
from meanaudio.data.paraphrases import paraphrase
from meanaudio.data.phrases import choose, is_repeated, overlay_phrase, repeat_phrase, sequence_phrase
from meanaudio.data.scenes import FEW
from meanaudio.text import TextEncoder
from meanaudio.types import TextFeatures


@dataclass(frozen=True)
class Request:
    """parts: the captions that the sentence is made of, in_order: to be heard one after another."""

    text: str
    parts: tuple[str, ...]
    in_order: bool


def compose_request(
    seed: int, captions: Sequence[str], lasting: Sequence[str], weights: Mapping[str, float], *, paraphrased: float = 0.0
) -> Request:
    """captions: to draw from; lasting: of sounds that can be a background. weights: shares of single, repeat, sequence and overlay.

    paraphrased: share of captions that are said in other words (data/paraphrases.py).
    """
    rng = np.random.default_rng(seed)
    kinds = list(weights)
    kind = kinds[rng.choice(len(kinds), p=np.array([weights[k] for k in kinds]) / sum(weights.values()))]

    def say(caption: str) -> str:
        return paraphrase(caption, rng) if rng.random() < paraphrased else caption

    first = choose(captions, rng)
    other = choose(lasting if kind == "overlay" else captions, rng)
    if kind in ("sequence", "overlay") and other != first:
        in_order = kind == "sequence"
        text = sequence_phrase([say(first), say(other)], rng) if in_order else overlay_phrase(say(first), say(other), rng)
        return Request(text, (first, other), in_order)
    if kind == "repeat" and not is_repeated(first):
        return Request(repeat_phrase(say(first), FEW[rng.integers(len(FEW))], rng), (first,), False)
    return Request(say(first), (first,), False)


class Requests:
    """What to ask a network for, each a function of its seed (types.Recall). pad: tokens that captions are padded to."""

    def __init__(
        self, captions: Sequence[str], lasting: Sequence[str], encoder: TextEncoder, *, weights: Mapping[str, float], paraphrased: float,
        device: torch.device, pad: int | None = None,
    ) -> None:  # fmt: skip
        self.encoder, self.device, self.pad = encoder, device, pad
        self._compose = partial(compose_request, captions=captions, lasting=lasting, weights=weights, paraphrased=paraphrased)

    def compose(self, seeds: Tensor) -> list[Request]:
        return [self._compose(seed) for seed in seeds.tolist()]

    def read(self, requests: Sequence[Request]) -> TextFeatures:
        with torch.autocast(self.device.type, enabled=False):  # as captions are encoded everywhere else
            text = encode_text(self.encoder, [request.text for request in requests])
        return text.pad_to(self.pad).to(self.device)

    def __call__(self, seeds: Tensor) -> TextFeatures:
        return self.read(self.compose(seeds))
