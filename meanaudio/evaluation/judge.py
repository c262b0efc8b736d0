"""The judge of a reward: how much of what was asked for is heard in a mel, by a network that knows sounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.checkpoint import load_module, read_json
from meanaudio.codec.codec import VAE, Codec
from meanaudio.config import JudgeCheckpointConfig, SceneConfig, TextConfig, parse
from meanaudio.data.extract import encode_text
from meanaudio.data.requests import compose_request
from meanaudio.errors import InputError
from meanaudio.evaluation.ears import DIMS, Ears, make_ears
from meanaudio.evaluation.perturb import perturb
from meanaudio.models.scorer import MAX_SCALE
from meanaudio.text import TextEncoder
from meanaudio.types import Asked, TextFeatures

JUDGE_FILE = "judge.safetensors"
FIRST_SCALE = 2.3  # of cosines, as a logarithm
EDGE = 0.15  # share of a sound within which nothing that is to be heard in order ends or begins
STRIDE = 2  # of the moments at which one sound may follow another: about 0.4 s
SMOOTH = 0.5  # nats


class Judge(nn.Module):
    """Features of sounds [..., D] and sentence vectors [..., P] into spaces of unit vectors, one of each of several heads.

    The heads learn the same from other first weights; what pleases all of them is less often what one of them happened to learn.
    mean, std [D]: buffers, of recordings' features, D those of its ears (ears.py). captions [C, P]: sentence vectors of what can be asked
    for, among which a sound's own is told from the others; those whose sentence vectors have a cosine of `near` or more to it take no part.
    """

    mean: Tensor
    std: Tensor
    captions: Tensor

    def __init__(
        self, *, features: int = DIMS["aisfx"], pooled_dim: int, width: int, dim: int, heads: int, captions: int, near: float,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.near = near
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("captions", torch.zeros(captions, pooled_dim))
        self.audio = nn.ModuleList(_two_layers(features, width, dim, dropout) for _ in range(heads))
        self.text = nn.ModuleList(_two_layers(pooled_dim, width, dim, dropout) for _ in range(heads))
        self.log_scale = nn.Parameter(torch.full((heads,), FIRST_SCALE))

    def hear(self, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """[..., D] -> [H, ..., dim]. kept: factors of the hidden layers [H, ..., width]; without, they drop out as torch's layers do."""
        return _through(self.audio, (features - self.mean) / self.std, kept)

    def read(self, pooled: Tensor, kept: Tensor | None = None) -> Tensor:
        """[C, P] -> [H, C, dim], scaled by how sure a head is. kept [H, width]: as `hear`'s."""
        read = _through(self.text, F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5, None if kept is None else kept[:, None])
        return read * self.log_scale.exp().clamp_max(MAX_SCALE)[:, None, None]

    def fits(self, features: Tensor) -> Tensor:
        """[N, D] -> how well each caption fits by the mean of all heads [N, C]."""
        return (self.hear(features) @ self.read(self.captions).mT).mean(0)

    def ignored(self, asked: Asked) -> Tensor:
        """[B, P, C] True for captions that a part is not told from: what is near it and, unless in order, what is near the other parts."""
        unit = F.normalize(self.captions, dim=-1)
        own = asked.parts.clamp_min(0)
        near = (unit[own] @ unit.T >= self.near) & (asked.parts >= 0)[..., None]
        anywhere = near.any(1, keepdim=True).expand_as(near)
        return torch.where(asked.in_order[:, None, None], near, anywhere).scatter(2, own[..., None], False)

    def forward(self, features: Tensor, asked: Asked, kept: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """How little of what was asked is heard in features over time [B, D, T]: nats [B], the mean over parts of a cross entropy.

        Parts are looked for in the whole sound; those in order in what is before and after a moment, for all moments that are not too close
        to an end, of which the best count (a smooth minimum of what the heads say on average). kept: factors of the hidden layers,
        [H, B, width] where sounds are heard and [H, width] where captions are read.
        """
        heard_by, read_by = kept or (None, None)
        read, ignored = self.read(self.captions, read_by), self.ignored(asked)

        def cost(heard: Tensor, rows: Tensor, part: int) -> Tensor:
            """[R, N, D] of sounds number `rows` [R] -> [R, N], the mean of the heads'."""
            vectors = self.hear(heard, None if heard_by is None else heard_by[:, rows, None])
            logits = (vectors @ read.mT[:, None]).masked_fill(ignored[rows, part, None], float("-inf"))
            own = asked.parts[rows, part].view(1, -1, 1, 1).expand(*vectors.shape[:3], 1)
            return -logits.log_softmax(-1).gather(3, own)[..., 0].mean(0)

        total = features.new_zeros(len(features))
        for part in range(asked.parts.shape[1]):
            rows = ((asked.parts[:, part] >= 0) & ~asked.in_order).nonzero()[:, 0]
            total = total.index_add(0, rows, cost(features[rows].amax(2)[:, None], rows, part)[:, 0])
        total = total / (asked.parts >= 0).sum(1)
        rows = asked.in_order.nonzero()[:, 0]
        if len(rows):
            before, after = splits(features[rows])
            costs = (cost(before, rows, 0) + cost(after, rows, 1)) / 2
            smooth = -SMOOTH * (torch.logsumexp(-costs / SMOOTH, 1) - math.log(costs.shape[1]))
            total = total.index_add(0, rows, smooth)
        return total


def splits(features: Tensor) -> tuple[Tensor, Tensor]:
    """[B, D, T] -> largest values before, and from, each of N moments: two [B, N, D]. At least one moment, and T at least 2."""
    count = features.shape[2]
    first = max(1, int(EDGE * count))
    moments = torch.arange(first, max(first + 1, int((1 - EDGE) * count) + 1), STRIDE, device=features.device)
    before = features.cummax(2).values[..., moments - 1]
    after = features.flip(2).cummax(2).values.flip(2)[..., moments]
    return before.mT, after.mT


def _through(heads: nn.ModuleList, x: Tensor, kept: Tensor | None) -> Tensor:
    """Unit vectors [H, ...] of x through _two_layers, whose dropout `kept` [H, ...] takes the place of."""
    vectors = [
        layers(x) if kept is None else layers[3](layers[:2](x) * kept[i])  # type: ignore[index]
        for i, layers in enumerate(heads)
    ]
    return F.normalize(torch.stack(vectors), dim=-1)


def _two_layers(into: int, width: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, out))


def make_judge(config: JudgeCheckpointConfig, dropout: float = 0.0) -> Judge:
    shape = config.model_dump(include={"pooled_dim", "width", "dim", "heads", "near"})
    return Judge(**shape, features=DIMS[config.ears], captions=len(config.captions), dropout=dropout)


class Listener:
    """A trained judge, as `known` describes it, with its ears: how little of what was asked is heard in log10 mels [B, M, F], nats [B].

    Its dropout goes on: what pleases many judges is less often what pleases nobody else. own, common: seeds [B] of how each mel is heard,
    and the one of how captions are read.
    """

    def __init__(self, judge: Judge, known: JudgeCheckpointConfig, ears: Ears) -> None:
        self.judge, self.ears = judge, ears
        self.drop = partial(kept_units, shape=(known.heads, known.width), share=known.dropout)

    def __call__(self, mel: Tensor, asked: Asked, own: Sequence[int], common: int) -> Tensor:
        features = self.ears(mel)
        kept = torch.stack([self.drop(seed) for seed in own], 1).to(mel), self.drop(common).to(mel)
        with torch.autocast(mel.device.type, enabled=False):
            return self.judge(features, asked, kept)


class Opinion:
    """Judges who ask for sounds, and hear normalised latents [B, L, C] through a VAE's decoder (types.Judge); the mean of theirs counts.

    What they hear is perturbed: what pleases many versions of a sound is less often what pleases nobody else. known: captions that can be
    asked for, the same for all judges. weights, paraphrased: of what is asked for (data/requests.py). pad: tokens that captions are padded
    to.

    seeds [B, 2]: a row's own, of its request, its perturbation and how it is heard; and the batch's, of how captions are read.
    """

    def __init__(
        self, listeners: Sequence[Listener], known: JudgeCheckpointConfig, vae: VAE, encoder: TextEncoder, mean: Tensor, std: Tensor,
        *, weights: Mapping[str, float], paraphrased: float, pad: int | None = None,
    ) -> None:  # fmt: skip
        self.listeners, self.vae, self.encoder, self.mean, self.std = listeners, vae, encoder, mean, std
        self.pad, self.places = pad, {caption: i for i, caption in enumerate(known.captions)}
        lasting = [known.captions[i] for i in known.lasting]
        self.compose = partial(compose_request, captions=known.captions, lasting=lasting, weights=weights, paraphrased=paraphrased)

    def ask(self, seeds: Tensor) -> tuple[TextFeatures, Asked]:
        requests = [self.compose(seed) for seed in seeds[:, 0].tolist()]
        asked = to_asked([r.parts for r in requests], [r.in_order for r in requests], self.places)
        with torch.autocast(self.mean.device.type, enabled=False):  # as captions are encoded everywhere else
            text = encode_text(self.encoder, [r.text for r in requests])
        if self.pad is not None:
            text = text.pad_to(self.pad)
        return text.to(self.mean.device), asked.to(self.mean.device)

    def __call__(self, latents: Tensor, asked: Asked, seeds: Tensor) -> Tensor:
        own, common = seeds.T.tolist()
        mel = perturb(self.vae.decode(latents * self.std + self.mean).float(), own)
        return torch.stack([listener(mel, asked, own, common[0]) for listener in self.listeners]).mean(0)


def to_asked(parts: Sequence[Sequence[str]], in_order: Sequence[bool], places: Mapping[str, int]) -> Asked:
    """parts: captions of each sound; places: their numbers. What is in order has two."""
    assert all(len(row) == 2 for row, ordered in zip(parts, in_order, strict=True) if ordered)
    numbers = [torch.tensor([places[caption] for caption in row]) for row in parts]
    return Asked(nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=-1), torch.tensor(in_order))


def kept_units(seed: int, *, shape: Sequence[int], share: float) -> Tensor:
    """Factors of dropout [*shape], of heads and their width: 0 for `share` of the units, 1 / (1 - share) for the others."""
    return (torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) >= share).float() / (1 - share)


def load_opinion(
    folders: Sequence[Path], codec: Codec, encoder: TextEncoder, *, codec_hash: str, text: TextConfig, mean: Tensor, std: Tensor,
    scenes: SceneConfig, pad: int | None = None,
) -> Opinion:  # fmt: skip
    """Of the judges in `folders`, about latents that the codec's VAE decodes. mean, std [C]: what denormalises. scenes: what is asked for.

    Raises InputError for a judge that was taught with other latents, mels, captions or another text encoder.
    """
    codec, listeners, known = codec.to(mean.device), list[Listener](), list[JudgeCheckpointConfig]()
    for folder in folders:
        path = folder / "config.json"
        if not path.is_file():
            raise InputError(f"objective.judge: no judge in {folder}; task judge trains one (configs/judge.yaml)")
        found = parse(JudgeCheckpointConfig, read_json(path), str(path))
        wanted = {"codec_hash": codec_hash, "text": text, "mel": codec.config.mel}
        if other := [f"{key} {getattr(found, key)} in place of {value}" for key, value in wanted.items() if getattr(found, key) != value]:
            raise InputError(f"judge {folder}: it was taught with {', '.join(other)}")
        if known and (found.captions, found.lasting) != (known[0].captions, known[0].lasting):
            raise InputError(f"judges {folders[0]} and {folder}: they were taught different captions; train both on one manifest")
        judge = load_module(partial(make_judge, found), folder / JUDGE_FILE).to(mean.device)
        listeners.append(Listener(judge, found, make_ears(found.ears, codec, mean.device)))
        known.append(found)
    return Opinion(
        listeners, known[0], codec.vae, encoder, mean, std, weights=scenes.weights, paraphrased=scenes.paraphrase, pad=pad
    )  # fmt: skip
