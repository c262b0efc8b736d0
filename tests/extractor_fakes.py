"""Stand-ins for extractors and for their weights: random ones with the published names and shapes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from release_fakes import write_tokenizer
from torch import Tensor

from meanaudio.evaluation.extractors import aisfx, soundnet, yamnet
from meanaudio.evaluation.extractors.protocol import ClipFeatures


class Levels:
    """An extractor without weights: level and mean absolute change of each half of a clip; it counts the clips that it heard."""

    name = "levels"
    sample_rate = 8000
    dim = 2
    classes: tuple[str, ...] | None = ("quiet", "loud")
    multi_label = False

    def __init__(self, fingerprint: str = "f" * 64) -> None:
        self.fingerprint, self.heard = fingerprint, 0

    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        self.heard += len(clips)
        rows = [torch.stack([torch.stack([half.square().mean(), half.diff().abs().mean()]) for half in clip.chunk(2)]) for clip in clips]
        return [ClipFeatures(row, torch.stack([-row[:, 0].mean(), row[:, 0].mean()])) for row in rows]


# ---------------------------------------------------------------- YAMNet's package


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def table(entries: Sequence[tuple[bytes, bytes]], per_block: int = 16) -> bytes:
    """A sorted table as `variables.index` is one: names share beginnings inside blocks of `per_block` entries."""
    out, listed = b"", []

    def add(rows: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Append a block; what points at it."""
        nonlocal out
        block, last = b"", b""
        for name, value in rows:
            shared = next((i for i, (a, b) in enumerate(zip(name, last, strict=False)) if a != b), min(len(name), len(last)))
            block += number(shared) + number(len(name) - shared) + number(len(value)) + name[shared:] + value
            last = name
        block += struct.pack("<II", 0, 1)
        at, out = len(out), out + block + b"\0" + struct.pack("<I", 0)
        return number(at) + number(len(block))

    for first in range(0, len(entries), per_block):
        rows = entries[first : first + per_block]
        listed.append((rows[-1][0], add(rows)))
    footer = add([]) + add(listed)
    return out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def bundle(variables: Mapping[str, np.ndarray], per_block: int = 16) -> tuple[bytes, bytes]:
    """(index, data) of a variables bundle; other types than float32 are stated as type 9."""
    entries, data = [(b"", b"\x08\x01\x1a\x02\x08\x01")], b""
    for name in sorted(variables):
        values = np.asarray(variables[name])
        dims = b"".join(b"\x12" + number(len(dim)) + dim for dim in (b"\x08" + number(size) for size in values.shape))
        kind = b"\x08" + (b"\x01" if values.dtype == np.float32 else b"\x09")
        place = (b"\x20" + number(len(data)) if data else b"") + b"\x28" + number(values.nbytes) + b"\x35" + struct.pack("<I", 7)
        entries.append((name.encode(), kind + b"\x12" + number(len(dims)) + dims + place))
        data += values.tobytes()
    return table(entries, per_block), data


def yamnet_variables(seed: int = 0) -> dict[str, np.ndarray]:
    """Random variables with the names and shapes of the real ones, of a scale that keeps activations in range."""
    draw = np.random.default_rng(seed)
    shapes = {(0, "kernel"): (3, 3, 1, 32)}
    width = 32
    for i, (_, wider) in enumerate(yamnet.STRIDES_WIDTHS):
        shapes |= {(4 * i + 2, "depthwise_kernel"): (3, 3, width, 1), (4 * i + 4, "kernel"): (1, 1, width, wider)}
        width = wider
    variables = {}
    for (layer, name), shape in shapes.items():
        inputs = 9 if name.startswith("depth") else shape[0] * shape[1] * shape[2]
        variables[layer, name] = draw.normal(size=shape) * (2 / inputs) ** 0.5
        channels = shape[2] if name.startswith("depth") else shape[3]
        variables[layer + 1, "beta"] = draw.normal(size=channels) * 0.1
        variables[layer + 1, "moving_mean"] = draw.normal(size=channels) * 0.1
        variables[layer + 1, "moving_variance"] = draw.uniform(0.5, 1.5, channels)
    variables |= {(54, "kernel"): draw.normal(size=(width, 521)) * 0.1, (54, "bias"): draw.normal(size=521)}
    return {yamnet.LAYERS.format(*key): values.astype(np.float32) for key, values in variables.items()}


def yamnet_members(variables: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """The files of the package that are read."""
    rows = io.StringIO()
    csv.writer(rows).writerows([["index", "mid", "display_name"], *[[i, f"/m/{i}", f"class {i}, of 521"] for i in range(521)]])
    index, data = bundle(variables)
    return dict(zip(yamnet.MEMBERS, (index, data, rows.getvalue().encode()), strict=True))


def write_yamnet_wheel(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{yamnet.FOLDER}/{name}", content)
    return path


def known(members: Mapping[str, bytes]) -> dict[str, tuple[int, str]]:
    """What yamnet.MEMBERS says of such files."""
    return {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in members.items()}


# ---------------------------------------------------------------- aiSFX's package


def aisfx_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights with the names and shapes of the published ones, of a scale that keeps activations in range."""
    generator = torch.Generator().manual_seed(seed)
    state, before = {}, 1
    for block, width in enumerate(aisfx.WIDTHS, 1):
        for layer in (1, 2):
            name = f"embedding_net.conv_block{block}."
            state[f"{name}conv{layer}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
            for part in ("weight", "running_var"):
                state[f"{name}bn{layer}.{part}"] = 0.5 + torch.rand(width, generator=generator)
            for part in ("bias", "running_mean"):
                state[f"{name}bn{layer}.{part}"] = 0.1 * torch.randn(width, generator=generator)
            before = width
    return state


def write_aisfx_wheel(path: Path, state: Mapping[str, Tensor]) -> tuple[Path, tuple[int, str]]:
    """The package, and size and sha256 of its file of weights, in which numpy's numbers lie beside them."""
    content = io.BytesIO()
    torch.save((dict(state), {"library": (np.int64(0), 7)}), content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(aisfx.MEMBER, content.getvalue())
    return path, (len(content.getvalue()), hashlib.sha256(content.getvalue()).hexdigest())


# ---------------------------------------------------------------- SoundNet's package


def soundnet_layers(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Random weights with the names and shapes of the published ones, of the layers that are used and one that is not."""
    generator, layers = np.random.default_rng(seed), {}
    for i, (into, out, kernel) in enumerate((*soundnet.LAYERS, (256, 8, 4)), 1):
        weights = generator.normal(size=(kernel, 1, into, out)) * (2 / (kernel * into)) ** 0.5
        shifts = {name: 0.1 * generator.normal(size=out) for name in ("biases", "mean", "beta")}
        scales = {name: generator.uniform(0.5, 1.5, size=out) for name in ("gamma", "var")}
        layers[f"conv{i}"] = {name: values.astype(np.float32) for name, values in {"weights": weights, **shifts, **scales}.items()}
    return layers


def write_soundnet_package(path: Path, held: object) -> tuple[Path, tuple[int, str]]:
    """The package, and size and sha256 of its file of numbers, which holds `held` as numpy pickles it."""
    content, packed = io.BytesIO(), np.empty((), dtype=object)
    packed[()] = held
    np.save(content, packed, allow_pickle=True)
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(soundnet.MEMBER)
        member.size = len(content.getvalue())
        archive.addfile(member, io.BytesIO(content.getvalue()))
    return path, (len(content.getvalue()), hashlib.sha256(content.getvalue()).hexdigest())


# ---------------------------------------------------------------- CLAP


def write_tiny_clap(folder: Path, *, fusion: bool = False) -> None:
    """A random CLAP of windows of 1 s at 4 kHz and 16-d vectors, in the files of a Hugging Face repository."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    audio = {"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 2, "patch_stride": [2, 2], "depths": [1, 1]}
    audio |= {"num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "hidden_size": 32, "enable_fusion": fusion}
    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ClapConfig(audio_config=audio, text_config=text | {"max_position_embeddings": 80}, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ClapModel(config).save_pretrained(folder)
    kind = "fusion" if fusion else "rand_trunc"
    mel = {"feature_size": 16, "sampling_rate": 4000, "hop_length": 20, "fft_window_size": 128, "max_length_s": 1}
    ClapFeatureExtractor(**mel, frequency_min=50, frequency_max=2000, truncation=kind, padding="repeatpad").save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json", ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    assert json.loads((folder / "config.json").read_text())["projection_dim"] == 16
