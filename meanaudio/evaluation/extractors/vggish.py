"""VGGish: 128-d embeddings of 0.96 s frames, by a VGG-like network of 72 M parameters; the backbone of FAD.

Weights: vggish-10086976.pth (288,567,937 bytes), Google's in PyTorch's form, from
https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth (code Apache-2.0). Its sha256 is not known here, so it
is not checked; it goes into the fingerprint. By PyTorch's habit the eight letters in the name are how it begins.
Names and order of the layers, front end: [code of torchvggish]. Equal to torchvggish on random weights; never run on
the real ones here: see docs/extractors.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from meanaudio.evaluation.extractors.frames import PATCH, PATCH_SAMPLES, SAMPLE_RATE, LogMelPatches, at_least, exactly
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint, need_file, read_published

FILE = "vggish-10086976.pth"
URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/"
VERSION = "1"
BATCH = 64  # patches at once


class VggishNetwork(nn.Module):
    """patches [P, 96, 64] -> embeddings [P, 128] before the last ReLU. Names are the published file's."""

    def __init__(self, width: int = 64, hidden: int = 4096) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for level in ((1,), (2,), (4, 4), (8, 8)):
            for multiple in level:
                layers += [nn.Conv2d(channels, multiple * width, 3, padding=1), nn.ReLU()]
                channels = multiple * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(channels * 6 * 4, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 128)
        )

    def forward(self, patches: Tensor) -> Tensor:
        x = self.features(patches[:, None])
        return self.embeddings(x.permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order: time, frequency, channel


class Vggish:
    """Clips at 16 kHz -> a 128-d embedding each 0.96 s, without PCA, without the last ReLU, as FAD is computed.

    The end of a clip that fills no whole frame is left out; a clip shorter than one frame is zero-padded to it.
    """

    name = "vggish"
    sample_rate = SAMPLE_RATE
    dim = 128
    classes: tuple[str, ...] | None = None
    multi_label = False

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        path = need_file(weights, self.name, FILE, URL)
        self.network = VggishNetwork()
        found = read_published(self.network, path, sha256=None)
        self.network.eval().requires_grad_(False).to(device)
        self.patches = LogMelPatches(hop=PATCH, offset=0.01).to(device)
        self.device = device
        self.fingerprint = fingerprint(self.name, VERSION, found)

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        if not clips:
            return []
        patches = [self.patches(at_least(clip.to(self.device), PATCH_SAMPLES)) for clip in clips]
        embeddings = torch.cat([self.network(part).float().cpu() for part in torch.cat(patches).split(BATCH)])
        return [ClipFeatures(rows, None) for rows in embeddings.split([len(p) for p in patches])]
