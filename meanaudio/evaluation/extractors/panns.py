"""PANNs' Cnn14 at 16 kHz: 2048-d embeddings and 527 AudioSet classes of whole clips, 80 M parameters; the backbone of FD, KL and IS.

Weights: Cnn14_16k_mAP=0.438.pth (358,668,570 bytes) from https://zenodo.org/records/3987831 (code MIT, weights CC BY 4.0), with the sha256
below (the same in several independent projects, two of which compared the file with Zenodo's MD5). Class names: if AudioSet's
class_labels_indices.csv (columns index, mid, display_name) lies beside the weights, they are read from there.
Names and order of the layers, front end: [code of audioset_tagging_cnn and torchlibrosa]. Equal to the authors' code on
random weights; never run on the real ones here: see docs/extractors.md.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meanaudio.codec.mel import mel_filters
from meanaudio.config import MelConfig
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.frames import at_least, exactly, listen
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint, need_file, read_published

FILE = "Cnn14_16k_mAP=0.438.pth"
URL = "https://zenodo.org/records/3987831"
SHA256 = "e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6"
VERSION = "1"
CLASSES = 527
LABELS = "class_labels_indices.csv"
SHORTEST = 32000  # samples: shorter clips are zero-padded to 2 s, as the field's evaluation does
BATCH = 16  # clips at once
MEL = MelConfig(n_fft=512, hop_length=160, win_length=512, n_mels=64, f_min=50, f_max=8000)


class ConvBlock(nn.Module):
    """x [B, C, T, M] -> [B, C', T, M]: two 3 x 3 convolutions."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(wider), nn.BatchNorm2d(wider)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Cnn14(nn.Module):
    """audio [B, N] -> (embeddings [B, 32 width], logits [B, 527]). Names are the published file's."""

    window: Tensor
    filters: Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(MEL.win_length), persistent=False)
        self.register_buffer("filters", mel_filters(MEL), persistent=False)
        self.bn0 = nn.BatchNorm2d(MEL.n_mels)
        self.conv_block1 = ConvBlock(1, width)
        self.conv_block2 = ConvBlock(width, 2 * width)
        self.conv_block3 = ConvBlock(2 * width, 4 * width)
        self.conv_block4 = ConvBlock(4 * width, 8 * width)
        self.conv_block5 = ConvBlock(8 * width, 16 * width)
        self.conv_block6 = ConvBlock(16 * width, 32 * width)
        self.fc1 = nn.Linear(32 * width, 32 * width)
        self.fc_audioset = nn.Linear(32 * width, CLASSES)

    def log_mel(self, audio: Tensor) -> Tensor:
        """audio [B, N] -> power in dB [B, 1, T, M], frames centred at multiples of the hop."""
        spectrum = torch.stft(audio, MEL.n_fft, MEL.hop_length, window=self.window, pad_mode="reflect", return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).mT @ self.filters
        return 10 * torch.log10(power.clamp_min(1e-10))[:, None]

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn0(self.log_mel(audio).transpose(1, 3)).transpose(1, 3)
        for block in (self.conv_block1, self.conv_block2, self.conv_block3, self.conv_block4, self.conv_block5):
            x = F.avg_pool2d(block(x), 2)
        x = self.conv_block6(x).mean(3)
        embeddings = torch.relu(self.fc1(x.amax(2) + x.mean(2)))
        return embeddings, self.fc_audioset(embeddings)


class Panns:
    """Clips at 16 kHz -> one 2048-d embedding (after the ReLU of fc1) and logits of 527 classes each."""

    name = "panns"
    sample_rate = MEL.sample_rate
    dim = 2048
    multi_label = True

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        path = need_file(weights, self.name, FILE, URL)
        self.network = Cnn14()
        tables = ("spectrogram_extractor.", "logmel_extractor.")  # windows and filters, which are computed here
        found = read_published(self.network, path, wrappers=["model"], extra=tables, sha256=SHA256)
        self.network.eval().requires_grad_(False).to(device)
        self.classes = read_labels(path.with_name(LABELS))
        self.device = device
        self.fingerprint = fingerprint(self.name, VERSION, found)

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        found = listen(self.network, [at_least(clip, SHORTEST) for clip in clips], BATCH, self.device)
        return [ClipFeatures(embedding[None], logits) for embedding, logits in found]


def read_labels(path: Path) -> tuple[str, ...] | None:
    """Names of AudioSet's 527 classes in order of their index, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {int(row["index"]): row["display_name"] for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a table with columns index, mid, display_name ({error})") from None
    if rows.keys() != set(range(CLASSES)):
        raise InputError(f"{path}: names {len(rows)} classes, AudioSet has {CLASSES}, counted from 0")
    return tuple(rows[i] for i in range(CLASSES))
