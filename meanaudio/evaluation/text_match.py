"""Does the text matter? One-step outputs against recordings of their own and of other captions, in the codec's latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.scenes import SceneComposer
from meanaudio.errors import InputError
from meanaudio.evaluation.latents import summary
from meanaudio.pipeline import MeanAudio
from meanaudio.ranking import best_of, candidate_seeds, check_candidates


@dataclass(frozen=True)
class TextMatch:
    """ranks: [captions, seeds] place (0 is best) of the own caption's recordings among all captions'. candidates: behind each output."""

    model: str
    captions: list[str]
    ranks: Tensor
    floor: Tensor
    steps: int
    candidates: int = 1

    @property
    def chance(self) -> float:
        return 1 / len(self.captions)

    def to_text(self) -> str:
        n = len(self.captions)
        ranked = f", the best of {self.candidates} by its scorer" if self.candidates > 1 else ""
        rows = [
            f"{self.model}: {n} training captions, {self.ranks.shape[1]} outputs each{ranked}, {self.steps} step(s); nearest recordings "
            "by the standardised time statistics (mean, deviation, change) of codec latents",
            f"{'':<24}{'top 1':>8}{'top 5':>8}{'mean rank':>11}",
        ]
        for name, ranks in (("generated", self.ranks), ("other recordings (floor)", self.floor)):
            found = ranks.float()
            rows.append(f"{name:<24}{(found < 1).float().mean():>8.1%}{(found < 5).float().mean():>8.1%}{found.mean() + 1:>11.2f}")
        rows.append(f"{'chance':<24}{1 / n:>8.1%}{min(1.0, 5 / n):>8.1%}{(n + 1) / 2:>11.2f}")
        return "\n".join(rows)


def choose_captions(clips: Sequence[Clip], count: int, seed: int) -> list[str]:
    """`count` captions that have recordings in the training split, drawn evenly."""
    known = sorted({c.caption for c in clips if c.split == "train"})
    if len(known) < count:
        raise InputError(f"{count} captions asked for, the training split has {len(known)}")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    return sorted(known[i] for i in order[:count].tolist())


@torch.inference_mode()
def text_match(
    model: str | Path, manifest: str | Path, *, count: int = 40, seeds: int = 4, recordings: int = 8, steps: int = 1,
    candidates: int = 1, seed: int = 0, device: str | None = None,
) -> TextMatch:  # fmt: skip
    """Rank `count` training captions for outputs made from each of them. candidates: as MeanAudio.generate's num_candidates.

    Every caption's recordings are windows like those of training (one clip at a random place), summarised and averaged. Fresh windows of
    the same recordings, ranked in the same way, are the best that outputs could reach under this measure.
    """
    pipeline = MeanAudio.from_pretrained(model, device=device)
    check_candidates(pipeline.name, pipeline.scorer is not None, candidates, 1)
    seconds, rate = pipeline.config.seconds, pipeline.sample_rate
    clips = read_manifest(manifest)
    captions = choose_captions(clips, count, seed)
    composers = [
        SceneComposer([c for c in clips if c.caption == caption and c.split == "train"], rate, seconds, seed, weights={"single": 1.0})
        for caption in captions
    ]

    def summaries(first: int, many: int) -> Tensor:
        """[captions, many, 3C] of scenes first ... first + many - 1 of each caption."""
        found = []
        for composer in composers:
            audio = torch.stack([composer(first + i).audio for i in range(many)]).to(pipeline.device)
            found.append(summary(pipeline.codec.encode(audio).mean))
        return torch.stack(found)

    references = summaries(0, recordings)
    spread = references.flatten(0, 1).std(0)
    centres = references.mean(1) / spread
    num_latents = pipeline.codec.spec.window_latents(seconds)
    made = []
    for i, caption in enumerate(captions):
        text = pipeline.encode_text([caption]).expand(seeds * candidates)
        latents = pipeline.sample_latents(text, candidate_seeds(seed + i * seeds, seeds, candidates), num_latents, steps=steps)
        if candidates > 1:
            latents = latents[best_of(pipeline.score(latents, text), candidates, 1)]
        made.append(summary(latents))
    floor = own_ranks(summaries(recordings, seeds) / spread, centres)
    return TextMatch(pipeline.name, captions, own_ranks(torch.stack(made) / spread, centres), floor, steps, candidates)


def own_ranks(found: Tensor, centres: Tensor) -> Tensor:
    """found [K, S, D], centres [K, D] -> [K, S]: how many other centres lie nearer to found[k, s] than centres[k] does."""
    distances = torch.cdist(found.flatten(0, 1), centres).unflatten(0, found.shape[:2])
    own = torch.diagonal(distances, dim1=0, dim2=2).T[..., None]
    return (distances < own).sum(-1)
