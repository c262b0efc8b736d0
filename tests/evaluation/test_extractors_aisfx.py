"""aiSFX: its front end against librosa's, the way from the package to the cache folder, and windows."""

import zipfile

import librosa
import numpy as np
import pytest
import torch
from extractor_fakes import aisfx_state, write_aisfx_wheel
from fakes import normals

from meanaudio.convert.hub import cache_folder
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors import aisfx, make_extractor
from meanaudio.evaluation.extractors.weights import state_hash


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package of the known form, with random weights that count as the known ones."""
    path, member = write_aisfx_wheel(tmp_path / "aisfx-0.1.2-py2.py3-none-any.whl", aisfx_state())
    monkeypatch.setattr(aisfx, "MEMBER_SIZE", member[0])
    monkeypatch.setattr(aisfx, "MEMBER_SHA256", member[1])
    monkeypatch.setattr(aisfx, "STATE_HASH", state_hash(aisfx.read_package(path)))
    monkeypatch.setenv("MEANAUDIO_CACHE", str(tmp_path / "cache"))
    return path


def test_what_the_network_sees_is_what_librosa_makes(wheel):
    extractor = make_extractor("aisfx", weights=wheel)
    clip = normals(4 * 44100, seed=1) * torch.linspace(0, 1, 4 * 44100)
    clip = clip / clip.abs().max()
    power = librosa.feature.melspectrogram(
        y=clip.numpy(), sr=44100.0, n_mels=96, norm=1.0, fmin=0.0, fmax=22050.0, htk=True, hop_length=1024, n_fft=2048
    )
    expected = np.log10(power * 10000 + 1).T / aisfx.TOP
    found = extractor.windows(0.3 * clip)  # whatever its level
    assert found.shape == (3, 100, 96)
    for i in range(2):
        np.testing.assert_allclose(found[i].numpy(), expected[50 * i : 50 * i + 100], atol=2e-5)


def test_folded_it_computes_what_the_layers_do(wheel):
    """Convolution, normalisation, rectification, twice a block; maxima of 2 x 2 between blocks; mean over bands, maximum over time."""
    state = aisfx_state()
    x = frames = normals(2, 100, 96, seed=3)[:, None].abs()
    for block in range(1, 5):
        for layer in (1, 2):
            name = f"embedding_net.conv_block{block}."
            x = torch.nn.functional.conv2d(x, state[f"{name}conv{layer}.weight"], padding=1)
            norm = [state[f"{name}bn{layer}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
            x = torch.nn.functional.batch_norm(x, *norm).relu()
        x = torch.nn.functional.max_pool2d(x, 2) if block < 4 else x
    with torch.no_grad():
        found = make_extractor("aisfx", weights=wheel).network(frames[:, 0])
    torch.testing.assert_close(found, x.mean(3).amax(2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("seconds", "windows"), [(0.0, 1), (0.1, 1), (2.29, 1), (2.4, 2), (5.0, 4)])
def test_a_clip_is_padded_to_whole_windows_and_heard_the_same_among_others(wheel, seconds, windows):
    extractor = make_extractor("aisfx", weights=wheel)
    clip = 0.2 * normals(round(seconds * 44100), seed=2)
    alone, among = extractor([clip])[0], extractor([normals(50000), clip])[1]
    assert alone.embeddings.shape == (windows, 512)
    assert alone.logits is None
    torch.testing.assert_close(alone.embeddings, among.embeddings, atol=1e-4, rtol=1e-4)
    assert extractor([]) == []


def test_the_package_is_fetched_once_and_kept_as_weights_alone(wheel, monkeypatch, capsys):
    fetched = []
    monkeypatch.setattr("meanaudio.evaluation.extractors.weights.fetch_package", lambda source, folder: fetched.append(source) or wheel)
    first = make_extractor("aisfx")
    assert fetched == ["pypi:aisfx"]
    assert "fetching aisfx" in capsys.readouterr().err
    kept = cache_folder() / aisfx.FILE
    assert make_extractor("aisfx").fingerprint == make_extractor("aisfx", weights=kept).fingerprint == first.fingerprint
    assert len(fetched) == 1
    kept.write_bytes(kept.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match=r"aisfx.safetensors: not aiSFX's weights, or damaged"):
        make_extractor("aisfx")


def test_another_package_is_refused(wheel, tmp_path):
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr(aisfx.MEMBER, b"not it")
    with pytest.raises(InputError, match="is not the known file"):
        make_extractor("aisfx", weights=other)


def test_without_the_registry_the_error_says_what_to_do(wheel, monkeypatch):
    def refuse(source, folder):
        raise InputError("cannot download pypi:aisfx: no network")

    monkeypatch.setattr("meanaudio.evaluation.extractors.weights.fetch_package", refuse)
    with pytest.raises(InputError, match=r"no network.*pip download --no-deps aisfx==0\.1\.2"):
        make_extractor("aisfx")
