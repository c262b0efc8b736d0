"""Training windows: stretches of fixed length of recordings, or scenes composed of short ones. An item is read when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from meanaudio.audio import fit, load_audio
from meanaudio.config import SceneConfig, WindowConfig
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.parallel import map_files
from meanaudio.data.scenes import SceneComposer
from meanaudio.data.sound_files import sound_seconds
from meanaudio.errors import InputError

SILENCE = 1e-6  # a window whose peak is below this holds nothing to learn; the release's limit [code]
LONGEST = 7 * 24 * 3600.0  # seconds of a clip: a longer one is a wrong number in the manifest


@dataclass(frozen=True)
class Item:
    """One training window: audio [N], its caption and a unique id. parts, in_order: of a scene (data/scenes.py)."""

    id: str
    caption: str
    audio: Tensor
    parts: tuple[str, ...] = ()
    in_order: bool = False


class Items(Protocol):
    """Items by number, each a pure function of it. `items[i]` raises InputError where the sound cannot be had."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Item: ...

    def id(self, i: int) -> str: ...


def read_split(manifest: str | Path, split: str) -> list[Clip]:
    """The clips of one split of a manifest. Raises InputError if there are none."""
    clips = read_manifest(manifest)
    found = [clip for clip in clips if clip.split == split]
    if not found:
        raise InputError(f"{manifest}: no clips of split {split!r}; there are {', '.join(sorted({clip.split for clip in clips}))}")
    return found


class ClipWindows:
    """The windows of `clips`, in order.

    A clip of several windows' length gives as many as fit (at most config.per_clip), spread evenly from its start to its end; what lies
    between them is less than a window altogether, if there is no limit. A clip shorter than two windows gives its first, zero-padded where
    it is shorter than one. This is how the paper's data was cut, which however dropped clips shorter than half a window [code].
    Windows of one clip are called `{id}-w000`, `{id}-w001`, …; a clip's only window has the clip's id.
    Where the manifest gives no duration, the file's header does.
    """

    def __init__(self, clips: Sequence[Clip], sample_rate: int, seconds: float, config: WindowConfig, *, threads: int = 4) -> None:
        self.clips, self.sample_rate, self.config = clips, sample_rate, config
        self.num_samples = round(seconds * sample_rate)
        self.seconds = list(map_files(_seconds, clips, workers=threads))
        counts = [self._count(clip, length) for clip, length in zip(clips, self.seconds, strict=True)]
        self.ends = np.cumsum(counts)
        taken = {clip.id for clip in clips}
        for clip, count in zip(clips, counts, strict=True):
            if count > 1 and (name := f"{clip.id}-w000") in taken:
                raise InputError(f"the id {name!r} is a clip's and the name of a window of {clip.id!r}; rename one")

    def _count(self, clip: Clip, seconds: float) -> int:
        if seconds > LONGEST:
            raise InputError(f"clip {clip.id!r} lasts {seconds} s, more than {LONGEST} s: is its duration right?")
        fitting = max(1, round(seconds * self.sample_rate) // self.num_samples)
        return fitting if self.config.per_clip is None else min(fitting, self.config.per_clip)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, i: int) -> tuple[int, int, int]:
        """Item number -> number of the clip, of the window in it, and how many windows it has."""
        number = int(np.searchsorted(self.ends, i, side="right"))
        first = int(self.ends[number - 1]) if number else 0
        return number, i - first, int(self.ends[number]) - first

    def id(self, i: int) -> str:
        number, window, count = self._place(i)
        return self.clips[number].id if count == 1 else f"{self.clips[number].id}-w{window:03d}"

    def caption(self, i: int) -> str:
        return self.clips[self._place(i)[0]].caption

    def __getitem__(self, i: int) -> Item:
        number, window, count = self._place(i)
        clip, seconds = self.clips[number], self.num_samples / self.sample_rate
        start = clip.start + (window * (self.seconds[number] - seconds) / (count - 1) if count > 1 else 0.0)
        audio = load_audio(clip.audio, self.sample_rate, start, seconds if clip.duration is None else min(seconds, clip.duration))
        peak = audio.abs().max().item()
        if peak < SILENCE:
            raise InputError(f"{clip.audio}: silent from {start:.3f} s on (its peak is below {SILENCE})")
        if self.config.peak is not None:
            audio = audio * (self.config.peak / peak)
        return Item(self.id(i), clip.caption, fit(audio, self.num_samples))


def _seconds(clip: Clip) -> float:
    """Length of a clip; 0 where its file cannot be read: reading its window then says why."""
    if clip.duration is not None:
        return clip.duration
    length = sound_seconds(clip.audio)
    return max(0.0, length - clip.start) if isinstance(length, float) else 0.0


def open_scenes(
    manifest: str,
    clips: Sequence[Clip],
    splits: Sequence[str],
    count: int,
    sample_rate: int,
    seconds: float,
    seed: int,
    config: SceneConfig,
) -> Scenes:
    """`count` scenes of those of the manifest's clips that are of `splits`. Raises InputError if there are none."""
    found = [clip for clip in clips if clip.split in splits]
    if not found:
        raise InputError(f"{manifest}: no clip of split {' or '.join(splits)}")
    return Scenes(found, count, sample_rate, seconds, seed, config)


class Scenes:
    """`count` scenes composed of short clips."""

    def __init__(self, clips: Sequence[Clip], count: int, sample_rate: int, seconds: float, seed: int, config: SceneConfig) -> None:
        self.count = count
        self.composer = SceneComposer(
            clips,
            sample_rate,
            seconds,
            seed,
            config.weights,
            max_lead=config.max_lead,
            paraphrased=config.paraphrase,
            speed=config.speed,
            tone=config.tone,
            room=config.room,
        )

    def __len__(self) -> int:
        return self.count

    def id(self, i: int) -> str:
        return self.composer.id(i)

    def __getitem__(self, i: int) -> Item:
        scene = self.composer(i)
        return Item(scene.id, scene.caption, scene.audio, scene.parts, scene.in_order)
