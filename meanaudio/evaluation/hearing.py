"""What is done to every clip just before an extractor hears it, so that what nobody hears does not make the numbers.

Digital silence and a hiss at -93 dBFS, both inaudible, lie far apart for a listener that takes logarithms: that hiss alone moved 158
zero-padded clips by a YAMNet Fréchet distance of 39, as far as outputs of the default checkpoint were [measured; see docs/evaluation.md].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio.audio import fit
from meanaudio.evaluation.extractors import ClipFeatures, Extractor, make_extractor

VERSION = "1"  # of this file: part of the fingerprint
FRAME_SECONDS = 0.02
QUIETEST_DB = -70.0  # mean square of a frame that counts as silence in any clip
LEAST_SECONDS = 1.0  # a trimmed clip is not shorter: zeros follow, and the noise fills them


@dataclass(frozen=True)
class Hearing:
    """trim_db: silence at both ends, so far below the loudest frame, is left out. noise_db: root mean square in dBFS of white noise that is
    added to every clip; it is drawn from the clip's own samples, so that equal clips stay equal. None does nothing.
    """

    trim_db: float | None = None
    noise_db: float | None = None

    def to_text(self) -> str:
        trimmed = "whole" if self.trim_db is None else f"without what is {self.trim_db:g} dB below the loudest frame at either end"
        return f"{trimmed}, {'with no noise added' if self.noise_db is None else f'under white noise of {self.noise_db:g} dBFS'}"

    def __call__(self, clip: Tensor, sample_rate: int) -> Tensor:
        """clip: [N] -> what is heard, [M]."""
        seed = int.from_bytes(hashlib.sha256(clip.numpy().tobytes()).digest()[:6], "big")
        if self.trim_db is not None:
            clip = trim(clip, sample_rate, self.trim_db)
        if self.noise_db is not None:
            clip = clip + 10 ** (self.noise_db / 20) * torch.randn(len(clip), generator=torch.Generator().manual_seed(seed))
        return clip


def trim(clip: Tensor, sample_rate: int, below_db: float) -> Tensor:
    """From the first to the last frame of 20 ms within `below_db` of the loudest, LEAST_SECONDS at least; silence stays as it is."""
    size = max(1, round(FRAME_SECONDS * sample_rate))
    frames = fit(clip, -(-len(clip) // size) * size).unflatten(0, (-1, size)).square().mean(1)
    active = (frames >= max(frames.max() * 10 ** (-below_db / 10), 10 ** (QUIETEST_DB / 10))).nonzero()
    if len(active) == 0:
        return clip
    kept = clip[int(active[0]) * size : (int(active[-1]) + 1) * size]
    return fit(kept, max(len(kept), round(LEAST_SECONDS * sample_rate)))


# The rule where no protocol says otherwise.
TRIMMED_UNDER_NOISE = Hearing(trim_db=50.0, noise_db=-70.0)


class Listener:
    """An extractor that hears clips through `hearing`; its fingerprint says so."""

    def __init__(self, extractor: Extractor, hearing: Hearing) -> None:
        self.extractor, self.hearing = extractor, hearing
        self.name, self.sample_rate, self.dim = extractor.name, extractor.sample_rate, extractor.dim
        self.classes, self.multi_label = extractor.classes, extractor.multi_label
        self.encode_text: Callable[[Sequence[str]], Tensor] | None = getattr(extractor, "encode_text", None)
        heard = "".join(f" {key} {value}" for key, value in asdict(hearing).items())
        self.fingerprint = hashlib.sha256(f"{extractor.fingerprint} {VERSION}{heard}".encode()).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What of it makes a number. weights: the extractor's own fingerprint, whatever the hearing."""
        return {
            "name": self.name,
            "weights": self.extractor.fingerprint,
            "fingerprint": self.fingerprint,
            "sample_rate": self.sample_rate,
            "dim": self.dim,
            "classes": None if self.classes is None else len(self.classes),
            "multi_label": self.multi_label,
        }

    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        return self.extractor([self.hearing(clip, self.sample_rate) for clip in clips])


def make_listener(spec: str, device: str, hearing: Hearing = TRIMMED_UNDER_NOISE) -> Listener:
    """A listener from "NAME" or "NAME=weights". Raises InputError if there is no such extractor or its weights are missing."""
    name, _, weights = spec.partition("=")
    return Listener(make_extractor(name, weights=Path(weights).expanduser() if weights else None, device=device), hearing)
