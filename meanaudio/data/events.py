"""The other way round to data/phrases.py: what a sentence says is heard one after another.

Only words that state an order part it ("then", "followed by", "before" and "after" between clauses). "and", "while" and "with" join sounds
that may be heard together, and are left alone. A sentence in doubt stays whole: a wrong half is worse than no order.
"""

from __future__ import annotations

import re

from meanaudio.data.phrases import ARTICLES, AUXILIARIES, PREPOSITIONS, VERBS, caption_form, head_length, is_third_person, word_set

LATER = r"finally|afterwards|after\sthat"
SOON = r"(?:(?:shortly|soon|immediately|right|just)\s)?"
CLOSELY = "soon|shortly|closely|immediately|quickly|directly|promptly|swiftly|rapidly|instantly"
JOIN = re.compile(
    r"(?P<lead>\s?[.;,]\s?|\s[-–—]\s|\s)(?P<and>and,?\s)?(?:"
    # "X, which is closely followed by Y"
    r"(?:then\s)?(?:(?:which|that)\s)?(?:(?:is|are|was|were|being)\s)?(?:then\s)?"
    rf"(?:(?:{CLOSELY})\s)?(?P<followed>followed)(?:\s(?:{CLOSELY}))?(?:\safter(?:wards)?)?\sby\s"
    # "X, then Y", "X. Shortly after that, Y"
    rf"|{SOON}(?P<word>then(?:,?\sfinally)?|{LATER}|next(?!\sto\b)),?\s)",
    re.IGNORECASE,
)
OPENING = re.compile(rf"^(?:and\s)?(?:first(?:\sof\sall)?|at\sfirst|{SOON}(?:then|{LATER}))\b,?\s(?=\S)", re.IGNORECASE)
LEADING = re.compile(r"^(?P<word>before|after)\s(?P<one>[^,]+),\s(?P<other>.+)$", re.IGNORECASE)
BETWEEN = re.compile(r"^(?P<one>.+?),?\s(?P<word>before|after)\s(?P<other>.+)$", re.IGNORECASE)
UNFINISHED = AUXILIARIES | word_set("and or but which that who while as when if the a an")  # no sound ends with these
NO_ORDER_AFTER = UNFINISHED | word_set("now until till since")  # "now and then", "until then"
ON_THE_WAY = PREPOSITIONS | word_set("up down out off away back not along around")  # "a man walks up then down the stairs"
# Verbs that follow a subject told before; those of phrases.py, and others
LONE_VERBS = VERBS | word_set(
    """
    accelerate brake chuckle clap close cough crash drive gasp giggle groan hiccup knock mumble mutter open pant pass purr slam snap sneeze
    sniff snore sob stomp walk whimper whisper whistle yelp
    """
)
PRONOUNS = ("it", "he", "she", "they")
# Nothing that can be heard by itself; so is what is left when a sound ends or is said to change
NOT_HEARD = (
    UNFINISHED
    | PREPOSITIONS
    | frozenset(ARTICLES)
    | word_set(
        """
    stops stop fades fade ends ceases dies quietens silence quiet calm softer louder faster slower again more twice thrice once times two
    three four five soon shortly it he she they not out off away
    """
    )
)


def split_events(sentence: str) -> list[str]:
    """What is to be heard, in its order: ["a dog barks", "a door slams"] of "a dog barks, then a door slams"; the sentence itself if it
    states no order, or one whose parts cannot be told.

    A later sound without a subject takes that of the one before it: "a horse neighs and then gallops away".
    """
    plain = " ".join(sentence.split())
    if plain.lower().startswith(("if ", "when ", "whenever ")):
        return [sentence]
    plain = OPENING.sub("", plain)
    pieces, begin = list[str](), 0
    for found in JOIN.finditer(plain):
        left, right = plain[begin : found.start()], plain[found.end() :]
        if _is_order(found, left, right):
            pieces.append(left)
            begin = found.end()
    pieces.append(plain[begin:])
    events, subject = list[str](), ""
    for piece in (_trimmed(part) for each in pieces for part in _around_a_conjunction(_trimmed(each))):
        event = _with_subject(piece, subject)
        if not event or not _is_heard(piece):
            return [sentence]
        events.append(event)
        subject = _subject(event) or subject
    return events if len(events) > 1 else [sentence]


def _is_order(found: re.Match[str], left: str, right: str) -> bool:
    words, rest = left.lower().split(), right.lower().split()
    if not words or not rest or words[-1] in NO_ORDER_AFTER or f", {left.lower()}".endswith(", by"):
        return False
    marked = bool(found["and"] or found["lead"].strip())
    if found["followed"]:  # "a man followed by a dog walks on gravel"
        return marked or not (caption_form(left) == "noun" and caption_form(right) == "clause")
    if marked:
        return True
    if not found["word"].lower().startswith("then") or rest[0] in ON_THE_WAY:
        return False
    # "the door then closes" is one sound, "water drips then splashes" two
    last = re.split(r"\s(?:and|when|while|as)\s", left)[-1]
    birds_sing = len(rest) > 1 and rest[1] in VERBS
    return not is_third_person(rest[0]) or birds_sing or caption_form(last) == "clause"


def _around_a_conjunction(piece: str) -> list[str]:
    """Of "after X, Y", "X before Y" and "Y after X", where both are plain clauses: "before" and "after" come before places as well."""
    found = LEADING.match(piece) or BETWEEN.match(piece)
    if found is None:
        return [piece]
    one, other, leading = found["one"], found["other"], found.re is LEADING
    if not all(caption_form(part) == "clause" and not re.search(r"\b(?:that|which|who)\b", part, re.IGNORECASE) for part in (one, other)):
        return [piece]
    if re.search(r"\s(?:while|as|when)\s", one, re.IGNORECASE):
        return [piece]
    return [one, other] if leading == (found["word"].lower() == "after") else [other, one]


def _trimmed(piece: str) -> str:
    return piece.strip(" .!;,-–—")


def _is_heard(piece: str) -> bool:
    words = re.findall(r"[\w'-]+", piece.lower())
    return bool(words) and words[-1] not in UNFINISHED and any(w not in NOT_HEARD and not w.endswith("ly") for w in words)


def _with_subject(piece: str, subject: str) -> str:
    """A pronoun's place is taken by the subject ("" if there is none), and a lone verb gets it."""
    first, *others = [*piece.lower().split(), ""]
    if first in PRONOUNS:
        return " ".join([subject, *piece.split()[1:]]) if subject else ""
    is_verb = is_third_person(first) and not {first.removesuffix("s"), first.removesuffix("es")}.isdisjoint(LONE_VERBS)
    return f"{subject} {piece}" if is_verb and subject and others[0] not in VERBS else piece


def _subject(event: str) -> str:
    """The words before the verb of a clause; "" where none is found."""
    words = event.split()
    verb = next((i for i, word in enumerate(words[: head_length(words)]) if i and is_third_person(word.lower())), None)
    return "" if verb is None or caption_form(event) != "clause" else " ".join(words[:verb])
