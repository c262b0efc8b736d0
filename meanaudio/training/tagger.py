"""Training the tagger on the shards of a generator: latents in, the concepts of their captions out."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.checkpoint import save_weights, write_json
from meanaudio.concepts import frequent_concepts, labels
from meanaudio.config import TaggerCheckpointConfig, TrainConfig
from meanaudio.data.shards import ShardDataset
from meanaudio.errors import InputError
from meanaudio.models.tagger import TAGGER_FILE, make_tagger
from meanaudio.precision import DTYPES, computing_in
from meanaudio.training.listening import CHUNK, begin, draw_rows, noisy_batch, open_splits
from meanaudio.training.loop import Update

SHOWN = 30  # words in an error
RELATED = 0.1  # share of one class's captions that also name another, from which on the two are related


class TaggerTask:
    """Cross entropy against the concepts a caption names, in equal parts. Items whose caption names none are left out, and counted.

    `config.data` holds shards train/ and val/. Training latents are drawn from their posteriors and get noise of a random level.
    """

    averaged = "tagger"
    best = "cross_entropy"

    def __init__(self, config: TrainConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.train, self.held_out = open_splits(config)
        settings = config.tagger
        classes = settings.words or frequent_concepts(self.train.captions, settings.count)
        if len(classes) < 2:
            raise InputError(f"{self.train.folder}: {len(classes)} classes in the captions ({', '.join(classes)}); at least 2 are needed")
        self.described = TaggerCheckpointConfig(
            codec_hash=self.train.index["codec_hash"], classes=classes, latent_dim=self.train.latent_shape[1],
            width=settings.width, blocks=settings.blocks,
        )  # fmt: skip
        self.taught, self.asked = (_labelled(shards, classes) for shards in (self.train, self.held_out))
        if unheard := [name for name, named in zip(classes, self.taught[1].any(0).tolist(), strict=True) if not named]:
            known = ", ".join(frequent_concepts(self.train.captions, SHOWN))
            raise InputError(f"tagger.words: no training caption names {', '.join(unheard)}; what the most of them name: {known}")
        tagger = begin(partial(make_tagger, self.described), config, self.train)
        tagger.related.copy_(_related(self.taught[1]))
        self.std = tagger.std.clone()
        self.networks: dict[str, nn.Module] = {"tagger": tagger.to(self.device)}

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        indices, targets = self.taught
        chosen = draw_rows(self.config, len(indices), step)
        rows = [indices[i] for i in chosen]
        batch, latents = noisy_batch(self.config, self.train, rows, step, noise=self.config.tagger.noise, std=self.std)
        with computing_in(DTYPES[self.config.loop.precision], self.device):
            logits = self.networks["tagger"](latents.to(self.device)).float()
        wanted = targets[chosen].to(self.device)
        loss = F.cross_entropy(logits, wanted)
        update("tagger", [(loss, batch.ids)])
        return {"loss": loss.item(), "agreement": _agreement(logits, wanted)}

    def blank(self) -> nn.Module:
        return copy.deepcopy(self.networks["tagger"])

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Cross entropy, and how often the first and one of the first five classes are named by the caption, on held-out items."""
        indices, targets = self.asked
        logits = torch.cat(
            [network(self.held_out.batch(indices[i : i + CHUNK]).mean.to(self.device)).cpu() for i in range(0, len(indices), CHUNK)]
        )
        top = logits.topk(min(5, logits.shape[1])).indices
        return {
            "cross_entropy": F.cross_entropy(logits, targets).item(),
            "agreement": _agreement(logits, targets),
            "agreement_top_5": (targets.gather(1, top) > 0).any(1).float().mean().item(),
            "chance": (targets > 0).float().mean(0).max().item(),
            "items": float(len(indices)),
            "share_of_items": len(indices) / len(self.held_out),
        }

    def export(self, network: nn.Module, folder: Path) -> None:
        save_weights(folder / TAGGER_FILE, network.state_dict())
        write_json(folder / "config.json", self.described.model_dump(mode="json"))


def _labelled(shards: ShardDataset, classes: tuple[str, ...]) -> tuple[list[int], Tensor]:
    """(indices of the items whose caption names a class, their targets [n, K], each row a distribution)."""
    found = torch.tensor(labels(shards.captions, classes)).float().reshape(-1, len(classes))
    indices = found.sum(1).nonzero()[:, 0]
    if len(indices) == 0:
        raise InputError(f"{shards.folder}: no caption names one of the classes {', '.join(classes[:20])}")
    targets = found[indices]
    return indices.tolist(), targets / targets.sum(1, keepdim=True)


def _related(targets: Tensor) -> Tensor:
    """[K, K] True where a tenth or more of the items of one class are also of the other."""
    named = (targets > 0).float()
    together = named.T @ named
    share = together / together.diagonal().clamp_min(1)[:, None]
    return torch.maximum(share, share.T) >= RELATED


def _agreement(logits: Tensor, targets: Tensor) -> float:
    """Share of the rows whose likeliest class the caption names."""
    return (targets.gather(1, logits.argmax(1, keepdim=True)) > 0).float().mean().item()
