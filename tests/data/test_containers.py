"""Containers written by hand, read back; broken ones raise InputError and nothing else."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import struct
import subprocess
import tarfile
import wave
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanaudio.data import containers
from meanaudio.data.containers import C4_ENTRY, C4_HEADER, C4_TITLE, CONTAINERS, read_package
from meanaudio.errors import InputError


def make_cat(entries):
    table, body = b"", b""
    start = 8 * len(entries)
    for description, data in entries:
        table += struct.pack("<II", start + len(body), len(data))
        body += bytes([len(description)]) + description + data
    return table + body


def make_c4(entries):
    """entries: (name, data, is_group)."""
    header = bytearray(C4_HEADER)
    header[: len(C4_TITLE)] = C4_TITLE
    header[36:40] = struct.pack("<i", len(entries))
    scrambled = bytearray(byte ^ 0xED for byte in header)
    for i in range(0, C4_HEADER - 2, 3):
        scrambled[i], scrambled[i + 2] = scrambled[i + 2], scrambled[i]
    table, body = b"", b""
    for name, data, is_group in entries:
        entry = name.ljust(260, b"\0") + struct.pack("<iiiii", 1, is_group, len(data), 0, len(body))
        table += entry.ljust(C4_ENTRY, b"\0")
        body += data
    return bytes(scrambled) + table + body


def packed_c4(entries):
    return b"\x1e\x8c" + gzip.compress(make_c4(entries), mtime=0)[2:]


def make_rcc(names, bodies, tree):
    """tree: rows of (name index, flags, a, b); a, b are count and first child, or 0 and the body's index."""
    name_offsets, name_bytes = [], b""
    for name in names:
        name_offsets.append(len(name_bytes))
        name_bytes += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    body_offsets, body_bytes = [], b""
    for body in bodies:
        body_offsets.append(len(body_bytes))
        body_bytes += struct.pack(">I", len(body)) + body
    rows = b""
    for name, flags, a, b in tree:
        head = struct.pack(">IH", name_offsets[name], flags)
        rows += head + (struct.pack(">II", a, b) if flags & 2 else struct.pack(">II", a, body_offsets[b]))
    return b"qres" + struct.pack(">IIII", 1, 20, 20 + len(rows), 20 + len(rows) + len(body_bytes)) + rows + body_bytes + name_bytes


def make_wad(lumps):
    body, table = b"", b""
    for name, data in lumps:
        table += struct.pack("<II8s", 12 + len(body), len(data), name)
        body += data
    return b"PWAD" + struct.pack("<II", len(lumps), 12 + len(body)) + body + table


def make_zip(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


SAMPLES = bytes(range(100, 164))
GOOD = {
    ".cat": (make_cat([(b"first", b"RIFFone"), (b"by someone", b"RIFFtwo!")]), "set.cat"),
    ".ocg": (packed_c4([(b"a.wav", b"abc", 0), (b"In.ocg", make_c4([(b"b.ogg", b"defg", 0)]), 1)]), "x/Sound.ocg"),
    ".rcc": (
        make_rcc(
            ["", "dir", "a.wav", "b.wav"],
            [b"plain", struct.pack(">I", 6) + zlib.compress(b"packed")],
            [(0, 2, 1, 1), (1, 2, 2, 2), (2, 0, 0, 0), (3, 1, 0, 1)],
        ),
        "x.rcc",
    ),
    ".wad": (make_wad([(b"MAP01", b""), (b"DSBOOM", struct.pack("<HHI", 3, 11025, 96) + bytes(16) + SAMPLES + bytes(16))]), "x/free.wad"),
    ".pk3": (make_zip([("sound/a.ogg", b"OggS"), ("maps/big.bsp", b"no sound")]), "0.pk3"),
}


def read(suffix, data=None, where=None):
    good, name = GOOD[suffix]
    return dict(CONTAINERS[suffix](good if data is None else data, where or name))


def test_cat_members_are_numbered_and_keep_their_credits():
    assert read(".cat") == {"00.wav": b"RIFFone", "00.txt": b"first", "01.wav": b"RIFFtwo!", "01.txt": b"by someone"}


def test_c4group_names_start_with_the_file_and_go_into_groups():
    assert read(".ocg") == {"Sound.ocg/a.wav": b"abc", "Sound.ocg/In.ocg/b.ogg": b"defg"}


def test_rcc_plain_and_packed_members():
    assert read(".rcc") == {"dir/a.wav": b"plain", "dir/b.wav": b"packed"}


def test_wad_sounds_become_wav_without_their_padding():
    members = read(".wad")
    assert list(members) == ["free/DSBOOM.wav"]
    with wave.open(io.BytesIO(members["free/DSBOOM.wav"])) as file:
        assert (file.getframerate(), file.getnchannels(), file.readframes(1000)) == (11025, 1, SAMPLES)


def test_zip_gives_sounds_only():
    assert read(".pk3") == {"sound/a.ogg": b"OggS"}


@pytest.mark.parametrize("suffix", GOOD)
@settings(max_examples=60)
@given(data=st.data())
def test_a_broken_container_is_an_input_error(suffix, data):
    good = bytearray(GOOD[suffix][0])
    if data.draw(st.booleans()):
        del good[data.draw(st.integers(0, len(good) - 1)) :]
    else:
        for _ in range(3):
            good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):  # anything else is a failure
        read(suffix, bytes(good))


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".pk3", make_zip([("../../evil.wav", b"x")])),
        (".pk3", make_zip([("/etc/evil.wav", b"x")])),
        (".ocg", packed_c4([(b"../evil.wav", b"x", 0)])),
        (".rcc", make_rcc(["", "..", "evil.wav"], [b"x"], [(0, 2, 1, 1), (1, 2, 1, 2), (2, 0, 0, 0)])),
    ],
    ids=["zip up", "zip root", "group", "resource"],
)
def test_names_that_leave_the_container_are_refused(suffix, data):
    with pytest.raises(InputError, match="leaves the container"):
        read(suffix, data)


def test_rcc_whose_folders_form_a_loop():
    with pytest.raises(InputError, match="loop"):
        read(".rcc", make_rcc(["", "d"], [b""], [(0, 2, 1, 1), (1, 2, 1, 1)]))


def make_tar(members, mode):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("package/link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def test_packages_give_sounds_and_notices_and_no_links(tmp_path):
    members = [("package/a.wav", b"sound"), ("package/LICENSE", b"free"), ("package/code.js", b"code")]
    wanted = {"package/a.wav": b"sound", "package/LICENSE": b"free"}
    (tmp_path / "p-1.tgz").write_bytes(make_tar(members, "w:gz"))
    (tmp_path / "p-1-py3.whl").write_bytes(make_zip(members))
    assert dict(read_package(tmp_path / "p-1.tgz")) == wanted
    assert dict(read_package(tmp_path / "p-1-py3.whl")) == wanted
    (tmp_path / "p-2.tgz").write_bytes(make_tar([("../a.wav", b"x")], "w:gz"))
    with pytest.raises(InputError, match="leaves the container"):
        list(read_package(tmp_path / "p-2.tgz"))
    with pytest.raises(InputError, match="known are"):
        list(read_package(tmp_path / "p.rpm"))


def test_a_zip_in_a_package_is_read_through(tmp_path, monkeypatch):
    inner = make_zip([("audio/a.ogg", b"sound"), ("audio/LICENSE.txt", b"free"), ("map.xml", b"map")])
    (tmp_path / "p-1.tgz").write_bytes(make_tar([("data/public.zip", inner), ("b.wav", b"other")], "w:gz"))
    wanted = {"data/public.zip/audio/a.ogg": b"sound", "data/public.zip/audio/LICENSE.txt": b"free", "b.wav": b"other"}
    assert dict(read_package(tmp_path / "p-1.tgz")) == wanted
    assert [p.name for p in tmp_path.iterdir()] == ["p-1.tgz"]
    monkeypatch.setattr(containers, "MAX_MEMBER", len(inner) - 1)  # the zip may be larger than its members
    assert dict(read_package(tmp_path / "p-1.tgz")) == wanted
    monkeypatch.setattr(containers, "MAX_ZIP", len(inner) - 1)
    with pytest.raises(InputError, match="'data/public.zip' unpacks to"):
        list(read_package(tmp_path / "p-1.tgz"))
    monkeypatch.undo()
    for name, data in (("p-2", b"PK no zip"), ("p-3", make_zip([("../a.wav", b"x")]))):
        (tmp_path / f"{name}.tgz").write_bytes(make_tar([("public.zip", data)], "w:gz"))
        with pytest.raises(InputError, match="public.zip: broken container"):
            list(read_package(tmp_path / f"{name}.tgz"))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debian_package(tmp_path):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text("Package: p\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: d\n")
    (root / "usr/share/doc/p").mkdir(parents=True)
    (root / "usr/share/doc/p/copyright").write_text("free")
    (root / "usr/share/a.wav").write_bytes(b"sound")
    (root / "usr/share/b.wav").symlink_to("a.wav")
    path = tmp_path / "p_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", root, path], check=True, capture_output=True)
    assert dict(read_package(path)) == {"usr/share/doc/p/copyright": b"free", "usr/share/a.wav": b"sound"}
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="p_1_all.deb"):
        list(read_package(path))
