"""The judge of a reward: how much of what was asked for is heard in a mel, by a network that knows sound effects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.checkpoint import load_into, load_module, read_json
from meanaudio.codec.codec import VAE
from meanaudio.codec.mel import slaney_points
from meanaudio.config import JudgeCheckpointConfig, MelConfig, SceneConfig, TextConfig, parse
from meanaudio.data.requests import Requests
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.aisfx import DIM, HOP, N_FFT, SAMPLE_RATE, AisfxNetwork, band_filters, compress, load_aisfx
from meanaudio.evaluation.perturb import perturb
from meanaudio.models.scorer import MAX_SCALE
from meanaudio.text import TextEncoder
from meanaudio.types import Asked, TextFeatures

JUDGE_FILE = "judge.safetensors"
LEAST_FRAMES = 8  # the network halves them three times
FIRST_SCALE = 2.3  # of cosines, as a logarithm
# A mel has no phase: the power of a band is read off its neighbours' magnitudes, and the peak of the sound off its loudest frame. Both
# factors are medians over recordings of the default corpus; the first is 10^3.03 to 10^3.21 in the bands under 8 kHz.
POWER = 10**3.15
PEAK = 0.0284
EDGE = 0.15  # share of a sound within which nothing that is to be heard in order ends or begins
STRIDE = 2  # of the moments at which one sound may follow another: about 0.4 s
SMOOTH = 0.5  # nats
LOUDEST = 2.5  # log10 magnitude of a mel, above which what a network makes is cut off


class MelEars(nn.Module):
    """log10 mel [B, M, F] of `config` -> aiSFX's features over time [B, 512, T], through which gradients flow back to the mel.

    The largest over time of each are aiSFX's embedding, and those of a stretch what it would make of the stretch, but for the edges.

    What aiSFX would see of the sound, a mel of other bands, other frames and clips with a peak of 1, is made of the mel it already has.
    """

    bands: Tensor
    widths: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.frame_rate = config.sample_rate / config.hop_length
        points = slaney_points(config.n_mels + 2, config.f_min, config.f_max).float()
        at = _between(torch.arange(N_FFT // 2 + 1) * (SAMPLE_RATE / N_FFT), points[1:-1], config.f_max)
        self.register_buffer("bands", band_filters() @ at)  # [96, M]
        self.register_buffer("widths", (points[2:] - points[:-2])[:, None] / 2)
        self.network = AisfxNetwork()

    def frames(self, mel: Tensor) -> Tensor:
        """[B, M, F] -> [B, T, 96], what the network sees. In float32, also under autocast."""
        with torch.autocast(mel.device.type, enabled=False):
            power = 10 ** (2 * mel.float().clamp(max=LOUDEST))
            # With its gradient: held fixed, it lets a network please the judge by a level that the next look takes away again.
            peak = PEAK**2 * (power * self.widths).sum(1).amax(1).clamp_min(1e-9)
            last = mel.shape[2] - 1
            count = 1 + int(mel.shape[2] / self.frame_rate * SAMPLE_RATE) // HOP
            place = (torch.arange(count, device=mel.device) * (HOP / SAMPLE_RATE * self.frame_rate) - 0.5).clamp(0, last)
            before = place.long().clamp(max=max(0, last - 1))
            power = torch.lerp(power[..., before], power[..., (before + 1).clamp(max=last)], place - before)
            return compress(POWER / peak[:, None, None] * (self.bands @ power).mT)

    def forward(self, mel: Tensor) -> Tensor:
        frames = self.frames(mel)
        return self.network.features(F.pad(frames, (0, 0, 0, max(0, LEAST_FRAMES - frames.shape[1]))))[-1].mean(3).float()


def _between(frequencies: Tensor, centres: Tensor, f_max: float) -> Tensor:
    """[N, M] weights by which values at `centres` [M] are interpolated at `frequencies` [N]; the outermost go on, and end at f_max."""
    above = torch.searchsorted(centres, frequencies).clamp(1, len(centres) - 1)
    share = ((frequencies - centres[above - 1]) / (centres[above] - centres[above - 1])).clamp(0, 1)
    weights = torch.zeros(len(frequencies), len(centres))
    weights.scatter_(1, above[:, None] - 1, 1 - share[:, None])
    weights.scatter_(1, above[:, None], share[:, None])
    return weights * (frequencies <= f_max)[:, None]


class Judge(nn.Module):
    """Features of sounds [..., D], aiSFX's unless told otherwise, and sentence vectors [..., P] into spaces of unit vectors, one of each of
    several heads.

    The heads learn the same from other first weights; what pleases all of them is less often what one of them happened to learn.
    mean, std [D]: buffers, of recordings' features. captions [C, P]: sentence vectors of what can be asked for, among which a sound's own
    is told from the others; those whose sentence vectors have a cosine of `near` or more to it take no part.
    """

    mean: Tensor
    std: Tensor
    captions: Tensor

    def __init__(
        self, *, pooled_dim: int, width: int, dim: int, heads: int, captions: int, near: float, dropout: float = 0.0, features: int = DIM
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
        """How little of what was asked is heard in features over time [B, 512, T]: nats [B], the mean over parts of a cross entropy.

        Parts are looked for in the whole sound; those in order in what is before and after a moment, for all moments that are not too close
        to an end, of which the best count (a smooth minimum of what the heads say on average). kept: factors of the hidden layers,
        [H, B, width] where sounds are heard and [H, width] where captions are read.
        """
        heard_by, read_by = kept or (None, None)
        read, ignored = self.read(self.captions, read_by), self.ignored(asked)

        def cost(heard: Tensor, rows: Tensor, part: int) -> Tensor:
            """[R, N, 512] of sounds number `rows` [R] -> [R, N], the mean of the heads'."""
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
    return Judge(**shape, captions=len(config.captions), dropout=dropout)


def make_ears(config: MelConfig, device: torch.device) -> MelEars:
    """With aiSFX's published weights, frozen. Raises InputError where they cannot be had."""
    ears = MelEars(config)
    load_into(ears.network, load_aisfx(None), "aiSFX")
    return ears.requires_grad_(False).eval().to(device)


class Opinion:
    """A trained judge who asks for sounds, and hears normalised latents [B, L, C] through a VAE's decoder (types.Judge).

    What it hears is perturbed, and its dropout goes on: what pleases many judges of many versions of a sound is less often what pleases
    nobody else. weights, paraphrased: of what is asked for (data/requests.py). pad: tokens that captions are padded to.

    seeds [B, 2]: a row's own, of its request, its perturbation and how it is heard; and the batch's, of how captions are read.
    """

    def __init__(
        self, judge: Judge, known: JudgeCheckpointConfig, ears: MelEars, vae: VAE, encoder: TextEncoder, mean: Tensor, std: Tensor,
        *, weights: Mapping[str, float], paraphrased: float, pad: int | None = None,
    ) -> None:  # fmt: skip
        self.judge, self.ears, self.vae, self.mean, self.std = judge, ears, vae, mean, std
        self.drop = partial(kept_units, shape=(known.heads, known.width), share=known.dropout)
        self.places = {caption: i for i, caption in enumerate(known.captions)}
        lasting = [known.captions[i] for i in known.lasting]
        self.requests = Requests(known.captions, lasting, encoder, weights=weights, paraphrased=paraphrased, device=mean.device, pad=pad)

    def ask(self, seeds: Tensor) -> tuple[TextFeatures, Asked]:
        requests = self.requests.compose(seeds[:, 0])
        asked = to_asked([r.parts for r in requests], [r.in_order for r in requests], self.places)
        return self.requests.read(requests), asked.to(self.mean.device)

    def __call__(self, latents: Tensor, asked: Asked, seeds: Tensor) -> Tensor:
        mel = self.vae.decode(latents * self.std + self.mean).float()
        own, common = seeds.T.tolist()
        features = self.ears(perturb(mel, own))
        kept = torch.stack([self.drop(seed) for seed in own], 1).to(mel), self.drop(common[0]).to(mel)
        with torch.autocast(latents.device.type, enabled=False):
            return self.judge(features, asked, kept)


def to_asked(parts: Sequence[Sequence[str]], in_order: Sequence[bool], places: Mapping[str, int]) -> Asked:
    """parts: captions of each sound; places: their numbers. What is in order has two."""
    assert all(len(row) == 2 for row, ordered in zip(parts, in_order, strict=True) if ordered)
    numbers = [torch.tensor([places[caption] for caption in row]) for row in parts]
    return Asked(nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=-1), torch.tensor(in_order))


def kept_units(seed: int, *, shape: Sequence[int], share: float) -> Tensor:
    """Factors of dropout [*shape], of heads and their width: 0 for `share` of the units, 1 / (1 - share) for the others."""
    return (torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) >= share).float() / (1 - share)


def load_opinion(
    folder: Path, vae: VAE, codec: MelConfig, encoder: TextEncoder, *, codec_hash: str, text: TextConfig, mean: Tensor, std: Tensor,
    scenes: SceneConfig, pad: int | None = None,
) -> Opinion:  # fmt: skip
    """Of the judge in `folder`, about latents that `vae` decodes. mean, std [C]: what denormalises. scenes: what is asked for.

    Raises InputError for a judge that was taught with other latents, mels or another text encoder.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"objective.judge: no judge in {folder}; task judge trains one (configs/judge.yaml)")
    found = parse(JudgeCheckpointConfig, read_json(path), str(path))
    wanted = {"codec_hash": codec_hash, "text": text, "mel": codec}
    if other := [f"{key} {getattr(found, key)} in place of {value}" for key, value in wanted.items() if getattr(found, key) != value]:
        raise InputError(f"judge {folder}: it was taught with {', '.join(other)}")
    judge = load_module(partial(make_judge, found), folder / JUDGE_FILE).to(mean.device)
    ears, vae = make_ears(codec, mean.device), vae.to(mean.device)
    return Opinion(judge, found, ears, vae, encoder, mean, std, weights=scenes.weights, paraphrased=scenes.paraphrase, pad=pad)
