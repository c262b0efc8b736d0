"""Other ways to say a caption, by template: what people type is seldom the caption that a library gave a sound.

"a dog barks" may become "a dog is barking", "the sound of a dog barking", "barking of a dog"… The grammar is that of phrases.py: a caption
that it cannot take apart keeps its words, and only gets an opening.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from meanaudio.data.phrases import ARTICLES, AUXILIARIES, MASS, NOT_VERBS, PREPOSITIONS, VERBS, caption_form

PEOPLE = {
    "a man": ("a person", "somebody", "a male voice"),
    "an old man": ("a man", "an elderly man"),
    "a woman": ("a person", "somebody", "a female voice"),
    "a person": ("somebody", "someone", "a human"),
    "someone": ("somebody", "a person"),
    "somebody": ("someone", "a person"),
}
OPENINGS = ("the sound of {}", "sound of {}", "a recording of {}", "{}, close up", "we hear {}", "you can hear {}")


def base(verb: str) -> str:
    """The infinitive of a verb in the third person singular: "flies" -> "fly"."""
    if verb.endswith("ies") and len(verb) > 4:
        return verb[:-3] + "y"
    if verb.endswith(("sses", "zzes", "shes", "ches", "xes", "oes")) and not verb.endswith("aches"):
        return verb[:-2]
    return verb[:-1] if verb.endswith("s") else verb


def gerund(infinitive: str) -> str:
    """ "fly" -> "flying", "die" -> "dying", "hit" -> "hitting"."""
    if infinitive.endswith("ie"):
        return infinitive[:-2] + "ying"
    if infinitive.endswith("e") and not infinitive.endswith(("ee", "oe", "ye")):
        return infinitive[:-1] + "ing"
    if re.fullmatch(r"(?:[^aeiou]|qu)*[aeiou][bdgmnprtlv]", infinitive) and not infinitive.endswith("ll"):
        return infinitive + infinitive[-1] + "ing"
    return infinitive + "ing"


def _clause(caption: str) -> tuple[str, str, str, str] | None:
    """(subject, auxiliary of the progressive, participle, rest) of a caption that is a clause; None if it cannot be taken apart."""
    words = caption.split()
    head = next((n for n, word in enumerate(words) if n and word in PREPOSITIONS), len(words))
    for n, word in enumerate(words[:head]):
        if n and word in ("is", "are"):  # "a pistol is fired" -> "a pistol is being fired"
            rest = words[n + 1 :]
            passive = rest and not rest[0].endswith("ing") and "and" not in rest
            return (" ".join(words[:n]), word, "being", " ".join(rest)) if passive else None
    third = [n for n in range(1, head) if re.search(r"[^su']s$", words[n]) and words[n] not in NOT_VERBS]
    if words[0] in ARTICLES or words[0] in MASS or (third and words[third[0] - 1] in MASS):
        if not third:
            return None
        at = next((n for n in third if n + 1 not in third), third[-1])  # "a vehicle weapons fires"
        auxiliary, verb = "is", base(words[at])
    else:
        plural = [n for n in range(1, head) if words[n] in VERBS]
        if not plural:
            return None
        at = plural[-1]
        auxiliary, verb = "are", words[at]
    rest = words[at + 1 :]
    # left alone: "a footstep that echoes", "water drops drip", "a shotgun fires and is pumped"
    if "that" in words[:at] or (rest and rest[0] in VERBS) or AUXILIARIES & set(rest):
        return None
    end = next((n for n, word in enumerate(rest) if word in PREPOSITIONS and word != "and"), len(rest))
    for n in range(1, end):  # "a dog barks and whines": every verb
        if rest[n - 1] == "and" and (auxiliary == "are" or re.search(r"[^su']s$", rest[n])):
            rest[n] = gerund(base(rest[n]) if auxiliary == "is" else rest[n])
    return " ".join(words[:at]), auxiliary, gerund(verb), " ".join(rest)


def _bare(phrase: str) -> str:
    """Without its article."""
    return re.sub(r"^(?:an?|the|one)\s+", "", phrase)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def wordings(caption: str) -> list[str]:
    """All that `paraphrase` chooses from: `caption` is not among them."""
    caption = caption.strip().rstrip(".!;,")
    options = [_bare(caption)]
    clause = _clause(caption) if caption_form(caption) == "clause" and not set(caption.split()) & (AUXILIARIES - {"is", "are"}) else None
    if clause is not None:
        subject, auxiliary, participle, rest = clause
        progressive = _join(subject, auxiliary, participle, rest)
        phrase = _join(subject, participle, rest)
        options += [progressive, progressive, phrase, _bare(phrase), *(opening.format(phrase) for opening in OPENINGS)]
        if participle != "being" and not rest:
            options += [f"{participle} of {subject}", f"the {participle} of {subject}"]
        said = [progressive, phrase]
    else:
        said = []
        if caption_form(caption) != "clause":
            options += [opening.format(caption) for opening in OPENINGS]
        if caption_form(caption) == "noun":
            options += [f"{caption} is heard", f"there is {caption}", f"{caption} sounds"]
    for who, others in PEOPLE.items():
        if caption.startswith(f"{who} "):
            options += [other + sentence[len(who) :] for other in others for sentence in (caption, *said)]
    return [option for option in dict.fromkeys(options) if option and option != caption]


def paraphrase(caption: str, rng: np.random.Generator) -> str:
    """One of the caption's other wordings; the caption itself if there is none."""
    options: Sequence[str] = wordings(caption)
    return options[int(rng.integers(len(options)))] if options else caption
