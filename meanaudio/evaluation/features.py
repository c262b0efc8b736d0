"""What an extractor heard in a set of clips, and what that says of one set against another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanaudio.audio import limit_peak, match_level, resample
from meanaudio.errors import InputError
from meanaudio.evaluation import metrics
from meanaudio.evaluation.extractors import ClipFeatures, Extractor
from meanaudio.evaluation.statistics import FeatureStatistics, RunningStatistics

# What a number is called in tables, and what it is; the keys are those of results.json.
NUMBERS = {
    "frechet": ("FD", "Fréchet distance to the references, lower is better"),
    "kernel": ("KD", "unbiased kernel distance, lower is better"),
    "kl": ("KL", "mean KL(reference || output) of softmaxes, lower is better"),
    "kl_sigmoid": ("KL sigm", "the same of unnormalised sigmoids"),
    "inception": ("IS", f"inception score of softmaxes, {metrics.SPLITS} splits, seed {metrics.SPLIT_SEED}, higher is better"),
    "inception_std": ("IS sd", "its deviation over splits"),
    "clap": ("CLAP", "mean cosine of clip and caption, higher is better"),
    "diversity": ("div", "mean cosine distance between clips of one caption"),
    "spread": ("spread", "mean cosine distance between clips of different captions"),
}


@dataclass(frozen=True)
class Features:
    """names: of N clips. embeddings: [N, D], a clip's rows averaged. logits: [N, K] or None. statistics: over all rows of all clips."""

    names: list[str]
    embeddings: Tensor
    logits: Tensor | None
    statistics: FeatureStatistics

    def rows(self, names: Sequence[str]) -> Tensor:
        """Places [len(names)] of clips."""
        place = {name: k for k, name in enumerate(self.names)}
        return torch.tensor([place[name] for name in names], dtype=torch.long)


def gather(found: Iterable[tuple[str, ClipFeatures]], dim: int) -> Features:
    """Collect (name, features) pairs in one pass; of each clip only its averaged row and logits are kept. Raises InputError for none."""
    names, embeddings, logits = [], [], []
    running = RunningStatistics(dim)
    for name, clip in found:
        running.add(clip.embeddings)
        names.append(name)
        embeddings.append(clip.embeddings.mean(0))
        logits.append(clip.logits)
    if not names:
        raise InputError("no clip could be listened to")
    with_classes = [x for x in logits if x is not None]
    return Features(names, torch.stack(embeddings), torch.stack(with_classes) if with_classes else None, running.finish())


@dataclass(frozen=True)
class Comparison:
    """numbers: by the keys of NUMBERS, only those that could be computed. clips: numbers of single clips by name."""

    numbers: dict[str, float]
    clips: dict[str, dict[str, float]]


def compare(
    made: Features,
    statistics: FeatureStatistics | None,
    *,
    reference: Features | None = None,
    pairs: Mapping[str, str] | None = None,
    captions: Sequence[str] | None = None,
    texts: Tensor | None = None,
    multi_label: bool = False,
) -> Comparison:
    """All numbers of `made` that what is given allows.

    statistics: the reference rows'. reference: the clips behind them. pairs: name of a made clip -> name of its reference.
    captions: one a made clip; texts: their embeddings [N, D] by the same extractor.
    """
    numbers: dict[str, float | None] = {}
    clips: dict[str, dict[str, float]] = {name: {} for name in made.names}
    if statistics is not None and min(statistics.count, made.statistics.count) > 1:
        numbers["frechet"] = made.statistics.frechet_distance(statistics)
    if reference is not None and min(len(reference.names), len(made.names)) > 1:
        numbers["kernel"] = metrics.kernel_distance(made.embeddings, reference.embeddings)
    there = set() if reference is None else set(reference.names)
    names = [name for name in made.names if pairs is not None and pairs.get(name) in there]
    if names and pairs is not None and reference is not None and reference.logits is not None and made.logits is not None:
        theirs, ours = reference.logits[reference.rows([pairs[name] for name in names])], made.logits[made.rows(names)]
        each = metrics.kl_divergences(theirs, ours)
        numbers["kl"] = float(each.mean())
        if multi_label:
            numbers["kl_sigmoid"] = float(metrics.kl_divergences(theirs, ours, sigmoid=True).mean())
        for name, value in zip(names, each.tolist(), strict=True):
            clips[name]["kl"] = value
    if made.logits is not None:
        numbers["inception"], numbers["inception_std"] = metrics.inception_score(made.logits)
    if texts is not None:
        each = metrics.cosines(made.embeddings, texts)
        numbers["clap"] = float(each.mean())
        for name, value in zip(made.names, each.tolist(), strict=True):
            clips[name]["clap"] = value
    if captions is not None:
        numbers["diversity"], numbers["spread"] = metrics.cosine_distances(made.embeddings, captions)
    return Comparison({key: value for key, value in numbers.items() if value is not None}, clips)


def listen(extractor: Extractor, audio: Tensor, sample_rate: int, *, level_db: float | None = None, batch: int = 16) -> Features:
    """What is heard in clips [B, N] in memory; their names are "0", "1", ... level_db: dBFS each clip's loudest 400 ms is brought to."""
    audio = audio.float().cpu()
    if level_db is not None:
        audio = limit_peak(match_level(audio, level_db, sample_rate))
    clips = [torch.from_numpy(resample(x.numpy(), sample_rate, extractor.sample_rate)) for x in audio]
    found = [features for k in range(0, len(clips), batch) for features in extractor(clips[k : k + batch])]
    return gather(((str(k), features) for k, features in enumerate(found)), extractor.dim)


def compare_heard(extractor: Extractor, made: Features, reference: Features) -> dict[str, float]:
    """Numbers of outputs against recordings of the same captions, both as `listen` gave them."""
    pairs = {name: name for name in made.names}
    return compare(made, reference.statistics, reference=reference, pairs=pairs, multi_label=extractor.multi_label).numbers


def compare_audio(extractor: Extractor, made: Tensor, reference: Tensor, sample_rate: int) -> dict[str, float]:
    """The same of clips [B, N] in memory: for evaluation during training."""
    return compare_heard(extractor, listen(extractor, made, sample_rate), listen(extractor, reference, sample_rate))


def chance(reference: Features, captions: Sequence[str], texts: Tensor | None, *, multi_label: bool) -> dict[str, float]:
    """What recordings of other captions would get: paired numbers only."""
    numbers: dict[str, float | None] = {}
    if reference.logits is not None:
        numbers["kl"] = metrics.unrelated_kl(reference.logits, captions)
        if multi_label:
            numbers["kl_sigmoid"] = metrics.unrelated_kl(reference.logits, captions, sigmoid=True)
    if texts is not None:
        numbers["clap"] = metrics.unrelated_cosine(reference.embeddings, texts, captions)
    return {key: value for key, value in numbers.items() if value is not None}
