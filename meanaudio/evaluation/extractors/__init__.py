"""Networks that listen: audio to embeddings and class logits, by name. Metrics are computed from what they return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.aisfx import Aisfx
from meanaudio.evaluation.extractors.clap import Clap
from meanaudio.evaluation.extractors.latents import Latents
from meanaudio.evaluation.extractors.panns import Panns
from meanaudio.evaluation.extractors.passt import Passt
from meanaudio.evaluation.extractors.protocol import ClipFeatures, Extractor
from meanaudio.evaluation.extractors.scorer import ScorerListener
from meanaudio.evaluation.extractors.soundnet import SoundNet
from meanaudio.evaluation.extractors.vggish import Vggish
from meanaudio.evaluation.extractors.yamnet import YamNet

__all__ = ["EXTRACTORS", "ClipFeatures", "Extractor", "make_extractor"]

EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "yamnet": YamNet,
    "panns": Panns,
    "vggish": Vggish,
    "passt": Passt,
    "clap": Clap,
    "aisfx": Aisfx,
    "soundnet": SoundNet,
    "latents": Latents,
    "scorer": ScorerListener,
}


def make_extractor(name: str, *, weights: Path | None = None, device: str = "cpu") -> Extractor:
    """Build the extractor called `name`. weights: its file or folder, for those whose weights come with no package; see each one's file."""
    if name not in EXTRACTORS:
        raise InputError(f"unknown extractor {name!r}: must be one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](weights=weights, device=device)
