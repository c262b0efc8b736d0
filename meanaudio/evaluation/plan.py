"""What an evaluation compares: a request, and what it comes to once manifests, prompts and names are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from meanaudio import DEFAULT_MODEL
from meanaudio.data.manifest import Clip
from meanaudio.data.prompts import Prompt, read_prompts
from meanaudio.errors import InputError
from meanaudio.evaluation.clips import Treatment, by_key, choose, evenly, matching, one_a_recording, read_clips
from meanaudio.evaluation.extractors import Extractor
from meanaudio.evaluation.hearing import Hearing
from meanaudio.evaluation.outputs import Checkpoint, Wish, check_options
from meanaudio.evaluation.protocols import Protocol
from meanaudio.evaluation.statistics import FeatureStatistics

# what a protocol says, so that whoever says otherwise departs from it
FIXED = ("limit", "steps", "clips_a_prompt", "duration", "level_db", "trim_db", "noise_db", "allow_missing", "unpaired")
GENERATED_LEVEL_DB = -18.0  # what `generate` brings clips to


@dataclass(frozen=True)
class Request:
    """What to compare. outputs: a folder or manifest; None generates from `model`. references: folders, manifests or stored statistics.

    prompts: captions, ids or both; the references' own captions if None. duration, level_db: of every clip on both sides; "default" is
    the protocol's, otherwise the checkpoint's length and generate's level, otherwise clips as they come. trim_db, noise_db: of every
    extractor's hearing; "default" is the protocol's. extractors: NAME or NAME=weights. generation: other options of MeanAudio.generate.
    """

    references: tuple[Path, ...]
    outputs: Path | None = None
    model: str | None = None
    prompts: Path | None = None
    protocol: str | None = None
    splits: tuple[str, ...] = ()
    limit: int | None = None
    steps: tuple[int, ...] = ()
    seed: int = 0
    clips_a_prompt: int = 1
    guidance_scale: float = 1.0
    generation: tuple[tuple[str, Any], ...] = ()
    duration: float | None | Literal["default"] = "default"
    level_db: float | None | Literal["default"] = "default"
    trim_db: float | None | Literal["default"] = "default"
    noise_db: float | None | Literal["default"] = "default"
    extractors: tuple[str, ...] = ()
    floor: bool = True
    codec: bool = True
    unpaired: bool = False
    allow_missing: bool = False
    device: str | None = None
    dtype: str | None = None
    vocoder: str | None = None
    batch: int = 8


@dataclass
class Plan:
    """What a request comes to. references: by name; none where their statistics are stored, by extractor, with facts.

    wishes: outputs to generate; outputs: by name, those that exist. spare: all recordings that came with the references.
    """

    treatment: Treatment
    hearing: Hearing
    references: dict[str, Clip] = field(default_factory=dict)
    stored: dict[str, tuple[FeatureStatistics, dict[str, Any]]] = field(default_factory=dict)
    spare: list[Clip] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    outputs: dict[str, Clip] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    notes: list[str] = field(default_factory=list)
    paired: bool = True


def make_plan(request: Request, protocol: Protocol, out: Path) -> Plan:
    """Read what `request` names. Raises InputError for everything that does not fit together; nothing is generated or written yet."""
    _check_numbers(request)
    _check_generation(request)
    if not request.references:
        raise InputError("nothing to compare with: give --reference a folder, a manifest, or statistics that an earlier evaluation stored")
    checkpoint = None
    if request.outputs is None or request.model is not None:
        checkpoint = Checkpoint(
            request.model or DEFAULT_MODEL, out / "outputs", device=request.device, dtype=request.dtype, vocoder=request.vocoder
        )
    plan = Plan(_treatment(request, protocol, checkpoint), _hearing(request, protocol), checkpoint=checkpoint, paired=not request.unpaired)
    if deviations := [name for name in FIXED if request.protocol is not None and getattr(request, name) != getattr(Request, name)]:
        plan.notes.append(f"not as protocol {protocol.name} has it: {', '.join(deviations)}")
    _read_references(request, protocol, plan)
    prompts = _prompts(request, protocol, plan)
    if request.outputs is not None:
        _read_outputs(request, protocol, plan, prompts)
    else:
        _wish(request, plan, prompts)
    return plan


def _check_numbers(request: Request) -> None:
    for name, value, least in (("limit", request.limit, 2), ("clips a prompt", request.clips_a_prompt, 1), ("batch", request.batch, 1)):
        if value is not None and value < least:
            raise InputError(f"{name} = {value}: must be {least} or more")
    if any(steps < 1 for steps in request.steps) or len(set(request.steps)) < len(request.steps):
        raise InputError(f"steps = {', '.join(map(str, request.steps))}: must be different numbers of 1 or more")
    if request.outputs is not None and request.steps:
        raise InputError(f"steps belong to a checkpoint; {request.outputs} holds outputs that exist already")


def _check_generation(request: Request) -> None:
    check_options(name for name, _ in request.generation)
    if request.generation and request.outputs is not None:
        raise InputError(f"options of generation belong to a checkpoint; {request.outputs} holds outputs that exist already")


def _treatment(request: Request, protocol: Protocol, checkpoint: Checkpoint | None) -> Treatment:
    duration, level = request.duration, request.level_db
    own = checkpoint if request.outputs is None and request.protocol is None else None  # whose habits are the default
    if duration == "default":
        duration = protocol.duration if own is None else own.config.seconds
    if level == "default":
        level = protocol.level_db if own is None else GENERATED_LEVEL_DB
    if duration is not None and not 0.1 <= duration <= 3600:
        raise InputError(f"duration = {duration} s: must be from 0.1 to 3600")
    if level is not None and not -80 <= level <= 0:
        raise InputError(f"level = {level}: must be from -80 to 0 dBFS, or none")
    return Treatment(duration, level)


def _hearing(request: Request, protocol: Protocol) -> Hearing:
    trim = protocol.hearing.trim_db if request.trim_db == "default" else request.trim_db
    noise = protocol.hearing.noise_db if request.noise_db == "default" else request.noise_db
    if trim is not None and not 10 <= trim <= 120:
        raise InputError(f"trim = {trim}: must be from 10 to 120 dB below the loudest frame, or none")
    if noise is not None and not -120 <= noise <= -20:
        raise InputError(f"noise = {noise}: must be from -120 to -20 dBFS, or none")
    return Hearing(trim, noise)


def _read_references(request: Request, protocol: Protocol, plan: Plan) -> None:
    stored = [path for path in request.references if path.suffix == ".safetensors"]
    sources = [path for path in request.references if path.suffix != ".safetensors"]
    if stored and sources or len(sources) > 1:
        raise InputError("references are one folder or manifest, or one file of stored statistics an extractor")
    for path in stored:
        statistics, facts = FeatureStatistics.load(path)
        extractor = facts.get("extractor")
        if not isinstance(extractor, dict) or not isinstance(extractor.get("name"), str):
            raise InputError(f"{path}: does not say which extractor it is of")
        plan.stored[extractor["name"]] = (statistics, facts)
    if stored:
        plan.paired = False
        return
    plan.spare = one_a_recording(read_clips(sources[0]))
    # the list of prompts, or the outputs, choose by themselves
    limit = request.limit if request.prompts is None and request.outputs is None else None
    chosen = choose(plan.spare, splits=request.splits, limit=limit, source=sources[0])
    plan.references = by_key(chosen, protocol.key, sources[0])


def _prompts(request: Request, protocol: Protocol, plan: Plan) -> list[Prompt]:
    """The prompts, in order; where they name references, plan.references is narrowed to those."""
    if request.prompts is None:
        if request.protocol is not None:
            plan.notes.append(f"no list was given: all {len(plan.references)} references, {protocol.whose(len(plan.references))}")
        return [Prompt(name, clip.caption) for name, clip in plan.references.items()]
    prompts = read_prompts(request.prompts, id_columns=protocol.id_columns, lines_are=protocol.lines_are)
    named = [prompt for prompt in prompts if prompt.id]
    if named and len(named) < len(prompts):
        raise InputError(
            f"{request.prompts}: {len(prompts) - len(named)} of {len(prompts)} prompts have no id; give all of them one, or none"
        )
    first: dict[str, Prompt] = {}
    for prompt in named:
        first.setdefault(protocol.list_key(prompt.id), prompt)
    if len(first) < len(named) and request.protocol is None:
        raise InputError(f"{request.prompts}: {len(named) - len(first)} ids come more than once; ids must differ")
    if request.protocol is not None:
        if not named:
            raise InputError(f"{request.prompts}: protocol {protocol.name} needs the ids of its clips")
        plan.notes.append(f"the list names {len(first)} clips: {protocol.whose(len(first))}")
    if not named or not plan.paired:
        plan.paired = False
        return evenly([Prompt(key, prompt.caption) for key, prompt in first.items()] or prompts, request.limit)
    kept = matching(
        list(first), list(plan.references), (request.prompts, request.references[0]), both_ways=False, lenient=request.allow_missing
    )
    if len(kept) < len(first):
        plan.notes.append(f"{len(first) - len(kept)} of {len(first)} listed clips have no reference and were left out")
    kept = evenly(kept, request.limit)
    plan.references = {name: plan.references[name] for name in kept}
    return [Prompt(name, first[name].caption or plan.references[name].caption) for name in kept]


def _wish(request: Request, plan: Plan, prompts: Sequence[Prompt]) -> None:
    """List the outputs to be generated."""
    if not prompts:
        raise InputError("stored statistics have no captions: give --prompts")
    if empty := [prompt.id for prompt in prompts if not prompt.caption]:
        raise InputError(f"no caption to generate from for {len(empty)} of {len(prompts)} references, such as {empty[0]!r}; give --prompts")
    for k in range(request.clips_a_prompt):
        for i, prompt in enumerate(prompts):
            name = prompt.id or f"{i:05d}"
            name = name if request.clips_a_prompt == 1 else f"{name}-seed{k}"
            plan.wishes.append(Wish(name, prompt.id if plan.paired else "", prompt.caption, request.seed + k * len(prompts) + i))


def _read_outputs(request: Request, protocol: Protocol, plan: Plan, prompts: Sequence[Prompt]) -> None:
    """The outputs that exist; where they are paired, the same names on both sides."""
    assert request.outputs is not None
    plan.outputs = by_key(read_clips(request.outputs), protocol.key, request.outputs)
    if not plan.paired:
        plan.outputs = {name: plan.outputs[name] for name in evenly(list(plan.outputs), request.limit)}
        return
    sources = (request.outputs, request.references[0])
    kept = matching(list(plan.outputs), list(plan.references), sources, both_ways=True, lenient=request.allow_missing)
    if left := len(plan.outputs) + len(plan.references) - 2 * len(kept):
        plan.notes.append(f"{left} clips without a partner were left out")
    kept = evenly(kept, request.limit)
    captions = {prompt.id: prompt.caption for prompt in prompts}
    plan.outputs = {name: replace(plan.outputs[name], caption=plan.outputs[name].caption or captions[name]) for name in kept}
    plan.references = {name: plan.references[name] for name in kept}


def check_stored(plan: Plan, extractors: Sequence[Extractor]) -> None:
    """Raise InputError unless stored statistics are of these extractors, and of clips treated like the outputs."""
    for extractor in extractors if plan.stored else ():
        if extractor.name not in plan.stored:
            raise InputError(f"no stored statistics of {extractor.name}; there are some of {', '.join(plan.stored)}")
        facts = plan.stored[extractor.name][1]
        if facts["extractor"].get("fingerprint") != extractor.fingerprint:
            raise InputError(f"the stored statistics of {extractor.name} are of other weights, or were heard otherwise; make them again")
        if facts.get("treatment") != plan.treatment.facts:
            raise InputError(
                f"the stored statistics are of clips treated {facts.get('treatment')}, the outputs are treated {plan.treatment.facts}: "
                "use --duration and --level to treat them alike"
            )
