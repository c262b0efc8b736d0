"""A checkpoint's own scorer as a listener: unit vectors of clips and of captions in one space, and a text agreement that works offline.

It is no neutral judge: it was trained on the sounds that its checkpoint was trained on. Of outputs that it ranked itself, with
`num_candidates` above 1, its number says only how well it chose: never report it of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from meanaudio import DEFAULT_MODEL
from meanaudio.checkpoint import file_hash
from meanaudio.codec.codec import VAE_FILE, load_codec
from meanaudio.convert.hub import find_checkpoint
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.frames import at_least, exactly
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint
from meanaudio.models.scorer import SCORER_FILE, load_scorer
from meanaudio.pipeline import read_checkpoint_config
from meanaudio.text import make_encoder

VERSION = "1"
BATCH = 64  # captions at once


class ScorerListener:
    """Clips at the codec's rate -> one unit vector each; `encode_text` does the same for captions. A clip is heard as codec latents.

    weights: a checkpoint's folder or name; the default checkpoint's if left out. Raises InputError if it has no scorer.
    """

    name = "scorer"
    classes: tuple[str, ...] | None = None
    multi_label = False

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        folder = find_checkpoint(weights or DEFAULT_MODEL)
        config = read_checkpoint_config(folder)
        if config.scorer is None:
            raise InputError(f"{folder}: this checkpoint has no scorer (docs/scorer.md)")
        self.codec, self.scorer = load_codec(folder).to(device), load_scorer(folder, config.scorer).to(device)
        self.encoder = make_encoder(config.text.encoder, max_tokens=config.text.max_tokens, device=device, folder=folder)
        self.sample_rate, self.dim, self.device = self.codec.spec.sample_rate, self.scorer.dim, device
        self.fingerprint = fingerprint(self.name, VERSION, *(file_hash(folder / name) for name in (SCORER_FILE, VAE_FILE)))

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        features = []
        for clip in clips:
            audio = at_least(clip, self.codec.spec.samples_per_latent)[None].to(self.device)
            features.append(ClipFeatures(self.scorer.hear(self.codec.encode(audio).mean).float().cpu(), None))
        return features

    @exactly()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors [N, D] of captions."""
        parts = [self.scorer.read(self.encoder(captions[i : i + BATCH]).pooled) for i in range(0, len(captions), BATCH)]
        return torch.cat(parts).float().cpu() if parts else torch.zeros(0, self.dim)
