"""The other way round to data/phrases.py: what a sentence says is heard one after another.

Only words that state an order part it ("then", "followed by", "before" and "after" between clauses). "and", "while" and "with" join sounds
that may be heard together, and are left alone.
"""

from __future__ import annotations

import re

from meanaudio.data.phrases import VERBS, caption_form, head_length, is_third_person, without_stop

NEXT = r"then|finally|afterwards|after\s+that"
JOIN = re.compile(
    rf"""
    (?<!\bnow)(?<!\bnow\sand)(?<!\buntil)(?<!\bsince)(?<!\bby)  # "now and then" is no order
    \s*[.;,]?\s+(?:and,?\s+)?(?:{NEXT}),?\s+           # "X, then Y", "X. After that, Y", "X and finally Y"
  | \s*,?\s+(?:and,?\s+)?(?:(?:is|are)\s+)?followed\s+(?:\w+ly\s+)?by\s+  # "X, followed closely by Y", "X is followed by Y"
    """,
    re.IGNORECASE | re.VERBOSE,
)
OPENING = re.compile(rf"^(?:first(?:\s+of\s+all)?|at\s+first|{NEXT})\b,?\s+(?=\S)", re.IGNORECASE)
AFTER = re.compile(r"^after\s+(?P<first>[^,]+),\s+(?P<second>.+)$", re.IGNORECASE)
BETWEEN = re.compile(r"^(?P<left>.+?),?\s+(?P<word>before|after)\s+(?P<right>.+)$", re.IGNORECASE)


def split_events(sentence: str) -> list[str]:
    """What is to be heard, in its order: ["a dog barks", "a door slams"] of "a dog barks, then a door slams"; one entry if nothing is
    said about an order.

    A later sound without a subject takes that of the one before it: "a horse neighs and then gallops away".
    """
    pieces = [OPENING.sub("", piece) for piece in JOIN.split(OPENING.sub("", without_stop(sentence)))]
    pieces = [without_stop(part) for piece in pieces for part in _around_a_conjunction(piece)]
    if not all(re.search(r"\w", piece) for piece in pieces):
        return [sentence]
    if len(pieces) == 1:
        return [sentence]
    events = pieces[:1]
    for piece in pieces[1:]:
        subject = _subject(events[-1]) if _begins_with_its_verb(piece) else ""
        events.append(f"{subject} {piece}" if subject else piece)
    return events


def _around_a_conjunction(piece: str) -> list[str]:
    """ "After X, Y", "X before Y", "Y after X", where both are clauses: "before" and "after" come before places as well."""
    if (found := AFTER.match(piece)) and all(caption_form(part) == "clause" for part in found.groups()):
        return list(found.groups())
    if (found := BETWEEN.match(piece)) and all(caption_form(found[side]) == "clause" for side in ("left", "right")):
        ends = [found["left"], found["right"]]
        return ends if found["word"].lower() == "before" else ends[::-1]
    return [piece]


def _begins_with_its_verb(event: str) -> bool:
    """ "gallops away", and not "birds sing"."""
    first, second, *_ = [*event.lower().split(), "", ""]
    return is_third_person(first) and bool({first.removesuffix("s"), first.removesuffix("es")} & VERBS) and second not in VERBS


def _subject(event: str) -> str:
    """The words before the verb of a clause; "" where none is found."""
    words = event.split()
    verb = next((i for i, word in enumerate(words[: head_length(words)]) if i and is_third_person(word.lower())), None)
    return "" if verb is None or caption_form(event) != "clause" else " ".join(words[:verb])
