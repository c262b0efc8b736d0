"""What a checkpoint was taught, to browse and to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from meanaudio.checkpoint import write_text
from meanaudio.concepts import concept_index
from meanaudio.convert.hub import find_checkpoint
from meanaudio.errors import InputError
from meanaudio.models.scorer import KNOWN_FILE, read_known
from meanaudio.pipeline import MeanAudio, check_prompts, events_of
from meanaudio.ranking import shortened

LEAST = 2  # captions that hold a word, for a line of its own
SHOWN = 6  # captions of a word on a terminal


def list_known(model: str | Path, out: Path | None = None) -> str:
    """Every word of what the checkpoint was taught, with its captions and their numbers of recordings; whole, as markdown, to `out`.

    Raises InputError for a checkpoint that keeps no list.
    """
    folder = find_checkpoint(model)
    if not (folder / KNOWN_FILE).is_file():
        raise InputError(f"{folder.name} keeps no list of what it was taught: it has no scorer (docs/scorer.md)")
    known = read_known(folder)
    if out is not None:
        write_text(out, _markdown(folder.name, known))
        return f"{out}: {len(known)} captions"
    words = "\n".join(f"{word} ({_recordings(known, captions)}): {_listed(known, captions, SHOWN)}" for word, captions in _index(known))
    return f"{_heading(folder.name, known)}\n{words}"


def ask_known(model: str | Path, prompts: Sequence[str]) -> str:
    """For each prompt whether it lies within what the checkpoint was taught, and what comes nearest, with cosines of sentence vectors; for
    each of its sounds that are made by themselves, with which of the known captions it is read, if the checkpoint does so.
    """
    check_prompts(prompts)
    pipeline = MeanAudio.from_pretrained(model, device="cpu")
    if (company := pipeline.company) is None:
        raise InputError(f"{pipeline.name} keeps no list of what it was taught: it has no scorer (docs/scorer.md)")
    lines = []
    for prompt, near in zip(prompts, company.scorer.nearest(pipeline.encode_text(prompts).pooled), strict=True):
        verdict = "known" if near[0][1] >= company.scorer.outside else "outside"
        lines.append(f"{shortened(prompt)}: {verdict}; nearest: " + ", ".join(f"{caption!r} {cosine:.2f}" for caption, cosine in near))
        if count := pipeline.config.known_captions:
            events, _ = events_of(prompt, pipeline.config.seconds, by_event=pipeline.config.by_event)
            found = company(events, pipeline.encode_text(events).pooled, count)
            told = [f"with {', '.join(map(repr, captions))}" if captions else "alone" for captions in found]
            lines += [f"  {shortened(event)} is read {how}" for event, how in zip(events, told, strict=True)]
    return "\n".join(lines)


def _index(known: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """Words that several captions hold, that of most recordings first, and last those captions that hold none of them."""
    index = {word: sorted(set(captions), key=lambda c: (-known[c], c)) for word, captions in concept_index(known).items()}
    index = {word: captions for word, captions in index.items() if len(captions) >= LEAST}
    rows = sorted(index.items(), key=lambda entry: (-_recordings(known, entry[1]), entry[0]))
    listed = {caption for _, captions in rows for caption in captions}
    others = sorted(caption for caption in known if caption not in listed)
    return [*rows, ("others", others)] if others else rows


def _recordings(known: Mapping[str, int], captions: Sequence[str]) -> int:
    return sum(known[caption] for caption in captions)


def _heading(name: str, known: Mapping[str, int]) -> str:
    return f"{name} was taught {len(known)} captions by {sum(known.values())} recordings. By word, with numbers of recordings:"


def _listed(known: Mapping[str, int], captions: Sequence[str], most: int | None = None) -> str:
    shown = ", ".join(f"{caption} {known[caption]}" for caption in captions[:most])
    more = 0 if most is None else len(captions) - most
    return f"{shown} and {more} more" if more > 0 else shown


def _markdown(name: str, known: Mapping[str, int]) -> str:
    rows = [f"| {word} | {_recordings(known, captions)} | {_listed(known, captions)} |" for word, captions in _index(known)]
    table = "\n".join(["| word | recordings | captions |", "|---|---|---|", *(row.replace("\n", " ") for row in rows)])
    return f"# What {name} knows\n\n{_heading(name, known)}\n\n{table}\n"
