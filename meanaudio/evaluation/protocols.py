"""Fixed ways to measure, so that numbers of different systems can stand in one table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meanaudio.data.manifest import COLUMNS, Clip
from meanaudio.errors import InputError
from meanaudio.evaluation.hearing import TRIMMED_UNDER_NOISE, Hearing


@dataclass(frozen=True)
class Protocol:
    """sizes: who uses a test list of so many clips. key: what a clip and a row of the list have in common.

    Every clip is brought to `duration` seconds (None: the checkpoint's own, or as it comes) and to level_db (None: as it comes), and
    heard through `hearing`.
    """

    name: str
    steps: tuple[int, ...]
    duration: float | None = None
    level_db: float | None = None
    hearing: Hearing = Hearing()
    extractors: tuple[str, ...] = ("yamnet",)
    id_columns: tuple[str, ...] = COLUMNS["id"]
    sizes: Mapping[int, str] = field(default_factory=dict)
    lines_are: str = "captions"

    def key(self, clip: Clip) -> str:
        return clip.id

    def list_key(self, name: str) -> str:
        return name

    def whose(self, size: int) -> str:
        return self.sizes.get(size, f"none of the usual {', '.join(map(str, self.sizes))}")


class AudioCaps(Protocol):
    """One seed a clip, 10 s, as loud as it comes, heard as it is. Clips are known by their YouTube ids, whatever is put around these."""

    def key(self, clip: Clip) -> str:
        return youtube_id(clip.audio.stem) or youtube_id(clip.id) or clip.id

    def list_key(self, name: str) -> str:
        found = youtube_id(name)
        if found is None:
            raise InputError(f"{name!r} is no id of an AudioCaps clip, such as Y7fmOlUlwoNg, 7fmOlUlwoNg or 7fmOlUlwoNg_100")
        return found


def youtube_id(name: str) -> str | None:
    """The 11 characters of Y<id>, <id>, <id>_<start> or <id>_<start>_<end>, with or without a file's suffix; None for other names."""
    found = re.fullmatch(r"Y?([A-Za-z0-9_-]{11})(?:_\d+(?:\.\d+)?){0,2}", re.sub(r"\.(wav|flac|mp3|ogg|m4a)$", "", Path(name).name))
    return found[1] if found else None


PLAIN = Protocol("plain", steps=(1,), hearing=TRIMMED_UNDER_NOISE)
PROTOCOLS: dict[str, Protocol] = {
    "audiocaps": AudioCaps(
        "audiocaps",
        steps=(1, 2, 5, 25),
        duration=10.0,
        extractors=("panns", "vggish", "passt", "clap"),
        id_columns=("youtube_id", *COLUMNS["id"]),
        sizes={957: "MeanAudio's list", 975: "the official test split", 886: "Tango's list"},
        lines_are="ids",
    ),
}


def find_protocol(name: str | None) -> Protocol:
    if name is None:
        return PLAIN
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}: must be one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
