"""Other words for the same thing: "a pistol is fired" and "a handgun is fired", "an old bus starts" and "a bus starts up".

A word before a colon may become one of those behind it, in any caption that names a sound; nouns change with their articles, verbs in the
third person singular, which is the form that captions have them in. A word stands for what it mostly means in such captions: where it
means too much ("runs", "calls"), it is not on the left.
"""

from __future__ import annotations

import functools
import re

import numpy as np

NOUNS = """
airplane: plane, aircraft
alarm: alert
ambience: atmosphere
automobile: car
axe: hatchet
baby: infant
bang: boom
beep: bleep
brook: stream, creek
car: automobile
cash register: till, cash till
child: kid
creature: beast
crowd: group of people
detonation: explosion, blast
engine: motor
explosion: blast, detonation
hammer: mallet
hen: chicken
laser: ray gun
melody: tune
monster: beast, creature
pistol: handgun, gun
plane: airplane, aircraft
rain: rainfall
rifle: gun
shotgun: gun
spaceship: spacecraft
stone: rock
storm: tempest
stream: brook, creek
synth: synthesizer
thud: thump
truck: lorry
whoosh: swoosh
woman: lady
"""
VERBS = """
applaud: clap
bleat: baa
blow up: explode
caw: croak, call
chatter: babble
chew: munch, eat
chirp: tweet, twitter, sing
chop: hack
clang: clank
click: tick
clink: jingle, chink
close: shut
cluck: cackle
crackle: burn
crash: smash
creak: squeak
crow: call
drive: drive by, drive past, go by
explode: blow up, go off
fire: shoot
flow: run, ripple
fly: fly by, fly past, fly over, pass
gallop: run
growl: snarl
grunt: snort
honk: hoot
howl: wail
hum: drone
jump: leap
laugh: chuckle
moo: low
mumble: mutter
munch: chew, eat
neigh: whinny
ring: chime
sail: go by
scream: shriek
shatter: break
shout: yell
shut: close
slam: bang
snap: crack, break
sob: cry, weep
speak: talk
start: start up
strum: play
talk: speak
trot: walk
whinny: neigh
whoosh: swoosh
yell: shout
"""
ASIDE = re.compile(r"(?<=^)(an?|the) (?:old|new|modern|small|little|large|big|huge|tiny|heavy|short|long|comical|cartoon|retro) (?=\w+ \w)")
HIT = re.compile(r"^(an?) ([^,]*\b(?:drum|snare|cymbal|cowbell|triangle|tom|block|gong|bell|chime|tambourine|clap|hi-hat)) hit$")
STRUCK = ("{} {} is hit", "{} {} is struck", "{} {} is being played", "{} {} being hit", "a hit on {} {}")
SAYS = re.compile(r"^(an?) (?:old )?(man|woman|boy|girl|child) (?:says yes|says no|says hello|mutters|mumbles)$")
SPEAKS = ("{} {} speaks", "{} {} talks", "{} {} is speaking", "{} {} says something", "the voice of {} {}")
AMBIENCE = re.compile(r"^(\w+) ambience with (.+)$")
AROUND = ("{1}", "the sound of {1}", "{1} in the background", "{0} with {1}")
VOWEL = re.compile(r"[aei]|o(?!ne\b|nce\b)|u(?!ni|s|t)|hour|honest")
ENDINGS = ("s", "sh", "ch", "x", "z")


def third_person(infinitive: str) -> str:
    """ "fly past" -> "flies past", "go off" -> "goes off"."""
    verb, *rest = infinitive.split()
    if verb.endswith("y") and verb[-2] not in "aeiou":
        verb = verb[:-1] + "ies"
    else:
        verb += "es" if verb.endswith(ENDINGS) or verb == "go" else "s"
    return " ".join([verb, *rest])


def plural(noun: str) -> str:
    """ "blast" -> "blasts", "group of people" -> "groups of people"."""
    word, of, rest = noun.partition(" of ")
    return (word + ("es" if word.endswith(ENDINGS) else "s")) + of + rest


@functools.cache
def _table() -> dict[str, tuple[str, ...]]:
    """Every form of every word -> the same form of what may take its place."""
    found: dict[str, tuple[str, ...]] = {}
    for lines, forms in ((NOUNS, (str, plural)), (VERBS, (third_person,))):
        for line in lines.strip().split("\n"):
            word, _, others = line.partition(": ")
            found |= {form(word): tuple(form(other) for other in others.split(", ")) for form in forms}
    return found


@functools.cache
def _pattern() -> re.Pattern[str]:
    """A word of the table, the longest first; not a verb that a particle gives another meaning ("cries out")."""
    known = "|".join(re.escape(word) for word in sorted(_table(), key=len, reverse=True))
    return re.compile(rf"(?<![\w'-])({known})(?![\w'-]| (?:down|out|up|off|over|by|past|away)\b)")


def reworded(caption: str, rng: np.random.Generator) -> str:
    """`caption` with other words for what it names, and without an adjective that says little; as it is where none is known."""
    for pattern, templates in ((HIT, STRUCK), (SAYS, SPEAKS), (AMBIENCE, AROUND)):
        if (match := pattern.match(caption)) and rng.random() < 0.5:
            return article(templates[int(rng.integers(len(templates)))].format(*match.groups()))
    if rng.random() < 0.5:
        caption = ASIDE.sub(r"\1 ", caption)

    def other(match: re.Match[str]) -> str:
        options = (match[1], *_table()[match[1]])
        return options[int(rng.integers(len(options)))]

    return article(_pattern().sub(other, caption))


def article(caption: str) -> str:
    """With "a" and "an" as the next word wants them: "an underwater blast", "a unicorn"."""
    return re.sub(r"\ban? (?=(\w+))", lambda match: "an " if VOWEL.match(match[1]) else "a ", caption)
