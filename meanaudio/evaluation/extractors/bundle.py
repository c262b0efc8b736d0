"""A reader for TensorFlow's variables bundle (`variables.index` and its one data file), without TensorFlow.

The index is a sorted table of LevelDB's kind: blocks of entries whose names share a beginning with the one before, a block that lists those
blocks, and a footer that points at it. Each value is a small protocol-buffers message: type, shape, place and size in the data file. What
is read is untrusted: every offset and size is checked. Checksums are not: whoever reads a known file compares its sha256 first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np

from meanaudio.errors import InputError

FOOTER = 48  # bytes: two block handles, padding, magic
MAGIC = 0xDB4775248B80FB57
FLOAT = 1  # TensorFlow's number of the type
MAX_ENTRIES = 1 << 16


def read_bundle(index: bytes, data: bytes, where: str) -> dict[str, np.ndarray]:
    """All float32 variables by name; those of other types (counters, the graph of objects) are left out.

    where: named in errors. Raises InputError for a damaged, compressed, big-endian or sharded bundle.
    """
    try:
        variables = {}
        for name, value in _table(index):
            fields = _message(value)
            if not name:  # the header: number of data files, byte order
                _need(fields.get(1, [1])[0] == 1 and fields.get(2, [0])[0] == 0, "more than one data file, or big-endian numbers")
            elif fields.get(1, [0])[0] == FLOAT:
                variables[name.decode()] = _variable(fields, data)
        return variables
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        raise InputError(f"{where}: not a readable variables bundle ({error})") from None


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _variable(fields: dict[int, list], data: bytes) -> np.ndarray:
    dims = _message(fields[2][0]).get(2, []) if 2 in fields else []
    shape = [_message(dim)[1][0] for dim in dims]
    offset, size = fields.get(4, [0])[0], fields[5][0]
    _need(size == 4 * math.prod(shape) and offset + size <= len(data), f"{size} bytes at {offset} for shape {shape}")
    return np.frombuffer(data, "<f4", size // 4, offset).reshape(shape)


def _table(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, value) of every entry."""
    footer = index[-FOOTER:]
    _need(len(footer) == FOOTER and struct.unpack("<Q", footer[-8:])[0] == MAGIC, "no table's footer at its end")
    at = 0
    for _ in range(2):  # offset and size of the block of statistics, which is not needed
        _, at = _number(footer, at)
    for _, handle in _block(index, footer[at:]):
        yield from _block(index, handle)


def _block(index: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset, at = _number(handle, 0)
    size, _ = _number(handle, at)
    _need(size >= 4 and offset + size < len(index), f"a block of {size} bytes at {offset}")
    _need(index[offset + size] == 0, "its blocks are compressed")
    block = index[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end = size - 4 - 4 * restarts
    _need(end >= 0, f"{restarts} restarts in a block of {size} bytes")
    name, at = b"", 0
    for _ in range(MAX_ENTRIES):
        if at >= end:
            return
        shared, at = _number(block, at)
        own, at = _number(block, at)
        length, at = _number(block, at)
        _need(shared <= len(name) and at + own + length <= end, "an entry that leaves its block")
        name = name[:shared] + block[at : at + own]
        yield name, block[at + own : at + own + length]
        at += own + length
    raise ValueError(f"more than {MAX_ENTRIES} entries in a block")


def _message(data: bytes) -> dict[int, list]:
    """Values of a protocol-buffers message by field number: numbers, or bytes."""
    fields: dict[int, list] = {}
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        kind = tag & 7
        values = fields.setdefault(tag >> 3, [])
        if kind == 0:
            number, at = _number(data, at)
            values.append(number)
        else:
            length, at = _number(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            _need(at + length <= len(data), f"a field of {length} bytes that leaves its message")
            values.append(data[at : at + length])
            at += length
    return fields


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of variable length at `at`, and where it ends."""
    value = 0
    for i in range(10):
        byte = data[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ValueError(f"a number of more than 10 bytes at {at}")
