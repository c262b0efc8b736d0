"""Other ways to say a caption, by template: what people type is seldom the caption that a library gave a sound.

"a dog barks" may become "a dog is barking", "the sound of a dog barking", "barking of a dog"… The grammar is that of phrases.py. A caption
that is not surely understood keeps its words: a wrong sentence teaches more harm than a missing one.
"""

from __future__ import annotations

import re

import numpy as np

from meanaudio.data.phrases import (
    ARTICLES,
    AUXILIARIES,
    MASS,
    PREPOSITIONS,
    VERBS,
    caption_form,
    choose,
    head_length,
    is_third_person,
    without_stop,
    word_set,
)

PEOPLE = {
    "a man": ("a person", "somebody", "a guy"),
    "an old man": ("a man", "an elderly man"),
    "a woman": ("a person", "somebody", "a lady"),
    "a person": ("somebody", "someone", "a human"),
    "someone": ("somebody", "a person"),
    "somebody": ("someone", "a person"),
}
PRONOUNS = {"someone", "somebody", "something"}
OPENINGS = ("the sound of {}", "sound of {}", "a recording of {}", "we hear {}", "you can hear {}")
PARTICLES = word_set("off out up down past away back apart by open shut its his her loudly fast slowly")
PLURALS = re.compile(r"(?:.*[^su']s|people|children|men|women|sheep|geese|mice|teeth)$")
PARTICIPLES = re.compile(
    r"(?:.*ed|hit|shot|put|cut|drawn|cast|torn|thrown|struck|blown|lit|dealt|broken|shut|worn|driven|played|rung|wound|dug|hung)$"
)
DOUBLED = {"begin", "occur", "emit", "unzip", "unwrap", "unplug", "reset", "refit"}  # verbs of more syllables that double as short ones do
ASPECTS = {"starts", "begins", "stops", "keeps", "continues"}  # verbs before which another verb's meaning lies


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
    short = re.fullmatch(r"(?:[^aeiou]|qu)*[aeiou][bdgmnprtlv]", infinitive)
    return infinitive + (infinitive[-1] if short or infinitive in DOUBLED else "") + "ing"


def _passive(words: list[str], at: int) -> tuple[str, str, str, str] | None:
    """ "a pistol is fired" -> "a pistol is being fired"."""
    rest = words[at + 1 :]
    if not rest or not PARTICIPLES.match(rest[0]) or "and" in rest or words[0] == "there":
        return None
    return " ".join(words[:at]), words[at], "being", " ".join(rest)


def _verb(words: list[str], head: int) -> int | None:
    """Where the verb of words[:head] stands, if that is sure."""
    first = 1 if words[0] in PRONOUNS else 2 if words[0] in ARTICLES else 1
    third = [n for n in range(first, head) if is_third_person(words[n])]
    if words[0] in ARTICLES or words[0] in MASS or (third and words[third[0] - 1] in MASS):
        at = next((n for n in third if n + 1 not in third), None)  # the second of "a vehicle weapons fires"
        if at is None or any("'s" in word for word in words[:at]):
            return None
        follows = words[at + 1] if at + 1 < len(words) else ""
        if words[at] in ASPECTS and (follows == "to" or follows.endswith("ing")):
            return None
        sure = not follows or base(words[at]) in VERBS or any(follows in known for known in (ARTICLES, PREPOSITIONS, PARTICLES, MASS))
        return at if sure else None
    plural = [n for n in range(1, head) if words[n] in VERBS and PLURALS.match(words[n - 1])]
    return plural[-1] if plural else None


def _clause(caption: str) -> tuple[str, str, str, str] | None:
    """(subject, auxiliary of the progressive, participle, rest) of a caption that is a clause; None if it cannot be taken apart."""
    words = caption.split()
    if re.search(r"[,.;:]", caption) or ({"then", "that", "while", "as"} | AUXILIARIES - {"is", "are"}) & set(words):
        return None
    head = head_length(words)
    auxiliaries = [n for n, word in enumerate(words) if word in ("is", "are")]
    if auxiliaries:
        return _passive(words, auxiliaries[0]) if 0 < auxiliaries[0] < head and len(auxiliaries) == 1 else None
    at = _verb(words, head)
    if at is None:
        return None
    singular = is_third_person(words[at])
    rest = words[at + 1 :]
    if rest and rest[0] in VERBS:  # "water drops drip"
        return None
    if "and" in rest:  # "a dog barks and whines" is sure, "a dog barks and a man speaks" is another sentence
        verb = rest[-1]
        alone = rest.index("and") == len(rest) - 2 and not PREPOSITIONS & set(rest[:-2]) - PARTICLES
        if not alone or not (is_third_person(verb) if singular else verb in VERBS):
            return None
        rest[-1] = gerund(base(verb) if singular else verb)
    verb = gerund(base(words[at]) if singular else words[at])
    return " ".join(words[:at]), "is" if singular else "are", verb, " ".join(rest)


def _bare(phrase: str) -> str:
    """Without its article."""
    return re.sub(r"^(?:an?|the|one(?! of))\s+", "", phrase)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def wordings(caption: str) -> list[str]:
    """All that `paraphrase` chooses from: `caption` is not among them."""
    caption = without_stop(caption)
    plain = caption[:1].lower() + caption[1:] if caption[1:2].islower() or caption[1:2] == " " else caption
    form, words = caption_form(plain), plain.split()
    clause = _clause(plain) if form == "clause" else None
    options, said = [], [plain]
    if clause is not None:
        subject, auxiliary, participle, rest = clause
        progressive, phrase = _join(subject, auxiliary, participle, rest), _join(subject, participle, rest)
        options += [progressive, phrase, _bare(phrase), _bare(plain), *(opening.format(phrase) for opening in OPENINGS)]
        if participle != "being" and not rest:
            options += [f"{participle} of {subject}", f"the {participle} of {subject}"]
        said += [progressive, phrase]
    elif form != "clause":
        head = head_length(words)
        after = words[head:]
        doubtful = "and" in words or bool(VERBS & set(after)) or any(map(is_third_person, after))
        phrase_surely = form == "noun" or words[:1] and words[0].endswith("ing") or (head == 1 and after)  # "footsteps on gravel"
        if not doubtful and phrase_surely:
            options += [opening.format(plain) for opening in OPENINGS]
        if not doubtful and form == "noun":
            options += [f"{plain} is heard", f"there is {plain}"]
            options += [_bare(plain)] if caption_form(_bare(plain)) != "clause" else []
    for who, others in PEOPLE.items():
        if plain.startswith(f"{who} "):
            options += [other + sentence[len(who) :] for other in others for sentence in said]
    return [option for option in dict.fromkeys(options) if option and option not in (caption, plain)]


def paraphrase(caption: str, rng: np.random.Generator) -> str:
    """One of the caption's other wordings; the caption itself if there is none."""
    options = wordings(caption)
    return choose(options, rng) if options else caption
