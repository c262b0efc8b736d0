"""Outputs against recordings: everything that `meanaudio evaluate` does, in the order it is done."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from meanaudio import __version__
from meanaudio.audio import file_facts, load_audio
from meanaudio.checkpoint import write_json, write_text
from meanaudio.errors import InputError
from meanaudio.evaluation import features as heard
from meanaudio.evaluation import metrics
from meanaudio.evaluation.clips import SoundSet, halves, names_hash, other_recordings, treat, write_rows
from meanaudio.evaluation.extractors.cache import extract
from meanaudio.evaluation.features import Features
from meanaudio.evaluation.gallery import write_gallery
from meanaudio.evaluation.hearing import Listener, make_listener
from meanaudio.evaluation.outputs import raw_levels, were_ranked
from meanaudio.evaluation.plan import Plan, Request, check_stored, make_plan
from meanaudio.evaluation.protocols import find_protocol
from meanaudio.evaluation.report import DIRECTION, NEAR_DUPLICATE, QUIET_DB, Report, Row
from meanaudio.evaluation.signal import inspect
from meanaudio.pipeline import resolve_device

LEAST_FOR_INCEPTION = 10 * metrics.SPLITS  # clips: below, the score's bound is lower than what real clips would get


def evaluate(request: Request, out: Path, *, cache: Path | None = None, shown: int = 24, progress_bar: bool = True) -> Report:
    """Make or read the outputs, listen to them and to the references, compare; write results.json, table.txt, clips.jsonl, index.html,
    reference statistics and all made clips into `out`. Features are kept in `cache`, out/features if None. shown: clips on the page.

    Raises InputError, before anything is generated, for references, prompts, names or extractors that cannot work.
    """
    if shown and importlib.util.find_spec("matplotlib") is None:
        raise InputError("the page's spectrograms need matplotlib, which is not installed: pip install matplotlib, or --shown 0")
    protocol = find_protocol(request.protocol)
    device = str(resolve_device(request.device))
    plan = make_plan(request, protocol, out)
    extractors = [make_listener(spec, device, plan.hearing) for spec in request.extractors or protocol.extractors]
    check_stored(plan, extractors)
    rows = _reference_row(plan, out, progress_bar)
    rows += _output_rows(request, plan, rows, protocol.steps, out, progress_bar)
    if rows[0].kind == "references":
        rows += _other_rows(request, plan, rows[0], out, progress_bar)
    for extractor in extractors:
        _listen(extractor, rows, plan, out, cache or out / "features", progress_bar)
    report = Report(_facts(request, plan, extractors, rows, device), rows, _notes(plan, rows, extractors))
    write_json(out / "results.json", report.to_json())
    write_text(out / "table.txt", report.to_text() + "\n")
    write_rows(out / "clips.jsonl", report.clip_rows(out))
    write_gallery(out, report, shown)
    return report


# ---------------------------------------------------------------- rows


def _reference_row(plan: Plan, out: Path, progress_bar: bool) -> list[Row]:
    """The references by themselves, if they are not stored statistics: what real clips get where no pairs are needed."""
    if not plan.references:
        return []
    return [
        _inspected(Row(treat("references", plan.references, out / "references", plan.treatment, progress_bar), "references"), progress_bar)
    ]


def _output_rows(request: Request, plan: Plan, above: Sequence[Row], steps: Sequence[int], out: Path, progress_bar: bool) -> list[Row]:
    references = above[0].made if above else None
    if request.outputs is not None:
        sets = [treat(request.outputs.name or str(request.outputs), plan.outputs, out / "treated", plan.treatment, progress_bar)]
    else:
        assert plan.checkpoint is not None
        how: dict[str, Any] = {
            "options": {"guidance_scale": request.guidance_scale, **dict(request.generation)},
            "batch": request.batch,
            "progress_bar": progress_bar,
        }
        sets = [plan.checkpoint.generate(plan.wishes, plan.treatment, steps=n, **how) for n in request.steps or steps]
    rows = [_inspected(Row(made, "outputs", references, plan.paired), progress_bar) for made in sets]
    for row in rows if request.outputs is None else ():
        row.quiet = [name for name, level in raw_levels(row.made.sounds).items() if level < QUIET_DB]
    return rows


def _other_rows(request: Request, plan: Plan, lead: Row, out: Path, progress_bar: bool) -> list[Row]:
    """Ceiling: the references through the codec. Floor: recordings against recordings, of the same captions where there are enough of
    them, otherwise one half of the references against the other. Chance: recordings of other captions.
    """
    references, rows = lead.made, []
    if request.codec and plan.checkpoint is not None:
        rows.append(
            _inspected(Row(plan.checkpoint.reconstruct(references, plan.treatment, progress_bar), "codec", references), progress_bar)
        )
    if not request.floor:
        return rows
    others = other_recordings(plan.references, plan.spare, request.seed)
    if others is not None:
        made = treat("other recordings of the captions", others, out / "floor", plan.treatment, progress_bar)
        rows.append(_inspected(Row(made, "floor", references), progress_bar))
    elif len(references.sounds) >= 4:
        first, second = (replace(references, sounds=sounds, failed=[]) for sounds in halves(references.sounds, request.seed))
        signals = {sound.name: lead.signals[sound.name] for sound in first.sounds}
        rows.append(Row(replace(first, label="references, half against half"), "floor", second, paired=False, signals=signals))
    captions = {sound.caption for sound in references.sounds}
    if plan.paired and len(captions) > 1 and "" not in captions:
        rows.append(Row(replace(references, label="recordings of other captions"), "chance", references))
    return rows


def _inspected(row: Row, progress_bar: bool) -> Row:
    """Check every clip's signal; those that cannot be read are taken out and listed. Raises InputError if fewer than two are left."""
    failed = []
    for sound in tqdm(row.made.sounds, f"check {row.label}", disable=not progress_bar, leave=False):
        try:
            rate, _ = file_facts(sound.path)
            row.signals[sound.name] = inspect(load_audio(sound.path, rate), rate)
        except InputError as error:
            failed.append((sound.name, str(error)))
    row.made = row.made.without(failed)
    if len(row.made.sounds) < 2:
        why = "; ".join(reason for _, reason in row.made.failed[:3])
        raise InputError(f"{row.label}: {len(row.made.sounds)} clip(s) to measure, at least 2 are needed{f' ({why})' if why else ''}")
    return row


# ---------------------------------------------------------------- listening


def _listen(extractor: Listener, rows: Sequence[Row], plan: Plan, out: Path, cache: Path, progress_bar: bool) -> None:
    """Fill in what `extractor` says of every row."""
    known: dict[tuple[str, ...], Features] = {}

    def features(sounds: SoundSet) -> Features:
        key = tuple(f"{sound.name}\0{sound.path}" for sound in sounds.sounds)
        if key not in known:
            known[key] = _features(extractor, sounds, cache, progress_bar)
        return known[key]

    for row in rows:
        ours, theirs = features(row.made), None if row.against is None else features(row.against)
        captions = _captions(row.made, ours)
        texts = _texts(extractor, captions)
        if row.kind == "chance":
            assert captions is not None
            row.numbers[extractor.name] = heard.chance(ours, captions, texts, multi_label=extractor.multi_label)
            continue
        statistics = theirs.statistics if theirs is not None else None
        if row.kind == "references":
            ours.statistics.save(out / f"references-{extractor.name}.safetensors", _statistics_facts(extractor, row.made, plan))
        elif plan.stored:
            statistics = plan.stored[extractor.name][0]
        pairs = {sound.name: sound.pair for sound in row.made.sounds if sound.pair} if row.paired else None
        comparison = heard.compare(
            ours, statistics, reference=theirs, pairs=pairs, captions=captions, texts=texts, multi_label=extractor.multi_label
        )
        row.numbers[extractor.name], row.clip_numbers[extractor.name] = comparison.numbers, comparison.clips
        row.counts[extractor.name] = (ours.statistics.count, 0 if statistics is None else statistics.count)
        alike = metrics.near_duplicates(ours.embeddings, NEAR_DUPLICATE)
        row.alike[extractor.name] = [(ours.names[i], ours.names[j]) for i, j in alike]


def _features(extractor: Listener, sounds: SoundSet, cache: Path, progress_bar: bool) -> Features:
    names: dict[Path, list[str]] = {}
    for sound in sounds.sounds:
        names.setdefault(sound.path, []).append(sound.name)

    def stop(path: Path, reason: str) -> None:
        raise InputError(f"{path}: {extractor.name} cannot listen to it ({reason})")  # it was readable a moment ago

    found = extract(extractor, list(names), cache=cache, progress_bar=progress_bar, on_error=stop)
    return heard.gather(((name, clip) for path, clip in found for name in names[path]), extractor.dim)


def _captions(sounds: SoundSet, features: Features) -> list[str] | None:
    """One caption a clip in the features' order, or None where some clip has none."""
    captions = {sound.name: sound.caption for sound in sounds.sounds}
    ordered = [captions[name] for name in features.names]
    return ordered if all(ordered) else None


def _texts(extractor: Listener, captions: Sequence[str] | None) -> Tensor | None:
    """Embeddings [N, D] of captions, by extractors that have a text tower."""
    if extractor.encode_text is None or captions is None:
        return None
    different = list(dict.fromkeys(captions))
    encoded = torch.cat([extractor.encode_text(different[k : k + 64]).float().cpu() for k in range(0, len(different), 64)])
    place = {caption: k for k, caption in enumerate(different)}
    return encoded[[place[caption] for caption in captions]]


# ---------------------------------------------------------------- what makes the numbers


def _statistics_facts(extractor: Listener, references: SoundSet, plan: Plan) -> dict[str, Any]:
    return {
        "extractor": extractor.facts,
        "treatment": plan.treatment.facts,
        "clips": len(references.sounds),
        "names_sha256": names_hash(sound.name for sound in references.sounds),
        "meanaudio": __version__,
    }


def _facts(request: Request, plan: Plan, extractors: Sequence[Listener], rows: Sequence[Row], device: str) -> dict[str, Any]:
    checkpoint = plan.checkpoint
    return {
        "meanaudio": __version__,
        "request": {key: _plain(value) for key, value in asdict(request).items()},
        "protocol": request.protocol,
        "kl_direction": DIRECTION,
        "kl_floor": metrics.KL_FLOOR,
        "inception": {"splits": metrics.SPLITS, "seed": metrics.SPLIT_SEED},
        "treatment": plan.treatment.facts,
        "hearing": asdict(plan.hearing),
        "checkpoint": None
        if checkpoint is None
        else {"name": checkpoint.name, "sha256": checkpoint.hash, "dtype": checkpoint.dtype, "vocoder": checkpoint.vocoder},
        "device": device,
        "extractors": [extractor.facts for extractor in extractors],
        "references": _reference_facts(request, rows[0]) if rows[0].kind == "references" else None,
        "stored_references": {name: facts for name, (_, facts) in plan.stored.items()} or None,
    }


def _reference_facts(request: Request, row: Row) -> dict[str, Any]:
    names = names_hash(sound.name for sound in row.made.sounds)
    return {**row.made.facts, "clips": len(row.made.sounds), "names_sha256": names, "splits": list(request.splits)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, Path) else value


def _notes(plan: Plan, rows: Sequence[Row], extractors: Sequence[Listener]) -> list[str]:
    """What a reader must know before a number is compared with another."""
    notes = [*plan.notes, *([] if plan.paired else ["outputs and references are not paired: no KL"])]
    for extractor in extractors:
        fewest = min((n for row in rows if row.against or plan.stored for n in row.counts.get(extractor.name, ())), default=0)
        if 0 < fewest <= extractor.dim:
            notes.append(
                f"{extractor.name}: as few as {fewest} rows for a covariance in {extractor.dim} dimensions, which is singular: its Fréchet "
                "distance lies far above that of many clips, falls as clips are added, and compares only with distances of as many rows; "
                "the kernel distance has no such bias"
            )
        clips = min((len(row.made.sounds) for row in rows if "inception" in row.numbers[extractor.name]), default=LEAST_FOR_INCEPTION)
        if clips < LEAST_FOR_INCEPTION:
            notes.append(
                f"{extractor.name}: an inception score of {clips} clips, in {metrics.SPLITS} parts, cannot exceed "
                f"{max(1, clips // metrics.SPLITS)}, the clips of a part: nothing can be read from it"
            )
        rates = {signal.sample_rate for row in rows if row.kind == "outputs" for signal in row.signals.values()}
        if min(rates) < extractor.sample_rate:
            notes.append(
                f"{extractor.name} listens at {extractor.sample_rate} Hz; outputs of {min(rates)} Hz have nothing in its upper band"
            )
        if extractor.encode_text is not None and plan.checkpoint is not None and "clap" in plan.checkpoint.config.text.encoder:
            notes.append(
                f"{extractor.name}: the network is conditioned on a CLAP text tower too, so this CLAP score is no independent judge"
            )
        if extractor.name == "scorer":
            notes.append("scorer: learned from the recordings that its checkpoint learned from, so its numbers are no independent judge's")
            if ranked := [row.label for row in rows if row.kind == "outputs" and were_ranked(row.made.sounds)]:
                notes.append(f"scorer: {', '.join(ranked)} was ranked by a scorer; what it says of its own choice is not to be reported")
    for row in rows:
        if row.made.failed and row.kind != "chance":
            reasons = "; ".join(reason for _, reason in row.made.failed[:5])
            notes.append(f"{row.label}: {len(row.made.failed)} unreadable, left out: {reasons}")
        if silent := row.faulty("silent"):
            notes.append(f"{row.label}: {len(silent)} silent, measured all the same: {', '.join(silent[:5])}")
    return notes
