"""Training the judge of a reward on the shards of a generator."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from meanaudio.checkpoint import save_weights, write_json
from meanaudio.codec.codec import VAE, load_vae
from meanaudio.config import JudgeCheckpointConfig, TextConfig, TrainConfig, parse
from meanaudio.data.order import epoch_order
from meanaudio.data.shards import ShardDataset
from meanaudio.data.sources import check_codec
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.aisfx import DIM
from meanaudio.evaluation.judge import JUDGE_FILE, Judge, MelEars, make_ears, make_judge
from meanaudio.precision import DTYPES, computing_in
from meanaudio.training.listening import open_splits
from meanaudio.training.loop import Update
from meanaudio.training.scorer import AMONG, alike, contrastive_loss, own_ranks

HEARD_AT_ONCE = 32
LEAST_STD = 1e-2  # of a feature: some never answer to what comes from 16 kHz


class JudgeTask:
    """Which of a batch's captions belongs to these features, and the other way round (the scorer's loss), on recordings through the codec.

    `config.data` holds shards train/ and val/; what is heard of their items is computed once, before the first step.
    """

    averaged = "judge"
    best = "loss"

    def __init__(self, config: TrainConfig, device: str | torch.device = "cpu") -> None:
        if config.codec_from is None:
            raise InputError("task judge needs codec_from, the folder of the codec that the shards were made with")
        self.config, self.device, settings = config, torch.device(device), config.judge
        train, held_out = open_splits(config)
        check_codec(train, Path(config.codec_from))
        vae, codec = load_vae(Path(config.codec_from))
        self.described = JudgeCheckpointConfig(
            codec_hash=train.index["codec_hash"], text=parse(TextConfig, train.index["text"], train.name), mel=codec.mel,
            pooled_dim=train.pooled_dim, width=settings.width, dim=settings.dim, near=settings.near,
            others=min(settings.others, len(train)),
        )  # fmt: skip
        ears, vae = make_ears(codec.mel, self.device), vae.to(self.device)
        self.taught, self.asked = (self._heard(shards, vae, ears) for shards in (train, held_out))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            judge = make_judge(self.described, settings.dropout)
        features, pooled = self.taught[0], self.taught[1]
        judge.mean.copy_(features.mean(0))
        judge.std.copy_(features.std(0) + LEAST_STD)
        judge.others.copy_(pooled[: self.described.others])
        self.networks: dict[str, nn.Module] = {"judge": judge.to(self.device)}

    @torch.no_grad()
    def _heard(self, shards: ShardDataset, vae: VAE, ears: MelEars) -> tuple[Tensor, Tensor, list[str]]:
        """Features [N, 512], sentence vectors [N, P] and ids of at most `judge.items` items, evenly over the shards."""
        count = min(self.config.judge.items, len(shards))
        places = [i * len(shards) // count for i in range(count)]
        features, pooled, ids = [], [], []
        for i in tqdm(range(0, count, HEARD_AT_ONCE), desc=f"hearing {shards.name}", disable=None):
            batch = shards.batch(places[i : i + HEARD_AT_ONCE])
            with computing_in(DTYPES[self.config.loop.precision], self.device):
                features.append(ears(vae.decode(batch.mean.to(self.device))).cpu())
            pooled.append(batch.text.pooled)
            ids += batch.ids
        return torch.cat(features), torch.cat(pooled), ids

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        settings, loop = self.config.judge, self.config.loop
        features, pooled, ids = self.taught
        rows = epoch_order(len(ids), loop.batch_size, step, loop.seed)
        generator = torch.Generator().manual_seed(loop.seed * 1_000_003 + step)
        judge: Judge = self.networks["judge"]  # type: ignore[assignment]
        noise = settings.noise * torch.randn((len(rows), DIM), generator=generator).to(self.device) * judge.std
        with torch.random.fork_rng(devices=[]):  # dropout draws from the global stream
            torch.manual_seed(loop.seed * 1_000_003 + step)
            loss, found = self._loss(judge, features[rows].to(self.device) + noise, pooled[rows].to(self.device))
        update("judge", [(loss, [ids[row] for row in rows])])
        return {"loss": loss.item(), "found_in_batch": found}

    def _loss(self, judge: Judge, features: Tensor, pooled: Tensor) -> tuple[Tensor, float]:
        cosines = judge.hear(features) @ judge.read(pooled).T
        return contrastive_loss(cosines, alike(pooled, judge.near), judge.log_scale)

    def blank(self) -> nn.Module:
        return copy.deepcopy(self.networks["judge"])

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """As the scorer's: the loss in batches of the training's size, and how often its own caption is first and in the first five."""
        assert isinstance(network, Judge)
        network.eval()
        features, pooled = (x.to(self.device) for x in self.asked[:2])
        size = self.config.loop.batch_size
        losses = [self._loss(network, f, p)[0] * len(f) for f, p in zip(features.split(size), pooled.split(size), strict=True)]
        ranks = own_ranks(network.hear(features) @ network.read(pooled).T, alike(pooled, network.near))
        return {
            "loss": torch.stack(losses).sum().item() / len(features),
            f"first_of_{AMONG}": (ranks < 1).float().mean().item(),
            f"first_five_of_{AMONG}": (ranks < 5).float().mean().item(),
            "items": float(len(features)),
        }

    def export(self, network: nn.Module, folder: Path) -> None:
        save_weights(folder / JUDGE_FILE, network.state_dict())
        write_json(folder / "config.json", self.described.model_dump(mode="json"))
