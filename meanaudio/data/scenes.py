"""Scenes of fixed length, composed of short clips, and captions of what was composed. A scene is a pure function of (seed, index)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meanaudio.audio import load_audio
from meanaudio.data.manifest import Clip
from meanaudio.data.paraphrases import paraphrase
from meanaudio.data.phrases import is_repeated, overlay_phrase, repeat_phrase, sequence_phrase
from meanaudio.data.versions import change_speed, change_tone, in_room
from meanaudio.errors import InputError

WEIGHTS = {"single": 0.3, "repeat": 0.2, "sequence": 0.25, "overlay": 0.25}
PEAK = 0.98
LEVEL_DB, LEVEL_SPREAD_DB = -20.0, 6.0  # root mean square of a clip's active part
BACKGROUND_DB = (-12.0, -6.0)  # below the foreground
FADE_SECONDS = 0.005
FRAME_SECONDS = 0.02
FLOOR_DB = -45.0  # frames this far below the loudest are not active
MAX_REPEATED_SECONDS = 4.0  # a longer sound is a texture, of which nobody says "three times"
BACKGROUND_SECONDS = 1.5  # a shorter one is no background
FEW, MANY = (2, 3, 4), (5, 6, 7, 8)


@dataclass(frozen=True)
class Scene:
    """audio: [N] float32. clip_ids: what it was made of. parts: captions of its different clips, in_order: heard one after another."""

    audio: Tensor
    caption: str
    id: str
    clip_ids: list[str]
    parts: tuple[str, ...]
    in_order: bool


@dataclass(frozen=True)
class _Take:
    """A clip from first to last active frame, as int16 to keep the cache small. gain brings its active part to LEVEL_DB."""

    samples: np.ndarray
    gain: float


class SceneComposer:
    """`composer(index)` makes one scene of exactly round(seconds * sample_rate) samples.

    clips: what to compose; captions are drawn evenly, then a clip of the caption. weights: shares of single, repeat, sequence and overlay.
    max_lead: seconds of silence at most before the first sound; who types a prompt wants to hear it at once.
    paraphrased: share of captions that get another wording (data/paraphrases.py) before they are joined.
    speed, tone, room: other versions of the sound (data/versions.py): up to 1 + `speed` times faster or slower, gains that spread by
    `tone` dB, an echo in the share `room`. What is drawn for them leaves the composition as it is, but for what fits at another speed.
    captions, lasting: all that are drawn from, and those of sounds long enough to be a background.
    load: (clip, sample_rate) -> [N] float32, read once a clip and kept in memory.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sample_rate: int = 16000,
        seconds: float = 10.0,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        *,
        max_lead: float = 0.5,
        paraphrased: float = 0.0,
        speed: float = 0.0,
        tone: float = 0.0,
        room: float = 0.0,
        load: Callable[[Clip, int], Tensor] | None = None,
    ) -> None:
        weights = dict(WEIGHTS if weights is None else weights)
        if unknown := sorted(set(weights) - set(WEIGHTS)):
            raise InputError(f"unknown kind of scene {', '.join(unknown)}; known are {', '.join(WEIGHTS)}")
        if any(not 0 <= w < float("inf") for w in weights.values()) or sum(weights.values()) <= 0:
            raise InputError(f"the weights {weights} must be 0 or more, and one above 0")
        if not clips:
            raise InputError("no clips to compose scenes of")
        if seed < 0:
            raise InputError(f"the seed is {seed}; it must be 0 or more")
        if not 0 <= paraphrased <= 1:
            raise InputError(f"paraphrased = {paraphrased}: a share, 0 to 1")
        if not (0 <= speed <= 0.5 and 0 <= tone <= 12 and 0 <= room <= 1):
            raise InputError(f"speed = {speed}, tone = {tone}, room = {room}: up to 0.5, up to 12 (dB) and a share; none below 0")
        self.sample_rate, self.seed, self._paraphrased = sample_rate, seed, paraphrased
        self._speed, self._tone, self._room = speed, tone, room
        self.num_samples = round(seconds * sample_rate)
        self._lead = round(max_lead * sample_rate)
        if self.num_samples < sample_rate:
            raise InputError(f"scenes of {seconds} s; they must last 1 s or more")
        self._kinds = list(weights)
        self._shares = np.array([weights[k] for k in self._kinds]) / sum(weights.values())
        self._load = load or (lambda clip, rate: load_audio(clip.audio, rate, clip.start, clip.duration))
        self._takes: dict[str, _Take] = {}
        self._clips: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            self._clips[clip.caption].append(clip)
        self.captions = sorted(self._clips)
        lasting = (c for c in clips if c.duration is None or c.duration >= BACKGROUND_SECONDS)
        self.lasting = sorted({c.caption for c in lasting}) or self.captions

    def preload(self) -> None:
        """Read every clip now, so that worker processes forked later share the memory."""
        for clips in self._clips.values():
            for clip in clips:
                self._take(clip)

    def __call__(self, index: int) -> Scene:
        """Scene number `index` >= 0."""
        if index < 0:
            raise InputError(f"the index of a scene is {index}; it must be 0 or more")
        rng = np.random.default_rng((self.seed, index))
        other = np.random.default_rng((self.seed, index, 1))  # what is drawn for versions leaves the composition as it is
        factor = (1 + self._speed) ** other.uniform(-1, 1)
        kind = self._kinds[rng.choice(len(self._kinds), p=self._shares)]
        audio = np.zeros(round(self.num_samples * factor), dtype=np.float32)
        caption, clips = getattr(self, f"_{kind}")(audio, rng, self._draw(rng))
        audio = self._version(audio, factor, other)
        audio *= PEAK / max(float(np.abs(audio).max()), PEAK)
        parts = tuple(dict.fromkeys(c.caption for c in clips))
        in_order = kind == "sequence" and len(parts) > 1
        return Scene(torch.from_numpy(audio), caption, self.id(index), [c.id for c in clips], parts, in_order)

    def id(self, index: int) -> str:
        return f"scene-{self.seed}-{index}"

    def _version(self, audio: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
        """The scene's sound as it is heard this time, [num_samples]."""
        if factor != 1:
            audio = change_speed(audio, factor, self.sample_rate)[: self.num_samples]
            audio = np.pad(audio, (0, self.num_samples - len(audio)))
        if self._tone:
            audio = change_tone(audio, self._tone, self.sample_rate, rng)
        return in_room(audio, self.sample_rate, rng) if rng.random() < self._room else audio

    # ---- the four kinds: each adds to `audio` and returns the caption and the clips

    def _single(self, audio: np.ndarray, rng: np.random.Generator, clip: Clip) -> tuple[str, list[Clip]]:
        piece = self._piece(clip, len(audio), rng)
        self._add(audio, piece, self._start(rng, len(audio) - len(piece)))
        return self._say(clip, rng), [clip]

    def _repeat(self, audio: np.ndarray, rng: np.random.Generator, clip: Clip) -> tuple[str, list[Clip]]:
        """The same caption several times: one take, or takes of one group."""
        length = len(self._take(clip).samples)
        if length > MAX_REPEATED_SECONDS * self.sample_rate or 2.1 * length > len(audio) or is_repeated(clip.caption):
            return self._single(audio, rng, clip)
        count = int(rng.choice(FEW if rng.random() < 0.75 else MANY))
        takes = [c for c in self._clips[clip.caption] if clip.group and c.group == clip.group] if rng.random() < 0.5 else []
        takes = takes or [clip]
        clips = [clip] + [takes[rng.integers(len(takes))] for _ in range(count - 1)]
        level = self._level(rng)
        pieces = [self._piece(c, len(audio), rng, level + rng.uniform(-1, 1)) for c in clips]
        while len(pieces) > 1 and sum(map(len, pieces)) > 0.95 * len(audio):
            pieces.pop()
        if len(pieces) == 1:
            return self._single(audio, rng, clip)
        gap = rng.uniform(0.05, 0.9) * self.sample_rate
        gaps = (gap * rng.uniform(0.8, 1.2, len(pieces) - 1)).astype(int)
        self._lay(audio, pieces, gaps, rng)
        return repeat_phrase(self._say(clip, rng), len(pieces), rng), clips[: len(pieces)]

    def _sequence(self, audio: np.ndarray, rng: np.random.Generator, clip: Clip) -> tuple[str, list[Clip]]:
        clips = [clip]
        for _ in range(2 if rng.random() < 0.2 else 1):
            if (other := self._draw_other(rng, self.captions, clips)) is not None:
                clips.append(other)
        if len(clips) == 1:
            return self._single(audio, rng, clip)
        room = int(0.95 * len(audio))
        lengths = [len(self._take(c).samples) for c in clips]
        # shorter clips keep their length, longer ones share what is left
        for done, position in enumerate(np.argsort(lengths, kind="stable")):
            lengths[position] = min(lengths[position], room // (len(clips) - done))
            room -= lengths[position]
        pieces = [self._piece(c, length, rng) for c, length in zip(clips, lengths, strict=True)]
        gaps = (rng.uniform(0.0, 1.0, len(pieces) - 1) * self.sample_rate).astype(int)
        self._lay(audio, pieces, gaps, rng)
        return sequence_phrase([self._say(c, rng) for c in clips], rng), clips

    def _overlay(self, audio: np.ndarray, rng: np.random.Generator, clip: Clip) -> tuple[str, list[Clip]]:
        """The clip over a longer one, which is quieter and repeated until it fills the scene."""
        background = self._draw_other(rng, self.lasting, [clip])
        if background is None:
            return self._single(audio, rng, clip)
        level = self._level(rng)
        bed = self._piece(background, len(audio), rng, level + rng.uniform(*BACKGROUND_DB))
        offset, pause = 0, int(rng.uniform(0.0, 0.3) * self.sample_rate)
        if len(bed) < len(audio):
            offset = -int(rng.integers(0, len(bed) // 2 + 1))
        while offset < len(audio):
            self._add(audio, bed, offset)
            offset += len(bed) + pause
        piece = self._piece(clip, len(audio), rng, level)
        self._add(audio, piece, self._offset(rng, len(audio) - len(piece)))
        return overlay_phrase(self._say(clip, rng), self._say(background, rng), rng), [clip, background]

    def _say(self, clip: Clip, rng: np.random.Generator) -> str:
        """The clip's caption, or another wording of it."""
        # nothing is drawn where nothing is paraphrased: those scenes stay what they were
        return paraphrase(clip.caption, rng) if self._paraphrased and rng.random() < self._paraphrased else clip.caption

    # ---- drawing clips

    def _draw(self, rng: np.random.Generator) -> Clip:
        clips = self._clips[self.captions[rng.integers(len(self.captions))]]
        return clips[rng.integers(len(clips))]

    def _draw_other(self, rng: np.random.Generator, captions: Sequence[str], used: Sequence[Clip]) -> Clip | None:
        """A clip of an even draw from the captions not used yet."""
        taken = {c.caption for c in used}
        free = [c for c in captions if c not in taken]
        if not free:
            return None
        clips = self._clips[free[rng.integers(len(free))]]
        return clips[rng.integers(len(clips))]

    # ---- samples

    def _level(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(-LEVEL_SPREAD_DB, LEVEL_SPREAD_DB))

    def _take(self, clip: Clip) -> _Take:
        if clip.id not in self._takes:
            self._takes[clip.id] = make_take(self._load(clip, self.sample_rate).numpy(), self.sample_rate, clip.id)
        return self._takes[clip.id]

    def _piece(self, clip: Clip, longest: int, rng: np.random.Generator, level_db: float | None = None) -> np.ndarray:
        """The clip as float32 at a level relative to LEVEL_DB, a random stretch where it is too long, faded at both ends."""
        take = self._take(clip)
        first = self._offset(rng, len(take.samples) - longest)
        piece = take.samples[first : first + longest].astype(np.float32) / 32767
        gain = take.gain * 10 ** ((self._level(rng) if level_db is None else level_db) / 20)
        piece *= min(gain, PEAK / max(float(np.abs(piece).max()), 1e-6))
        fade = min(int(FADE_SECONDS * self.sample_rate), len(piece) // 2)
        ramp = np.linspace(0, 1, fade, endpoint=False, dtype=np.float32)
        piece[:fade] *= ramp
        piece[len(piece) - fade :] *= ramp[::-1]
        return piece

    def _offset(self, rng: np.random.Generator, slack: int) -> int:
        return int(rng.integers(0, slack + 1)) if slack > 0 else 0

    def _start(self, rng: np.random.Generator, slack: int) -> int:
        """Where a scene's first sound begins."""
        return self._offset(rng, min(slack, self._lead))

    def _lay(self, audio: np.ndarray, pieces: Sequence[np.ndarray], gaps: np.ndarray, rng: np.random.Generator) -> None:
        """Add the pieces one after another, their gaps shrunk to what fits."""
        slack = len(audio) - sum(map(len, pieces))
        if gaps.sum() > slack:
            gaps = (gaps * (slack / gaps.sum())).astype(int)
        at = self._start(rng, slack - int(gaps.sum()))
        for piece, gap in zip(pieces, [*gaps, 0], strict=True):
            self._add(audio, piece, at)
            at += len(piece) + int(gap)

    def _add(self, audio: np.ndarray, piece: np.ndarray, offset: int) -> None:
        """Mix in place; what lies outside the scene is left out."""
        first, last = max(offset, 0), min(offset + len(piece), len(audio))
        audio[first:last] += piece[first - offset : last - offset]


def make_take(audio: np.ndarray, sample_rate: int, name: str) -> _Take:
    """Trim [N] to its active frames and measure them."""
    frame = round(FRAME_SECONDS * sample_rate)
    frames = np.pad(audio, (0, -len(audio) % frame)).reshape(-1, frame)
    power = np.square(frames, dtype=np.float64).mean(1)
    if not np.isfinite(power).all() or power.max() <= 0:
        raise InputError(f"clip {name!r} is silent or not finite; no scene can be made of it")
    active = np.flatnonzero(power > power.max() * 10 ** (FLOOR_DB / 10))
    level = np.sqrt(power[active].mean())
    trimmed = audio[active[0] * frame : (active[-1] + 1) * frame]
    return _Take((np.clip(trimmed, -1, 1) * 32767).round().astype(np.int16), float(10 ** (LEVEL_DB / 20) / level))
