"""Random reads from one shard."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import numpy as np

# What a shard holds one after the other, and bytes of an element of it.
PIECES = {"item": ("F16", 2), "id": ("U8", 1), "caption": ("U8", 1)}


class ShardFile:
    """A shard's header, and where in the file each piece lies. ends: by kind of piece, where each ends, in elements [n].

    Nothing is mapped into memory: just what is wanted is read, and a file that is cut meanwhile is an error and not the end of the process.
    The file is not kept open. Raises ValueError, KeyError, TypeError or OSError if it is no shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ends: dict[str, np.ndarray] = {}
        self._begins: dict[str, int] = {}
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            # safetensors: the length of a JSON header, the header, the tensors at the places it names
            length = int.from_bytes(_read(file, 0, 8), "little")
            base = 8 + length
            header = json.loads(_read(file, 8, min(length, size)))
            self.made_by: str = json.loads(header["__metadata__"]["notes"])["made_by"]
            for name, (dtype, width) in PIECES.items():
                places = header[f"{name}_ends"]
                begin, end = places["data_offsets"]
                ends = np.frombuffer(_read(file, base + begin, min(end - begin, size)), dtype="<i8")
                whole = header[f"{name}s"]
                begin, end = whole["data_offsets"]
                lengths = np.diff(ends, prepend=0)
                if (places["dtype"], whole["dtype"]) != ("I64", dtype) or (lengths < 0).any() or width * lengths.sum() != end - begin:
                    raise ValueError(f"its {name}s are not as they should be")
                self.ends[name], self._begins[name] = ends, base + begin

    def _place(self, name: str, row: int) -> tuple[int, int]:
        """First byte and number of bytes of a piece."""
        ends, width = self.ends[name], PIECES[name][1]
        first = int(ends[row - 1]) if row else 0
        return self._begins[name] + width * first, width * (int(ends[row]) - first)

    def announce(self, rows: Sequence[int], names: Sequence[str]) -> None:
        """Tell the system what will be read: a disk or a network then fetches all of it at once, and not one piece after the other."""
        if hasattr(os, "posix_fadvise"):
            with self.path.open("rb", buffering=0) as file:
                for row in rows:
                    for name in names:
                        os.posix_fadvise(file.fileno(), *self._place(name, row), os.POSIX_FADV_WILLNEED)

    def read(self, rows: Sequence[int], names: Sequence[str]) -> list[list[bytearray]]:
        """For each row the pieces called `names`."""
        with self.path.open("rb", buffering=0) as file:
            return [[_read(file, *self._place(name, row)) for name in names] for row in rows]


def _read(file: FileIO, start: int, length: int) -> bytearray:
    if start < 0 or length < 0:
        raise ValueError("its header is damaged")
    data = bytearray(length)
    view, done = memoryview(data), 0
    file.seek(start)
    while done < length:
        got = file.readinto(view[done:])
        if not got:
            raise ValueError("it is cut short")
        done += got
    return data
