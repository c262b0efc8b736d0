"""Does the text matter? Outputs against recordings of their own and of other captions: in the codec's latents, and as a listener hears."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio.concepts import labels
from meanaudio.convert.hub import find_checkpoint
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.scenes import SceneComposer
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors import Extractor
from meanaudio.evaluation.features import listen
from meanaudio.evaluation.hearing import make_listener
from meanaudio.evaluation.latents import summary
from meanaudio.evaluation.metrics import cosine_distances
from meanaudio.evaluation.outputs import check_options
from meanaudio.evaluation.plan import GENERATED_LEVEL_DB
from meanaudio.models.tagger import load_tagger
from meanaudio.pipeline import MeanAudio
from meanaudio.ranking import best_of, candidate_seeds, check_candidates
from meanaudio.steering import codec_names

LATENTS = "latents"
CHUNK = 32  # outputs at a time


@dataclass(frozen=True)
class Agreement:
    """ranks: [captions, outputs] place (0 is best) of the own caption's recordings among all captions'. diversity: mean cosine distance
    between clips of one caption, None for latents and for one output a caption.
    """

    ranks: Tensor
    diversity: float | None

    @property
    def top_1(self) -> float:
        return (self.ranks < 1).float().mean().item()

    @property
    def top_5(self) -> float:
        return (self.ranks < 5).float().mean().item()

    @property
    def mean_rank(self) -> float:
        return self.ranks.float().mean().item() + 1


@dataclass(frozen=True)
class TextMatch:
    """made, floor: by who compares: "latents", or a listener's name. evaluations: of networks, a clip, on average."""

    title: str
    captions: list[str]
    made: dict[str, Agreement]
    floor: dict[str, Agreement]
    evaluations: float

    def to_text(self) -> str:
        n = len(self.captions)
        lines = [self.title, f"{'':<36}{'top 1':>8}{'top 5':>8}{'mean rank':>11}{'diversity':>11}"]
        for where, made in self.made.items():
            for name, found in ((f"generated, by {where}", made), (f"other recordings, by {where}", self.floor[where])):
                diversity = "" if found.diversity is None else f"{found.diversity:>11.3f}"
                lines.append(f"{name:<36}{found.top_1:>8.1%}{found.top_5:>8.1%}{found.mean_rank:>11.2f}{diversity}")
        lines.append(f"{'chance':<36}{1 / n:>8.1%}{min(1.0, 5 / n):>8.1%}{(n + 1) / 2:>11.2f}")
        return "\n".join(lines)


def choose_captions(clips: Sequence[Clip], count: int, seed: int, classes: Sequence[str] | None = None) -> list[str]:
    """`count` captions that have recordings in the training split, drawn evenly; with `classes`, of those that name one."""
    known = sorted({c.caption for c in clips if c.split == "train"})
    if classes is not None:
        known = [caption for caption, named in zip(known, labels(known, classes), strict=True) if any(named)]
    if len(known) < count:
        which = "" if classes is None else " that name a class of the tagger"
        raise InputError(f"{count} captions asked for, the training split has {len(known)}{which}")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    return sorted(known[i] for i in order[:count].tolist())


class KnownCaptions:
    """Training captions and what their recordings are like.

    Every caption's recordings are windows like those of training (one clip at a random place), described and averaged. Fresh windows of
    the same recordings, ranked in the same way, are the best that outputs could reach under this measure: `floor`.
    Latents are described by their standardised time statistics, sounds by the listener's embedding, brought to length 1.
    """

    @torch.inference_mode()
    def __init__(
        self, pipeline: MeanAudio, manifest: str | Path, *, count: int, outputs: int, recordings: int = 8, seed: int = 0,
        classes: Sequence[str] | None = None, listener: Extractor | None = None,
    ) -> None:  # fmt: skip
        seconds, rate, clips = pipeline.config.seconds, pipeline.sample_rate, read_manifest(manifest)
        self.captions, self.outputs, self.seed = choose_captions(clips, count, seed, classes), outputs, seed
        self.rate, self.num_samples = rate, pipeline.codec.spec.num_samples(seconds)
        self.listener = listener
        known, fresh = [], []
        for caption in self.captions:
            own = [c for c in clips if c.caption == caption and c.split == "train"]
            composer = SceneComposer(own, rate, seconds, seed, weights={"single": 1.0})
            audio = torch.stack([composer(i).audio for i in range(recordings + outputs)])
            latents = pipeline.encode(audio.to(pipeline.device))
            described = self._describe(latents, lambda audio=audio: audio)  # type: ignore[misc]
            known.append({where: x[:recordings] for where, x in described.items()})
            fresh.append({where: x[recordings:] for where, x in described.items()})
        references = {where: torch.stack([x[where] for x in known]) for where in known[0]}
        spread = references[LATENTS].flatten(0, 1).std(0)
        self.spread = {where: spread if where == LATENTS else torch.ones(()) for where in references}
        self.centres = {where: x.mean(1) / self.spread[where] for where, x in references.items()}
        self.floor = self._agreements({where: torch.stack([x[where] for x in fresh]) for where in self.centres})

    def _describe(self, latents: Tensor, sound: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Rows [B, D] by who compares; sound() -> [B, N] is asked for if somebody listens."""
        found = {LATENTS: summary(latents).cpu()}
        if self.listener is not None:
            heard = listen(self.listener, sound(), self.rate, level_db=GENERATED_LEVEL_DB).embeddings
            found[self.listener.name] = torch.nn.functional.normalize(heard, dim=1)
        return found

    def _agreements(self, described: Mapping[str, Tensor]) -> dict[str, Agreement]:
        """described: [captions, outputs, D] by who compares."""
        found = {}
        for where, rows in described.items():
            names = [caption for caption in self.captions for _ in range(rows.shape[1])]
            diversity = None if where == LATENTS else cosine_distances(rows.flatten(0, 1), names)[0]
            found[where] = Agreement(own_ranks(rows / self.spread[where], self.centres[where]), diversity)
        return found

    @torch.inference_mode()
    def agreement(self, pipeline: MeanAudio, *, steps: int, **options: Any) -> tuple[dict[str, Agreement], float]:
        """Of outputs of each caption, and the network evaluations of one. options: of MeanAudio.generate that are not of its sound."""
        prompts = [caption for caption in self.captions for _ in range(self.outputs)]
        num_latents, stochastic = pipeline.codec.spec.window_latents(pipeline.config.seconds), options.pop("stochastic", False)
        candidates = options.pop("num_candidates", 1)
        check_candidates(pipeline.name, pipeline.scorer is not None, candidates, 1)
        rows: dict[str, list[Tensor]] = {}
        evaluations = 0
        for start in range(0, len(prompts), CHUNK):
            some = prompts[start : start + CHUNK]
            asked = [prompt for prompt in some for _ in range(candidates)]
            text, steering = pipeline.steer(asked, **options)
            seeds = candidate_seeds(range(self.seed + start, self.seed + start + len(some)), candidates)
            latents = pipeline.sample_latents(text, seeds, num_latents, steps=steps, steering=steering, stochastic=stochastic)
            if candidates > 1:
                latents = latents[best_of(pipeline.score(latents, pipeline.encode_text(asked)), candidates, 1)]
            for where, x in self._describe(latents, lambda latents=latents: pipeline.decode(latents, self.num_samples)).items():  # type: ignore[misc]
                rows.setdefault(where, []).append(x)
            evaluations += steering.evaluations.clips
        described = {where: torch.cat(x).unflatten(0, (len(self.captions), self.outputs)) for where, x in rows.items()}
        return self._agreements(described), evaluations / len(prompts)


def text_match(
    model: str | Path, manifest: str | Path, *, count: int = 40, outputs: int = 4, steps: int = 1, seed: int = 0,
    options: Mapping[str, Any] | None = None, naming: Path | None = None, extractor: str | None = None, device: str | None = None,
) -> TextMatch:  # fmt: skip
    """Rank `count` training captions for outputs made from each of them, each as a whole.

    options: of MeanAudio.generate, such as guidance_scale. naming: a tagger's folder; captions that name none of its classes are left out.
    extractor: who listens, beside the comparison of latents.
    """
    options = dict(options or {})
    check_options(options.keys() - {"guidance_scale"}, but={"by_event"})
    pipeline = MeanAudio.from_pretrained(model, device=device)
    classes = None if naming is None else load_tagger(naming, codec_names(find_checkpoint(model), pipeline.config)).classes
    listener = make_listener(extractor, str(pipeline.device)) if extractor else None
    known = KnownCaptions(pipeline, manifest, count=count, outputs=outputs, seed=seed, classes=classes, listener=listener)
    made, evaluations = known.agreement(pipeline, steps=steps, **options)
    ranked = options.pop("num_candidates", 1)
    how = "".join(f", {name} {value}" for name, value in options.items())
    if ranked > 1:
        how += f", the best of {ranked} by its scorer"
    what = f"{count} training captions, {outputs} outputs each, {steps} step(s), {evaluations:.1f} evaluations a clip{how}"
    return TextMatch(f"{pipeline.name}: {what}", known.captions, made, known.floor, evaluations)


def own_ranks(found: Tensor, centres: Tensor) -> Tensor:
    """found [K, S, D], centres [K, D] -> [K, S]: how many other centres lie nearer to found[k, s] than centres[k] does."""
    distances = torch.cdist(found.flatten(0, 1), centres).unflatten(0, found.shape[:2])
    own = torch.diagonal(distances, dim1=0, dim2=2).T[..., None]
    return (distances < own).sum(-1)
