"""Extractors on random weights with the published names: shapes, front ends, strict loading, and that clips do not know of each other."""

import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
from extractor_fakes import Levels, write_tiny_clap
from fakes import fill, normals

from meanaudio.audio import save_audio
from meanaudio.cli import main
from meanaudio.errors import InputError
from meanaudio.evaluation import extractors
from meanaudio.evaluation.extractors import make_extractor, panns, passt, vggish
from meanaudio.evaluation.extractors.frames import LogMelPatches, equal_windows, htk_mel_filters
from meanaudio.evaluation.extractors.weights import state_hash

DIMS = {"panns": 32, "vggish": 128, "passt": 24, "clap": 16, "latents": 24, "scorer": 16}


@pytest.fixture
def make(tmp_path, monkeypatch, scored_checkpoint, fast_text):
    """make(name) -> the extractor called so, small, with random weights in a file of the published form."""
    monkeypatch.setattr(panns, "Cnn14", partial(panns.Cnn14, width=1))
    monkeypatch.setattr(vggish, "VggishNetwork", partial(vggish.VggishNetwork, width=2, hidden=8))
    monkeypatch.setattr(passt, "PasstNetwork", partial(passt.PasstNetwork, width=24, depth=2, heads=2))
    for module in (panns, passt):
        monkeypatch.setattr(module, "SHA256", None)

    def make(name):
        path = tmp_path / f"{name}.pth"
        if name == "panns":
            tables = {"spectrogram_extractor.stft.conv_real.weight": torch.zeros(2), "logmel_extractor.melW": torch.zeros(2)}
            state = fill(panns.Cnn14(), std=1.0).state_dict() | tables
            torch.save({"iteration": 1, "sampler": {"indexes": np.arange(3), "pointer": np.float64(2)}, "model": state}, path)
        elif name == "vggish":
            torch.save(fill(vggish.VggishNetwork(), std=0.2).state_dict(), path)
        elif name == "passt":
            heads = {"head_dist.weight": torch.zeros(2), "head_dist.bias": torch.zeros(2)}
            torch.save(fill(passt.PasstNetwork(), std=0.2).state_dict() | heads, path)
        elif name == "clap":
            path = tmp_path / "clap"
            write_tiny_clap(path)
        else:
            path = scored_checkpoint
        return make_extractor(name, weights=path)

    return make


@pytest.mark.parametrize("name", DIMS)
def test_a_clip_is_heard_the_same_alone_and_among_others(make, name):
    extractor = make(name)
    rate = extractor.sample_rate
    clips = [0.3 * normals(round(seconds * rate), seed=i) for i, seconds in enumerate((0.05, 1.3, 2.5, 1.3))]
    together = extractor(clips)
    assert len(together) == 4
    for clip, found in zip(clips, together, strict=True):
        alone = extractor([clip])[0]
        torch.testing.assert_close(found.embeddings, alone.embeddings, atol=1e-4, rtol=1e-4)
        assert found.embeddings.dtype == torch.float32
        assert torch.isfinite(found.embeddings).all()
        assert found.embeddings.shape[1] == DIMS[name]
        assert found.embeddings.shape[0] == (max(1, int(len(clip) / rate / 0.96)) if name == "vggish" else 1)
        assert (found.logits is None) == (name not in ("panns", "passt"))
        if found.logits is not None:
            assert found.logits.shape == (527,)
            torch.testing.assert_close(found.logits, alone.logits, atol=1e-4, rtol=1e-4)
    assert not any(features.embeddings.requires_grad or features.embeddings.is_inference() for features in together)
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # as before
    assert (together[1].embeddings - together[3].embeddings).abs().max() > 1e-5  # another clip, other features
    assert extractor(clips[:0]) == []


@pytest.mark.parametrize("name", list(DIMS))
def test_the_fingerprint_is_that_of_the_weights(make, name):
    first, again = make(name), make(name)
    assert first.fingerprint == again.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)


def test_fingerprints_differ_between_extractors_and_weights(make, tmp_path):
    one = make("vggish")
    torch.save(fill(vggish.VggishNetwork(), seed=1, std=0.2).state_dict(), tmp_path / "other.pth")
    other = make_extractor("vggish", weights=tmp_path / "other.pth")
    assert len({one.fingerprint, other.fingerprint, make("panns").fingerprint}) == 3


def test_state_hashes_see_names_types_shapes_and_values():
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    changes = [{"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).half()}, {"b": torch.ones(1) + 1e-6}, {"c": torch.ones(1)}]
    assert len({state_hash(state | change) for change in [{}, *changes]}) == 5
    assert state_hash(state) == state_hash(dict(reversed(state.items())))


# ---------------------------------------------------------------- names and files


def test_names_are_the_published_ones():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"bn0.{x}" for x in norm} | {f"{layer}.{x}" for layer in ("fc1", "fc_audioset") for x in ("weight", "bias")}
    for i in range(1, 7):
        expected |= {f"conv_block{i}.conv{j}.weight" for j in (1, 2)} | {f"conv_block{i}.bn{j}.{x}" for j in (1, 2) for x in norm}
    with torch.device("meta"):
        cnn, vgg, vit = panns.Cnn14(), vggish.VggishNetwork(), passt.PasstNetwork()
    assert cnn.state_dict().keys() == expected
    assert sum(p.numel() for p in cnn.parameters()) == pytest.approx(80.8e6, rel=1e-3)  # as its paper counts
    layers = [f"features.{i}" for i in (0, 3, 6, 8, 11, 13)] + [f"embeddings.{i}" for i in (0, 2, 4)]
    assert vgg.state_dict().keys() == {f"{layer}.{x}" for layer in layers for x in ("weight", "bias")}
    assert 4 * sum(p.numel() for p in vgg.parameters()) == pytest.approx(288_567_937, abs=5000)  # the file's size
    expected = {"cls_token", "dist_token", "new_pos_embed", "freq_new_pos_embed", "time_new_pos_embed"}
    parts = ["patch_embed.proj", "norm", "head.0", "head.1"]
    parts += [f"blocks.{i}.{part}" for i in range(12) for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    assert vit.state_dict().keys() == expected | {f"{part}.{x}" for part in parts for x in ("weight", "bias")}
    head_dist = 527 * 769
    assert 4 * (sum(p.numel() for p in vit.parameters()) + head_dist) == pytest.approx(344_665_734, rel=2e-4)  # the file's size


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vggish", lambda s: {k: v for k, v in s.items() if k != "features.0.bias"}, "missing features.0.bias"),
        ("vggish", lambda s: s | {"pproc.pca": torch.zeros(1)}, "not expected pproc.pca"),
        ("vggish", lambda s: s | {"features.0.bias": torch.zeros(7)}, r"misshaped features.0.bias \(7,\) instead of \(2,\)"),
        ("vggish", lambda s: s | {"features.0.bias": torch.full((2,), torch.nan)}, "NaN or infinite"),
        ("vggish", lambda s: {"a": {1: 2}}, "not a file of weights"),
    ],
)
def test_other_weights_are_refused(make, tmp_path, name, change, message):
    make(name)
    torch.save(change(torch.load(tmp_path / f"{name}.pth", weights_only=True)), tmp_path / "changed.pth")
    with pytest.raises(InputError, match=message):
        make_extractor(name, weights=tmp_path / "changed.pth")


@pytest.mark.parametrize(("name", "module"), [("panns", panns), ("passt", passt)])
def test_a_file_that_is_not_the_published_one_is_refused(make, monkeypatch, tmp_path, name, module):
    monkeypatch.setattr(module, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="sha256 [0-9a-f]{64}, the published file's is 0{64}"):
        make(name)


def test_missing_weights_are_asked_for_by_name(tmp_path):
    for name, url in (("panns", "zenodo.org"), ("vggish", "vggish-10086976.pth"), ("passt", "github.com/kkoutini")):
        with pytest.raises(InputError, match=f"(?s)download.*{url}"):
            make_extractor(name)
        with pytest.raises(InputError, match="no such weights file"):
            make_extractor(name, weights=tmp_path / "none.pth")
    with pytest.raises(InputError, match="must be one of yamnet, panns"):
        make_extractor("yamnett")


def test_class_names_lie_beside_the_weights(make, tmp_path):
    assert make("panns").classes is None
    path = tmp_path / panns.LABELS
    rows = [f'{i},/m/{i},"name {i}, quoted"' for i in reversed(range(527))]
    path.write_text("\n".join(["index,mid,display_name", *rows]), encoding="utf-8")
    classes = make("panns").classes
    assert len(classes) == 527
    assert classes[3] == "name 3, quoted"
    path.write_text("\n".join(["index,mid,display_name", *rows[1:]]), encoding="utf-8")
    with pytest.raises(InputError, match="names 526 classes"):
        make("panns")
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="columns index, mid, display_name"):
        make("panns")


# ---------------------------------------------------------------- front ends


@pytest.mark.parametrize(("rate", "n_fft", "bands", "low", "high"), [(16000, 512, 64, 125, 7500), (32000, 1024, 128, 0, 15000)])
def test_mel_filters_are_kaldi_s(rate, n_fft, bands, low, high):
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(n_fft // 2 + 1, bands, low, high, rate, mel_scale="kaldi", triangularize_in_mel_space=True)
    np.testing.assert_allclose(htk_mel_filters(rate, n_fft, bands, low, high).numpy(), theirs, atol=2e-5)


def test_log_mel_patches_lie_where_they_should():
    patches = LogMelPatches(hop=48, offset=0.001)
    time = torch.arange(15600 + 2 * 7680) / 16000
    found = patches(torch.sin(2 * torch.pi * 1000 * time) * (time < 0.9))
    assert found.shape == (3, 96, 64)
    torch.testing.assert_close(found[0, 48:], found[1, :48])
    edges = torch.linspace(1127 * np.log1p(125 / 700), 1127 * np.log1p(7500 / 700), 66)
    nearest = int((edges[1:-1] - 1127 * np.log1p(1000 / 700)).abs().argmin())
    assert found[0, :80].mean(0).argmax() == nearest
    torch.testing.assert_close(found[2], torch.full((96, 64), float(np.log(0.001))))
    torch.testing.assert_close(patches(time[:15600])[0, 0, 0], patches(time[:400].repeat(39))[0, 0, 0])


def test_twice_as_loud_is_six_decibels_and_time_goes_by_the_hop():
    network = panns.Cnn14(width=1)
    audio = normals(1, 32000) * 0.1
    mel = network.log_mel(audio)
    assert mel.shape == (1, 1, 201, 64)
    torch.testing.assert_close(network.log_mel(2 * audio) - mel, torch.full_like(mel, 20 * float(np.log10(2))), atol=1e-3, rtol=0)
    mel = passt.PasstMel()(normals(1, 320000) * 0.1)
    assert mel.shape == (1, 1, 128, 1000)
    assert passt.GRID[1] == (1000 - passt.PATCH) // passt.STRIDE + 1
    assert passt.GRID[0] == (128 - passt.PATCH) // passt.STRIDE + 1


def test_attention_is_the_usual_one():
    ours = fill(passt.Attention(24, 2), std=0.3)
    theirs = torch.nn.MultiheadAttention(24, 2, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = ours.qkv.weight, ours.qkv.bias
    theirs.out_proj = ours.proj
    x = normals(2, 5, 24)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_long_clips_are_heard_to_their_end():
    audio = torch.arange(25.0)
    windows = equal_windows(audio, 10)
    assert windows[:, 0].tolist() == [0, 10, 15]
    assert equal_windows(audio[:20], 10)[:, 0].tolist() == [0, 10]
    assert equal_windows(audio[:10], 10).shape == (1, 10)
    assert equal_windows(audio[:3], 10).shape == (1, 3)


@pytest.mark.parametrize("name", ["passt", "clap"])
def test_windows_are_averaged(make, name):
    extractor = make(name)
    size = passt.LONGEST if name == "passt" else 4000
    clip = 0.3 * normals(3 * size // 2)
    found = extractor([clip])[0].embeddings
    mean = torch.cat([extractor([part])[0].embeddings for part in (clip[:size], clip[-size:])]).mean(0, keepdim=True)
    expected = mean if name == "passt" else mean / mean.norm()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- CLAP


@pytest.mark.parametrize("fusion", [False, True])
def test_clap_gives_unit_vectors_of_clips_and_captions(tmp_path, fusion):
    write_tiny_clap(tmp_path, fusion=fusion)
    extractor = make_extractor("clap", weights=tmp_path)
    assert (extractor.sample_rate, extractor.dim) == (4000, 16)
    clips = [normals(n, seed=n) for n in (500, 4000, 9000)]
    found = torch.cat([features.embeddings for features in extractor(clips)])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found, torch.cat([features.embeddings for features in extractor(clips)]))  # nothing is drawn
    captions = ["rain on the roof", "a dog barks", ""] * 4
    text = extractor.encode_text(captions)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(text[:1], extractor.encode_text(captions[:1]), atol=1e-5, rtol=1e-4)
    assert extractor.encode_text([]).shape == (0, 16)
    with pytest.raises(InputError, match="Unicode"):
        extractor.encode_text(["\ud800"])


def test_clap_vectors_are_those_of_transformers(tmp_path):
    from transformers import ClapFeatureExtractor, ClapModel

    write_tiny_clap(tmp_path)
    extractor = make_extractor("clap", weights=tmp_path)
    model = ClapModel.from_pretrained(tmp_path).eval()
    clip = normals(3000)
    inputs = ClapFeatureExtractor.from_pretrained(tmp_path)(clip.numpy(), sampling_rate=4000, return_tensors="pt")
    ids = torch.tensor([[0, 6, 7, 8, 2]])  # "a dog barks"
    with torch.no_grad():
        theirs = model(ids, inputs["input_features"].float(), is_longer=inputs["is_longer"])
    torch.testing.assert_close(extractor([clip])[0].embeddings, theirs.audio_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(extractor.encode_text(["a dog barks"]), theirs.text_embeds, atol=1e-5, rtol=1e-4)


def test_clap_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_tiny_clap(tmp_path / "clap")
    for name in ("preprocessor_config.json", "model.safetensors"):
        (tmp_path / "clap" / name).rename(tmp_path / name)
        with pytest.raises(InputError, match=f"files are missing: {name}"):
            make_extractor("clap", weights=tmp_path / "clap")
        (tmp_path / name).rename(tmp_path / "clap" / name)
    for weights in (tmp_path / "none", None):
        with pytest.raises(InputError, match="hf download laion/clap"):
            extractors.make_extractor("clap", weights=weights)


# ---------------------------------------------------------------- the verb


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["meanaudio", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def test_tag_prints_the_classes_of_highest_score(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(extractors.EXTRACTORS, "yamnet", lambda weights, device: Levels())
    for i, level in enumerate((0.01, 0.9)):
        save_audio(tmp_path / f"{i}.wav", level * normals(8000).clamp(-1, 1), 8000)
    assert call(monkeypatch, "tag", tmp_path / "1.wav", tmp_path / "0.wav", "--top", 1, "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*1\.wav: loud 0\.[5-9]\d", lines[0])
    (tmp_path / "text.wav").write_text("no sound")
    assert call(monkeypatch, "tag", tmp_path / "text.wav", tmp_path / "1.wav", "--device", "cpu") == 2
    captured = capsys.readouterr()
    assert "quiet" in captured.out and "loud" in captured.out
    assert captured.err.count("error: ") == 1 and "text.wav" in captured.err
    assert call(monkeypatch, "tag", tmp_path / "1.wav", "--extractor", "vggish") == 2
    assert "vggish-10086976.pth from " in (err := capsys.readouterr().err) and "vggish=FILE" in err
    assert call(monkeypatch, "tag", tmp_path / "1.wav", "-e", f"panns={tmp_path / '1.wav'}") == 2
    assert "another file, or a damaged one" in capsys.readouterr().err
    monkeypatch.setattr(Levels, "classes", None)
    assert call(monkeypatch, "tag", tmp_path / "1.wav", "--device", "cpu") == 2
    assert "'levels' has no class names" in capsys.readouterr().err
