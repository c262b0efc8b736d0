"""Training the scorer on the shards of a generator: which of a batch's captions belongs to these latents, and the other way round."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.checkpoint import save_weights, write_json
from meanaudio.config import ScorerCheckpointConfig, TrainConfig
from meanaudio.data.extract import encode_text
from meanaudio.errors import InputError
from meanaudio.models.scorer import KNOWN_FILE, MAX_SCALE, SCORER_FILE, Scorer, make_scorer
from meanaudio.precision import DTYPES, computing_in
from meanaudio.text import make_encoder
from meanaudio.training.listening import CHUNK, begin, draw_rows, noisy_batch, open_splits
from meanaudio.training.loop import Update

AMONG = 50  # captions that a held-out clip's own is looked for among


class ScorerTask:
    """Symmetric cross entropy over a batch's cosines (InfoNCE, as CLIP's). Captions that say nearly the same are no counterexamples.

    `config.data` holds shards train/ and val/ with stored text; `config.text` must be the encoder they were made with.
    """

    averaged = "scorer"
    best = "loss"

    def __init__(self, config: TrainConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.train, self.held_out = open_splits(config)
        for shards in (self.train, self.held_out):
            if shards.index.get("text") != config.text.model_dump():
                raise InputError(f"{shards.name}: made with text {shards.index.get('text')}, the config says {config.text.model_dump()}")
        settings = config.scorer
        known = chosen_captions(self.train.clip_captions, settings.known)
        self.described = ScorerCheckpointConfig(
            codec_hash=self.train.index["codec_hash"], text=config.text, latent_dim=self.train.latent_shape[1],
            pooled_dim=self.train.pooled_dim, width=settings.width, blocks=settings.blocks, dim=settings.dim, outside=settings.outside,
        )  # fmt: skip
        scorer = begin(partial(make_scorer, self.described, known), config, self.train)
        scorer.known_text.copy_(self._text_vectors(list(known)))
        self.std = scorer.std.clone()
        self.networks: dict[str, nn.Module] = {"scorer": scorer.to(self.device)}

    def _text_vectors(self, captions: list[str]) -> Tensor:
        """Unit sentence vectors [K, P] by the encoder that the shards were made with."""
        text, source = self.config.text, self.config.text_from or self.config.codec_from
        folder = None if source is None else Path(source)
        encoder = make_encoder(text.encoder, max_tokens=text.max_tokens, device=str(self.device), folder=folder)
        if (made_with := self.train.index.get("text_fingerprint")) not in (None, encoder.fingerprint):
            raise InputError(f"{self.train.name}: made with text encoder {made_with}, here is {encoder.fingerprint}")
        parts = [encode_text(encoder, captions[i : i + CHUNK]).pooled for i in range(0, len(captions), CHUNK)]
        return F.normalize(torch.cat(parts), dim=-1)

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        chosen = draw_rows(self.config, len(self.train), step)
        batch, latents = noisy_batch(self.config, self.train, chosen, step, noise=self.config.scorer.noise, std=self.std)
        loss, found = self._loss(self.networks["scorer"], latents, batch.text.pooled)
        update("scorer", [(loss, batch.ids)])
        return {"loss": loss.item(), "found_in_batch": found}

    def _loss(self, scorer: nn.Module, latents: Tensor, pooled: Tensor) -> tuple[Tensor, float]:
        """The loss of B clips and their captions, and the share of clips whose own caption fits best."""
        assert isinstance(scorer, Scorer)
        with computing_in(DTYPES[self.config.loop.precision], self.device):
            pooled = pooled.to(self.device)
            cosines = scorer.hear(latents.to(self.device)).float() @ scorer.read(pooled).float().T
        return contrastive_loss(cosines, alike(pooled, self.config.scorer.near), scorer.log_scale)

    def blank(self) -> nn.Module:
        return copy.deepcopy(self.networks["scorer"])

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """The loss in batches of the training's size, and how often a held-out clip's own caption is first and in the first five of 50."""
        assert isinstance(network, Scorer)
        count, size = len(self.held_out), self.config.loop.batch_size
        losses, heard, read, texts = [], [], [], []
        for first in range(0, count, size):
            batch = self.held_out.batch(range(first, min(count, first + size)))
            losses.append(self._loss(network, batch.mean, batch.text.pooled)[0] * len(batch.ids))
            heard.append(network.hear(batch.mean.to(self.device)).cpu())
            read.append(network.read(batch.text.pooled.to(self.device)).cpu())
            texts.append(batch.text.pooled)
        ranks = own_ranks(torch.cat(heard) @ torch.cat(read).T, alike(torch.cat(texts), self.config.scorer.near))
        return {
            "loss": torch.stack(losses).sum().item() / count,
            f"first_of_{AMONG}": (ranks < 1).float().mean().item(),
            f"first_five_of_{AMONG}": (ranks < 5).float().mean().item(),
            "items": float(count),
        }

    def export(self, network: nn.Module, folder: Path) -> None:
        assert isinstance(network, Scorer)
        save_weights(folder / SCORER_FILE, network.state_dict())
        write_json(folder / KNOWN_FILE, network.known)
        write_json(folder / "config.json", self.described.model_dump(mode="json"))


def chosen_captions(captions: dict[str, int], most: int) -> dict[str, int]:
    """The `most` frequent captions, the most frequent first; of equals those that come first, evenly over the list where it is cut."""
    ordered = sorted(captions, key=lambda caption: -captions[caption])
    if len(ordered) > most:
        least = captions[ordered[most]]
        sure = [c for c in ordered if captions[c] > least]
        equals = [c for c in ordered if captions[c] == least]
        ordered = sure + [equals[i * len(equals) // (most - len(sure))] for i in range(most - len(sure))]
    return {caption: captions[caption] for caption in ordered}


def alike(pooled: Tensor, near: float) -> Tensor:
    """[B, B] True for other rows whose captions say nearly the same: cosine of their sentence vectors [B, P] at least `near`."""
    unit = F.normalize(pooled, dim=-1)
    return (unit @ unit.T >= near).fill_diagonal_(False)


def contrastive_loss(cosines: Tensor, ignored: Tensor, log_scale: Tensor) -> tuple[Tensor, float]:
    """cosines [B, B] of clips (rows) and captions (columns), pairs on the diagonal; pairs that are `ignored` take no part.

    The mean of both directions' cross entropies, and the share of rows whose own caption is the best.
    """
    logits = (log_scale.exp().clamp_max(MAX_SCALE) * cosines).masked_fill(ignored, float("-inf"))
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean().item()


def own_ranks(cosines: Tensor, ignored: Tensor, among: int = AMONG) -> Tensor:
    """For each clip (row) how many captions fit better than its own [N], among itself and the next `among` - 1 that are not `ignored`."""
    count = len(cosines)
    ranks = []
    for i in range(count):
        others = [j % count for j in range(i + 1, i + count) if not ignored[i, j % count]][: among - 1]
        ranks.append((cosines[i, others] > cosines[i, i]).sum())
    return torch.stack(ranks)
