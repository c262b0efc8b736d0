"""Distances between sets of latents, cheap enough for every evaluation during training."""

from __future__ import annotations

import torch
from torch import Tensor

from meanaudio.evaluation.metrics import frechet_distance_of_samples


def summary(latents: Tensor) -> Tensor:
    """Time-averaged statistics of latents [B, L, C]: mean, standard deviation and mean absolute change per channel, [B, 3C]."""
    change = latents.diff(dim=1).abs().mean(1)
    return torch.cat([latents.mean(1), latents.std(1), change], 1)


def held_out_distance(made: Tensor, reference: Tensor) -> dict[str, float]:
    """Distances between outputs and recordings of the same captions, both normalised latents [B, L, C].

    frechet: Fréchet distance of the summaries. match: mean distance of each output's summary to its own caption's recording,
    divided by the mean distance to all recordings; 1 is chance, lower is nearer to the caption. One item alone has no frechet.
    """
    a, b = summary(made).cpu().double(), summary(reference).cpu().double()  # an Apple GPU has no float64
    distances = torch.cdist(a, b)
    match = (distances.diagonal().mean() / distances.mean()).item()
    return ({"frechet": frechet_distance_of_samples(a, b)} if len(a) > 1 else {}) | {"match": match}
