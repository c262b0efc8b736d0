"""A folder of sounds: looked through once, then asked for names; and how long its files are."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import soundfile

from meanaudio.audio import AUDIO_SUFFIXES
from meanaudio.errors import InputError

FOREIGN_SUFFIXES = (".m4a", ".mp4", ".aac", ".webm", ".mkv", ".wma")  # what clips are often kept in, and cannot be read here


class SoundFolder:
    """The sounds below a folder, links followed, by their names without suffix."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"no such folder: {folder}")
        self.folder = folder
        self.foreign: set[str] = set()  # names of files of a kind that cannot be read
        self._by_stem: dict[str, list[Path]] = {}
        seen: set[str] = set()
        for root, folders, files in os.walk(folder, followlinks=True):
            if (real := os.path.realpath(root)) in seen:  # a link back up
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            for name in sorted(files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in AUDIO_SUFFIXES:
                    self._by_stem.setdefault(_key(stem), []).append(Path(root, name))
                elif suffix.lower() in FOREIGN_SUFFIXES:
                    self.foreign.add(_key(stem))

    def __len__(self) -> int:
        return sum(map(len, self._by_stem.values()))

    def find(self, name: str, hints: Sequence[str] = ()) -> list[Path]:
        """The files called `name`; several are equally good. It may have folders, which are then part of what is asked, and a suffix.

        Of several files those are better that have this suffix, then those in a folder whose name begins with one of `hints`.
        """
        asked = PurePosixPath(name.replace(os.sep, "/"))
        found = self._by_stem.get(_key(without_suffix(asked.name)), [])
        if len(asked.parts) > 1:
            parents = tuple(map(_key, asked.parts[:-1]))
            found = [p for p in found if tuple(map(_key, p.absolute().parts[-len(asked.parts) : -1])) == parents]
        if len(found) < 2:
            return found
        wanted = tuple(hint.lower() for hint in hints if hint)

        def rank(path: Path) -> tuple[bool, bool]:
            inside = path.relative_to(self.folder).parts[:-1]
            return path.suffix != asked.suffix, not any(part.lower().startswith(wanted) for part in inside)

        best = min(map(rank, found))
        return [path for path in found if rank(path) == best]

    def has_foreign(self, name: str) -> bool:
        """Whether a file of this name is there, but of a kind that cannot be read."""
        return _key(without_suffix(PurePosixPath(name).name)) in self.foreign

    def sounds(self) -> list[Path]:
        return [path for paths in self._by_stem.values() for path in paths]


def without_suffix(name: str) -> str:
    """A file's name without a sound's suffix; what is called by it may hold points itself."""
    stem, point, suffix = name.rpartition(".")
    return stem if point and f".{suffix.lower()}" in AUDIO_SUFFIXES else name


def _key(name: str) -> str:
    """Letters with accents are written in two ways; some systems change one into the other."""
    return unicodedata.normalize("NFC", name)


def sound_seconds(path: Path) -> float | str:
    """The length that a file's header states, in seconds; or a line that says why it cannot be read."""
    try:
        with soundfile.SoundFile(path) as file:
            return file.frames / file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, EOFError, OSError) as error:
        return str(error)
