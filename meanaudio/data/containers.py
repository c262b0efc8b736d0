"""Readers for the container files that public packages keep sounds in.

A reader maps (data, where) to an iterator of (member name, bytes); `where` names the file in error messages. What is read is untrusted:
offsets, sizes, depth and names are checked, a broken file is an InputError, and nothing is ever written under a member's name.
"""

from __future__ import annotations

import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import tempfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from meanaudio.audio import AUDIO_SUFFIXES
from meanaudio.errors import InputError

Members = Iterator[tuple[str, bytes]]
Reader = Callable[[bytes, str], Members]

MAX_MEMBER = 1 << 29  # bytes: a small file that unpacks to more than this is an attack, not a sound set
MAX_ZIP = 1 << 33  # of a zip in a package, which is put on disk
MAX_ENTRIES = 1 << 17
MAX_DEPTH = 32
# zipfile checks little of what it reads: a wrong offset or method comes out as any of these
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, LookupError, ValueError, RuntimeError, EOFError, OSError)

C4_HEADER = 204
C4_ENTRY = 316
C4_TITLE = b"RedWolf Design GrpFolder"
DMX_PAD = 16  # samples of padding at either end of a Doom sound


def _need(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise InputError(f"{where}: broken container: {what}")


def _cut(data: bytes | memoryview, start: int, size: int, where: str) -> memoryview:
    """data[start : start + size], or an error where that is not all inside."""
    _need(start >= 0 and size >= 0 and start + size <= len(data), where, f"{size} bytes at {start} are outside its {len(data)}")
    return memoryview(data)[start : start + size]


def _unpack(layout: str, data: bytes | memoryview, start: int, where: str) -> tuple[int, ...]:
    return struct.unpack(layout, _cut(data, start, struct.calcsize(layout), where))


def _safe(name: str, where: str) -> str:
    """A relative name without `..`: members are only looked up by name, but a name that tries to escape marks a hostile file."""
    hostile = not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in PurePosixPath(name).parts
    _need(not hostile, where, f"the member name {name!r} leaves the container")
    return name


def _inflate(data: bytes | memoryview, where: str, wbits: int) -> bytes:
    stream = zlib.decompressobj(wbits)
    try:
        out = stream.decompress(data, MAX_MEMBER)
    except zlib.error as error:
        raise InputError(f"{where}: broken container: {error}") from error
    _need(stream.eof, where, "its compressed data is cut short or too large")
    return out


def read_cat(data: bytes, where: str) -> Members:
    """OpenTTD sound set: `00.wav`, `01.wav`, … in table order, each with its description (author, licence) as `00.txt`."""
    (first,) = _unpack("<I", data, 0, where)
    count = (first & 0x7FFFFFFF) // 8
    _need(0 < count <= 4096, where, f"{count} entries")
    for index in range(count):
        offset, size = _unpack("<II", data, 8 * index, where)
        offset &= 0x7FFFFFFF
        (length,) = _unpack("<B", data, offset, where)
        description = bytes(_cut(data, offset + 1, length, where)).rstrip(b"\0")
        yield f"{index:02d}.wav", bytes(_cut(data, offset + 1 + length, size, where))
        yield f"{index:02d}.txt", description


def read_rcc(data: bytes, where: str) -> Members:
    """Qt resource file; names are paths from its root. zstd-packed members are an error: none of the wanted files has any."""
    _need(data[:4] == b"qres", where, "it does not start with 'qres'")
    version, tree, bodies, names = _unpack(">IIII", data, 4, where)
    step = 22 if version >= 2 else 14
    seen: set[int] = set()

    def name_of(offset: int) -> str:
        (length,) = _unpack(">H", data, names + offset, where)
        return str(_cut(data, names + offset + 6, 2 * length, where), "utf-16-be", "replace")

    def walk(node: int, prefix: str, depth: int) -> Members:
        _need(node not in seen and depth <= MAX_DEPTH and len(seen) < MAX_ENTRIES, where, "its folders form a loop")
        seen.add(node)
        at = tree + node * step
        name, flags = _unpack(">IH", data, at, where)
        path = prefix + name_of(name) if node else ""
        if flags & 2:
            count, first = _unpack(">II", data, at + 6, where)
            _need(count <= MAX_ENTRIES, where, f"a folder of {count} entries")
            for child in range(first, first + count):
                yield from walk(child, path + "/" if path else "", depth + 1)
            return
        (offset,) = _unpack(">I", data, at + 10, where)
        (size,) = _unpack(">I", data, bodies + offset, where)
        body = _cut(data, bodies + offset + 4, size, where)
        _need(not flags & 4, where, f"{path!r} is packed with zstd, which is not supported")
        yield _safe(path, where), _inflate(body[4:], where, zlib.MAX_WBITS) if flags & 1 else bytes(body)

    yield from walk(0, "", 0)


def read_c4group(data: bytes, where: str) -> Members:
    """OpenClonk group, nested groups included; names start with the file's own name, as in `Sound.ocg/Bell.ogg`."""
    yield from _c4group(memoryview(data), Path(where).name + "/", where, 0)


def _c4group(data: memoryview, prefix: str, where: str, depth: int) -> Members:
    _need(depth <= MAX_DEPTH, where, "groups are nested too deep")
    if bytes(data[:2]) in (b"\x1e\x8c", b"\x1f\x8b"):  # gzip, usually under another magic
        data = memoryview(_inflate(b"\x1f\x8b" + bytes(data[2:]), where, zlib.MAX_WBITS | 16))
    header = bytearray(_cut(data, 0, C4_HEADER, where))
    for i in range(0, C4_HEADER - 2, 3):
        header[i], header[i + 2] = header[i + 2], header[i]
    plain = bytes(byte ^ 0xED for byte in header)
    _need(plain.startswith(C4_TITLE), where, "it is not a C4Group")
    (count,) = _unpack("<i", plain, 36, where)
    _need(0 <= count <= MAX_ENTRIES, where, f"{count} entries")
    base = C4_HEADER + C4_ENTRY * count
    for index in range(count):
        entry = _cut(data, C4_HEADER + C4_ENTRY * index, C4_ENTRY, where)
        name = bytes(entry[:257]).split(b"\0")[0].decode("latin1")
        _, is_group, size, _, offset = _unpack("<iiiii", entry, 260, where)
        body = _cut(data, base + offset, size, where)
        path = _safe(prefix + name, where)
        if is_group:
            yield from _c4group(body, path + "/", where, depth + 1)
        else:
            yield path, bytes(body)


def read_wad(data: bytes, where: str) -> Members:
    """Doom WAD: its DMX sound lumps as `<wad name>/DSNAME.wav` (8-bit mono wav bytes)."""
    _need(data[:4] in (b"IWAD", b"PWAD"), where, "it does not start with IWAD or PWAD")
    count, table = _unpack("<II", data, 4, where)
    _need(count <= MAX_ENTRIES, where, f"{count} lumps")
    for index in range(count):
        offset, size, raw = struct.unpack("<II8s", _cut(data, table + 16 * index, 16, where))
        name = raw.split(b"\0")[0].decode("latin1")
        if not name.startswith("DS") or size < 8:
            continue
        lump = _cut(data, offset, size, where)
        kind, rate, samples = _unpack("<HHI", lump, 0, where)
        if kind != 3 or samples <= 2 * DMX_PAD:  # a lump of that name that is no digital sound
            continue
        _need(rate > 0, where, f"{name} has a sample rate of 0")
        body = _cut(lump, 8 + DMX_PAD, samples - 2 * DMX_PAD, where)
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(1)
            file.setframerate(rate)
            file.writeframes(bytes(body))
        yield _safe(f"{Path(where).stem}/{name}.wav", where), out.getvalue()


def read_zip(data: bytes, where: str) -> Members:
    """zip under any suffix (pk3, wz): its sounds, containers and notices; the rest (maps, textures) is not unpacked, for time."""
    yield from _read_zip(io.BytesIO(data), where)


def _read_zip(file: IO[bytes], where: str) -> Members:
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.is_dir() or not _wanted(info.filename):
                    continue
                _need(info.file_size <= MAX_MEMBER, where, f"{info.filename!r} unpacks to {info.file_size} bytes")
                yield _safe(info.filename, where), archive.read(info)
    except InputError:
        raise
    except ZIP_ERRORS as error:
        raise InputError(f"{where}: broken container: {error}") from error


def read_zip_member(path: Path, name: str, most: int) -> bytes:
    """The first `most` bytes of the member `name` of a zip or wheel; the rest is not unpacked."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return file.read(most)
    except ZIP_ERRORS as error:
        raise InputError(f"{path}: cannot read {name} from it: {error}") from error


def read_tar_member(path: Path, name: str, most: int) -> bytes:
    """The first `most` bytes of the member `name` of a .tar.gz; nothing is unpacked on disk."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            info = archive.getmember(name)
            file = archive.extractfile(info) if info.isfile() else None
            if file is None:
                raise ValueError("it is no file")
            return file.read(most)
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: cannot read {name} from it: {error}") from error


CONTAINERS: dict[str, Reader] = {
    ".cat": read_cat,
    ".rcc": read_rcc,
    **dict.fromkeys((".ocg", ".ocd", ".ocs", ".ocf"), read_c4group),
    ".wad": read_wad,
    **dict.fromkeys((".pk3", ".wz"), read_zip),
}


def is_notice(name: str) -> bool:
    """Does a member of a package state its licence or its authors?"""
    path = PurePosixPath(name)
    return path.match("usr/share/doc/*/copyright") or path.stem.lower() in ("license", "licence", "credits", "copying", "authors")


def _wanted(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in AUDIO_SUFFIXES or suffix in CONTAINERS or is_notice(name)


def read_package(path: Path) -> Members:
    """Sounds, containers and notices, but no links, of a package (.deb, .whl, .tgz or .tar.gz).

    Streamed; only a .zip that a tar holds is put on disk, beside the package while it is read. Its members are named `PATH.zip/MEMBER`.
    """
    if path.suffix in (".whl", ".zip"):
        with path.open("rb") as file:
            yield from _read_zip(file, str(path))
    elif path.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            try:
                yield from _read_tar(process.stdout, "r|", path)
            finally:
                process.stdout.close()  # a reader that stops early must not leave dpkg-deb waiting
        _need(process.returncode == 0, str(path), f"dpkg-deb failed with {process.returncode}")
    elif path.suffix in (".tgz", ".gz"):
        with path.open("rb") as file:
            yield from _read_tar(file, "r|gz", path)
    else:
        raise InputError(f"{path}: unknown package format; known are .deb, .whl, .zip, .tgz, .tar.gz")


def _read_tar(file: IO[bytes], mode: Literal["r|", "r|gz"], path: Path) -> Members:
    try:
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for info in archive:
                name = info.name.removeprefix("./")
                is_zip = PurePosixPath(name).suffix.lower() == ".zip"
                body = archive.extractfile(info) if info.isfile() and (is_zip or _wanted(name)) else None
                if body is None:
                    continue
                _need(info.size <= (MAX_ZIP if is_zip else MAX_MEMBER), str(path), f"{name!r} unpacks to {info.size} bytes")
                if not is_zip:
                    yield _safe(name, str(path)), body.read()
                    continue
                with tempfile.TemporaryFile(dir=path.parent) as copy:
                    shutil.copyfileobj(body, copy)
                    for inner, data in _read_zip(copy, f"{path}: {name}"):
                        yield _safe(f"{name}/{inner}", str(path)), data
    except InputError:
        raise
    except (tarfile.TarError, zlib.error, ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: broken package: {error}") from error
