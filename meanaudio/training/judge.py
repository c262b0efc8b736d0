"""Training the judge of a reward on scenes of a corpus."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from meanaudio.checkpoint import save_weights, write_json
from meanaudio.codec.codec import Codec
from meanaudio.config import JudgeCheckpointConfig, TrainConfig
from meanaudio.data.extract import encode_audio, encode_text
from meanaudio.data.items import Item, Scenes, open_scenes
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.order import epoch_order
from meanaudio.data.prefetch import Prefetcher
from meanaudio.data.sources import Encoders
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.aisfx import DIM
from meanaudio.evaluation.judge import JUDGE_FILE, Judge, MelEars, make_ears, make_judge, to_asked
from meanaudio.evaluation.perturb import perturb
from meanaudio.precision import DTYPES, computing_in
from meanaudio.training.loop import Update
from meanaudio.types import Asked

HEARD_AT_ONCE = 32
HELD_OUT_SHARE = 16  # training scenes for one held-out scene
HELD_OUT_SEED = 40_000
LEAST_STD = 1e-2  # of a feature: some never answer to what comes from 16 kHz


class JudgeTask:
    """What scenes are composed of, told from everything else that the corpus holds, by recordings through the codec (Judge.forward).

    `config.data` is a manifest, `config.scenes` says how its clips are composed; what is heard of the scenes is computed once, before the
    first step.
    """

    averaged = "judge"
    best = "loss"

    def __init__(self, config: TrainConfig, device: str | torch.device = "cpu") -> None:
        if config.codec_from is None:
            raise InputError("task judge needs codec_from, the folder of the codec that the network's latents are of")
        self.config, self.device, settings = config, torch.device(device), config.judge
        encoders = Encoders(config, self.device)
        clips, mel = read_manifest(config.data), encoders.codec.config.mel
        train = self._scenes(clips, "train", mel.sample_rate, settings.items, config.loop.seed)
        held_out = self._scenes(clips, "val", mel.sample_rate, -(-settings.items // HELD_OUT_SHARE), HELD_OUT_SEED)
        captions, others = tuple(train.composer.captions), held_out.composer.captions
        sentences = [encode_text(encoders.text, each).pooled.to(self.device) for each in (captions, others)]
        places = {caption: i for i, caption in enumerate(captions)}
        self.described = JudgeCheckpointConfig(
            codec_hash=encoders.codec_hash, text=config.text, mel=mel, pooled_dim=sentences[0].shape[1], width=settings.width,
            dim=settings.dim, heads=settings.heads, near=settings.near, dropout=settings.dropout, captions=captions,
            lasting=tuple(places[caption] for caption in train.composer.lasting),
        )  # fmt: skip
        listening = encoders.codec, make_ears(mel, self.device)
        self.taught = self._heard(train, captions, *listening)
        self.asked, self.held_out_captions = self._heard(held_out, others, *listening), sentences[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            judge = make_judge(self.described, settings.dropout)
        features = self.taught[0].amax(2).float()
        judge.mean.copy_(features.mean(0))
        judge.std.copy_(features.std(0) + LEAST_STD)
        judge.captions.copy_(sentences[0])
        self.networks: dict[str, nn.Module] = {"judge": judge.to(self.device)}

    def _scenes(self, clips: list[Clip], split: str, rate: int, count: int, seed: int) -> Scenes:
        return open_scenes(self.config.data, clips, (split,), count, rate, self.config.seconds, seed, self.config.scenes)

    @torch.no_grad()
    def _heard(self, scenes: Scenes, captions: Sequence[str], codec: Codec, ears: MelEars) -> tuple[Tensor, Asked, list[str]]:
        """Perturbed scenes through the codec: features over time [N, 512, T] in bfloat16, what they hold, and ids."""
        loading, starts = self.config.loading, range(0, len(scenes), HEARD_AT_ONCE)

        def compose(number: int) -> list[Item]:
            return [scenes[i] for i in range(starts[number], min(len(scenes), starts[number] + HEARD_AT_ONCE))]

        load = Prefetcher(compose, ahead=loading.ahead, threads=loading.readers, stop=len(starts))
        features, parts, in_order, ids = list[Tensor](), list[Sequence[str]](), list[bool](), list[str]()
        try:
            for number in tqdm(range(len(starts)), desc="hearing scenes", disable=None):
                items = load(number)
                with computing_in(DTYPES[self.config.loop.precision], self.device):
                    latents = encode_audio(codec, items, codec.spec.window_latents(self.config.seconds)).mean
                    mel = codec.vae.decode(latents.to(self.device)).float()
                    features.append(ears(perturb(mel, range(starts[number], starts[number] + len(items)))).bfloat16().cpu())
                parts += [item.parts for item in items]
                in_order += [item.in_order and len(item.parts) == 2 for item in items]  # of three it is only asked whether they are heard
                ids += [item.id for item in items]
        finally:
            load.close()
        return torch.cat(features), to_asked(parts, in_order, {caption: i for i, caption in enumerate(captions)}), ids

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        settings, loop = self.config.judge, self.config.loop
        features, asked, ids = self.taught
        rows = epoch_order(len(ids), loop.batch_size, step, loop.seed)
        seed = loop.seed_of(step)
        judge: Judge = self.networks["judge"]  # type: ignore[assignment]
        noise = torch.randn((len(rows), DIM, 1), generator=torch.Generator().manual_seed(seed)).to(self.device)
        heard = features[rows].to(self.device).float() + settings.noise * noise * judge.std[:, None]
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):  # dropout draws from the global stream
            torch.manual_seed(seed)
            loss = judge(heard, asked[rows].to(self.device)).mean()
        update("judge", [(loss, [ids[row] for row in rows])])
        return {"loss": loss.item()}

    def blank(self) -> nn.Module:
        return copy.deepcopy(self.networks["judge"])

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """The loss among the captions of held-out clips; of scenes of one caption, how often it is the first of all and in the first five;
        of two in order, how often they fit better than the other way round."""
        assert isinstance(network, Judge)
        judge = copy.deepcopy(network).eval()
        judge.captions = self.held_out_captions
        features, asked = self.asked[0].to(self.device).float(), self.asked[1].to(self.device)
        costs = judge(features, asked)
        numbers = {"loss": costs.mean().item(), "scenes": float(len(costs)), "captions": float(len(judge.captions))}
        single = ((asked.parts >= 0).sum(1) == 1).nonzero()[:, 0]
        if len(single):
            fits = judge.fits(features[single].amax(2))
            own = fits.gather(1, asked.parts[single, :1])
            rank = ((fits > own) & ~judge.ignored(asked[single])[:, 0]).sum(1)
            numbers |= {"first": (rank < 1).float().mean().item(), "first_five": (rank < 5).float().mean().item()}
        ordered = asked.in_order.nonzero()[:, 0]
        if len(ordered):
            turned = Asked(_turned(asked.parts[ordered]), asked.in_order[ordered])
            numbers["in_order"] = (costs[ordered] < judge(features[ordered], turned)).float().mean().item()
        return numbers

    def export(self, network: nn.Module, folder: Path) -> None:
        save_weights(folder / JUDGE_FILE, network.state_dict())
        write_json(folder / "config.json", self.described.model_dump(mode="json"))


def _turned(parts: Tensor) -> Tensor:
    """The first two the other way round."""
    return torch.cat([parts[:, :2].flip(1), parts[:, 2:]], 1)
