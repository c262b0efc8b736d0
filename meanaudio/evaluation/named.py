"""Is what was asked for what is heard? A tagger names outputs of written prompts and recordings of the same concepts; and the order of
several sounds in one prompt, by the tagger over time.

A concept is *named* in a sound where one of its classes is among the tagger's TOP. Recordings say which concepts that tagger can name at
all, and how often: outputs are compared with them, with recordings that are put together as the prompt asks, which hide one another and
share the tagger's TOP as the sounds of outputs do, and with those through the codec, which a network on it is hardly expected to beat.
Two controls are heard beside: outputs of prompts without the concept, and recordings of other concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from meanaudio.audio import fit, limit_peak, load_audio, match_level, resample
from meanaudio.concepts import names
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.tables import read_rows
from meanaudio.errors import InputError
from meanaudio.evaluation.clips import evenly
from meanaudio.evaluation.features import listen
from meanaudio.evaluation.hearing import Hearing, Listener, make_listener, trim
from meanaudio.evaluation.plan import GENERATED_LEVEL_DB
from meanaudio.pipeline import MeanAudio

TOP = 5
NAMEABLE = 0.5  # share of its recordings in which a concept is named, from which on it counts
RECORDINGS = 20  # of a concept, at most
TAKES = 4  # recordings of its concepts that are put together for each prompt of several
WINDOW, HOP = 0.96, 0.48  # seconds: what the tagger hears at a time in a sequence
CHUNK = 16  # clips at a time
Kind = Literal["plain", "together", "sequence"]


@dataclass(frozen=True)
class Concept:
    """words: comma-separated names that captions of its recordings hold. classes: the tagger's that name it."""

    name: str
    words: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """concepts: names, in the order in which they are to be heard where `kind` is "sequence"."""

    text: str
    kind: Kind
    concepts: tuple[str, ...]


def _rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    rows = [row for _, row in read_rows(path)]
    if missing := [c for c in columns if not rows or rows[0].get(c) is None]:
        raise InputError(f"{path}: a table with {', '.join(columns)} is wanted; it has no {', no '.join(missing)}, or no rows")
    return [[(row[c] or "").strip() for c in columns] for row in rows]


def read_concepts(path: Path | None = None) -> dict[str, Concept]:
    """name -> Concept, of a table with the columns concept, words, classes (separated by semicolons); the package's if None."""
    path = path or Path(__file__).parent / "concepts.tsv"
    rows = _rows(path, ("concept", "words", "classes"))
    return {name: Concept(name, heard, tuple(c.strip() for c in classes.split(";"))) for name, heard, classes in rows}


def read_prompts(concepts: Mapping[str, Concept], path: Path | None = None) -> list[Prompt]:
    """Prompts of a table with the columns prompt, kind, concepts (separated by semicolons); the package's if None.

    Raises InputError for an unknown kind or concept, and for a sequence of fewer than two.
    """
    path = path or Path(__file__).parent / "concept_prompts.tsv"
    prompts = []
    for text, kind, told in _rows(path, ("prompt", "kind", "concepts")):
        wanted = tuple(c.strip() for c in told.split(";"))
        if kind not in get_args(Kind):
            raise InputError(f"{path}: {text!r} is of kind {kind!r}: must be one of {', '.join(get_args(Kind))}")
        if unknown := [c for c in wanted if c not in concepts]:
            raise InputError(f"{path}: {text!r} names {', '.join(unknown)}, which no row of the concepts explains")
        if (kind == "plain") != (len(wanted) == 1):
            raise InputError(f"{path}: {text!r} is of kind {kind!r} and names {len(wanted)} concept(s): one if plain, otherwise more")
        prompts.append(Prompt(text, kind, wanted))  # type: ignore[arg-type]
    return prompts


@dataclass(frozen=True)
class Rates:
    """Shares of 0 to 1. recordings: mean, over what prompts name, of the concept's recordings that are named; composed: of recordings that
    are put together as the prompt asks (of a plain prompt, those themselves), over `composable` pairs, whose prompts have recordings of
    each concept; coded: of the same through the codec; outputs likewise.

    other_outputs, other_recordings: named in outputs of prompts, and in recordings, that do not hold the concept. pairs: counted.
    """

    pairs: int
    composable: int
    recordings: float
    composed: float
    coded: float
    outputs: float
    other_outputs: float
    other_recordings: float


@dataclass(frozen=True)
class Order:
    """Of sequences: heard, all sounds are named somewhere; ordered, they are heard and culminate in the order of the prompt."""

    count: int
    heard: float
    ordered: float


@dataclass(frozen=True)
class Named:
    """recorded: concept -> (share of its recordings in which it is named, their number); coded: -> share of these through the codec;
    made: -> (share of its outputs, their number).

    rates: by kind of prompt and of "all", nameable concepts only. order: of outputs, of recordings that are joined, of these through the
    codec and of other prompts' outputs; empty without sequences.
    """

    title: str
    recorded: dict[str, tuple[float, int]]
    coded: dict[str, float]
    made: dict[str, tuple[float, int]]
    rates: dict[str, Rates]
    order: dict[str, Order]

    def to_text(self) -> str:
        able = sum(share >= NAMEABLE for share, _ in self.recorded.values())
        lines = [
            self.title,
            f"{able} of {len(self.recorded)} concepts are named (class in the top {TOP}) in {NAMEABLE:.0%} or more of their recordings:",
            f"{'prompts':<12}{'pairs':>6}{'recordings':>12}{'composed':>10}{'codec':>8}{'outputs':>9}  of recordings  of composed"
            "  other outputs  other recordings",
        ]
        for kind, r in self.rates.items():
            shares = "".join(f"{x:>{width}.1%}" for x, width in ((r.recordings, 12), (r.composed, 10), (r.coded, 8), (r.outputs, 9)))
            ratios = f"{_ratio(r.outputs, r.recordings):>15}{_ratio(r.outputs, r.composed):>13}"
            lines.append(f"{kind:<12}{r.pairs:>6}{shares}{ratios}{r.other_outputs:>15.1%}{r.other_recordings:>18.1%}")
        if self.order:
            lines += ["", f"{'sequences':<24}{'count':>7}{'all heard':>11}{'in order':>10}"]
            lines += [f"{name:<24}{o.count:>7}{o.heard:>11.1%}{o.ordered:>10.1%}" for name, o in self.order.items()]
        lines += ["", f"{'concept':<24}{'recordings':>12}{'codec':>8}{'outputs':>12}"]
        for name, (share, count) in sorted(self.recorded.items(), key=lambda entry: -entry[1][0]):
            made, outputs = self.made[name]
            cells = [f"{x:.0%} of {n}" if n else "none" for x, n in ((share, count), (made, outputs))]
            coded = f"{self.coded[name]:.0%}" if count else ""
            lines.append(f"{name:<24}{cells[0]:>12}{coded:>8}{cells[1]:>12}")
        return "\n".join(lines)


class _Tagger:
    """Which concepts a listener names in sounds [B, N] at `rate`."""

    def __init__(self, listener: Listener, concepts: Mapping[str, Concept], rate: int) -> None:
        if listener.classes is None:
            raise InputError(f"extractor {listener.name!r} has no class names")
        place = {name: k for k, name in enumerate(listener.classes)}
        if unknown := sorted({c for concept in concepts.values() for c in concept.classes if c not in place}):
            raise InputError(f"no class of {listener.name} is called {', '.join(unknown)}")
        self.classes = {c.name: torch.tensor([place[name] for name in c.classes]) for c in concepts.values()}
        self.listener, self.rate, self.most = listener, rate, min(TOP, len(place))
        self.over_time = Listener(listener.extractor, Hearing(noise_db=listener.hearing.noise_db))  # windows are not to be trimmed

    def top(self, audio: Tensor) -> list[set[int]]:
        """The TOP classes of each clip."""
        logits = listen(self.listener, audio, self.rate, level_db=GENERATED_LEVEL_DB).logits
        assert logits is not None
        return [set(row) for row in logits.topk(self.most, 1).indices.tolist()]

    def names(self, top: set[int], concept: str) -> bool:
        return not top.isdisjoint(self.classes[concept].tolist())

    def order(self, clip: Tensor, concepts: Sequence[str]) -> tuple[bool, bool]:
        """(all are named in some window, and those in which they culminate follow one another) of a clip [N]."""
        rate = self.listener.sample_rate
        sound = torch.from_numpy(resample(clip.numpy(), self.rate, rate))
        size, hop = round(WINDOW * rate), round(HOP * rate)
        windows = fit(sound, max(size, len(sound))).unfold(0, size, hop)
        logits = torch.stack([found.logits for found in self.over_time(list(windows)) if found.logits is not None])
        in_top = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(self.most, 1).indices, True)
        peaks = []
        for concept in concepts:
            own = self.classes[concept]
            scores = logits[:, own].masked_fill(~in_top[:, own], -torch.inf).amax(1)
            if scores.max() == -torch.inf:
                return False, False
            peaks.append(int(scores.argmax()))
        return True, all(a < b for a, b in pairwise(peaks))


@torch.inference_mode()
def named(
    model: str | Path, manifest: str | Path, *, extractor: str = "yamnet", concepts: Path | None = None, prompts: Path | None = None,
    outputs: int = 1, steps: int = 1, guidance_scale: float = 1.0, candidates: int = 1, by_event: bool | None = None,
    known_captions: int | None = None, seed: int = 0, device: str | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Named:  # fmt: skip
    """Tag `outputs` clips of each prompt, and up to RECORDINGS recordings of each concept: `manifest`'s whose captions hold its words.

    concepts, prompts: tables in place of the package's. seed: of the first clip, the next ones count up. progress: told of clips made.
    A concept without recordings counts as not nameable. Raises InputError for tables that do not fit together, and if none has any.
    """
    if outputs < 1:
        raise InputError(f"outputs = {outputs}: must be 1 or more")
    known = read_concepts(concepts)
    asked = read_prompts(known, prompts)
    known = {name: known[name] for name in dict.fromkeys(c for prompt in asked for c in prompt.concepts)}
    rows = read_manifest(manifest)
    having = {c.name: evenly([clip for clip in rows if names(clip.caption, c.words)], RECORDINGS) for c in known.values()}
    if not any(having.values()):
        raise InputError(f"{manifest}: no caption holds the words of any concept: {', '.join(known)}")
    pipeline = MeanAudio.from_pretrained(model, device=device)
    rate, seconds = pipeline.sample_rate, pipeline.config.seconds
    tagger = _Tagger(make_listener(extractor, str(pipeline.device)), known, rate)
    sounds = {name: _recordings(found, rate, seconds) for name, found in having.items() if found}
    recorded = {name: tagger.top(found) for name, found in sounds.items()}
    through = {name: tagger.top(pipeline.codec.reconstruct(found.to(pipeline.device))) for name, found in sounds.items()}

    texts = [prompt.text for prompt in asked for _ in range(outputs)]
    made = []
    for start in range(0, len(texts), CHUNK):
        some = texts[start : start + CHUNK]
        clips = pipeline.generate(
            some, steps=steps, seed=seed + start, guidance_scale=guidance_scale, num_candidates=candidates, by_event=by_event,
            known_captions=known_captions,
        )  # fmt: skip
        made.append(clips.samples.float().cpu())
        progress(len(some))
    audio = torch.cat(made).unflatten(0, (len(asked), outputs))
    heard = [tagger.top(each) for each in audio]
    composable = {k: prompt for k, prompt in enumerate(asked) if all(c in sounds for c in prompt.concepts)}
    composed = {
        k: _put_together(prompt.kind, [sounds[c] for c in prompt.concepts], k, rate)
        for k, prompt in composable.items()
        if prompt.kind != "plain"
    }
    coded_too = {k: pipeline.codec.reconstruct(found.to(pipeline.device)).float().cpu() for k, found in composed.items()}
    in_composed, in_coded = (
        {k: tagger.top(several[k]) if k in several else alone[prompt.concepts[0]] for k, prompt in composable.items()}
        for several, alone in ((composed, recorded), (coded_too, through))
    )

    real, coded = ({name: _share(tagger, tops.get(name, []), name) for name in known} for tops in (recorded, through))
    shares = [{name: _share(tagger, found, name) for name in known} for found in heard]

    def without(concept: str, name: str) -> list[set[int]]:
        """What is heard in those recordings of `name` whose captions do not speak of `concept`."""
        heard_in = zip(having[name], recorded[name], strict=True)
        return [top for clip, top in heard_in if not names(clip.caption, known[concept].words)]

    def asks_for(prompt: Prompt, concept: str) -> bool:
        return concept in prompt.concepts or names(prompt.text, known[concept].words)

    others = {c: _mean([shares[k][c] for k, prompt in enumerate(asked) if not asks_for(prompt, c)]) for c in known}
    elsewhere = {c: _mean([_share(tagger, tops, c) for name in recorded if (tops := without(c, name))]) for c in known}

    def rates(kind: str) -> Rates:
        chosen = [(k, prompt) for k, prompt in enumerate(asked) if kind in ("all", prompt.kind)]
        pairs = [(k, c) for k, prompt in chosen for c in prompt.concepts if real[c] >= NAMEABLE]
        own = _mean([shares[k][c] for k, c in pairs])
        before, other, chance = (_mean([share[c] for _, c in pairs]) for share in (real, others, elsewhere))
        joined, after = ([_share(tagger, found[k], c) for k, c in pairs if k in found] for found in (in_composed, in_coded))
        return Rates(len(pairs), len(joined), before, _mean(joined), _mean(after), own, other, chance)

    of = {name: [k for k, prompt in enumerate(asked) if name in prompt.concepts] for name in known}
    how = f"{len(asked)} prompts, {outputs} output(s) each, {steps} step(s)"
    how += f", guidance {guidance_scale:g}" if guidance_scale != 1 else ""
    how += f", the best of {candidates}" if candidates > 1 else ""
    how += ", by event" if (pipeline.config.by_event if by_event is None else by_event) else ""
    read_with = pipeline.config.known_captions if known_captions is None else known_captions
    how += f", read with {read_with} known caption(s)" if read_with else ""
    return Named(
        f"{pipeline.name}: {how}, heard by {extractor.partition('=')[0]}",
        {name: (share, len(having[name])) for name, share in real.items()},
        coded,
        {name: (_mean([shares[k][name] for k in places]), outputs * len(places)) for name, places in of.items()},
        {kind: rates(kind) for kind in ("all", *dict.fromkeys(prompt.kind for prompt in asked))},
        _orders(asked, audio, {"recordings, joined": composed, "these through the codec": coded_too}, tagger),
    )


def _recordings(clips: Sequence[Clip], rate: int, seconds: float) -> Tensor:
    """[B, N]: what is not silent of each, cut or zero-padded."""
    return torch.stack([fit(trim(load_audio(c.audio, rate, c.start, c.duration), rate, 50.0), round(seconds * rate)) for c in clips])


def _share(tagger: _Tagger, found: Sequence[set[int]], concept: str) -> float:
    return _mean([tagger.names(top, concept) for top in found])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _ratio(share: float, of: float) -> str:
    return f"{share / of:.0%}" if of else "-"


def _put_together(kind: Kind, sounds: Sequence[Tensor], number: int, rate: int) -> Tensor:
    """[TAKES, N] of recordings of each of a prompt's concepts [R, N], at the level of outputs: one after another in equal shares of the
    time if it is a sequence, otherwise all at once. number: the prompt's, from which on takes are chosen.
    """
    parted = kind == "sequence"
    length = round(sounds[0].shape[1] / len(sounds)) if parted else sounds[0].shape[1]
    parts = [found[[(number + n * len(found) // TAKES) % len(found) for n in range(TAKES)], :length] for found in sounds]
    parts = [limit_peak(match_level(part, GENERATED_LEVEL_DB, rate)) for part in parts]
    return torch.cat(parts, 1) if parted else limit_peak(torch.stack(parts).sum(0))


def _orders(asked: Sequence[Prompt], audio: Tensor, recorded: Mapping[str, Mapping[int, Tensor]], tagger: _Tagger) -> dict[str, Order]:
    """audio: [prompts, outputs, N]; recorded: by what they are called, recordings that are put together, of prompts by number."""
    places = [k for k, prompt in enumerate(asked) if prompt.kind == "sequence"]
    if not places:
        return {}

    def order(clips: Mapping[int, Iterable[Tensor]]) -> Order:
        found = [tagger.order(clip, asked[k].concepts) for k in places for clip in clips.get(k, [])]
        return Order(len(found), _mean([heard for heard, _ in found]), _mean([ordered for _, ordered in found]))

    of_another = {k: audio[other] for k, other in zip(places, places[1:] + places[:1], strict=True) if other != k}
    rows = {"outputs": {k: audio[k] for k in places}, **recorded, "outputs of another": of_another}
    return {name: order(clips) for name, clips in rows.items()}
