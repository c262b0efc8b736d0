"""PaSST: 768-d embeddings and 527 AudioSet classes of up to 10 s at 32 kHz, by a vision transformer of 86 M parameters.

Weights: passt-s-f128-p16-s10-ap.476-swa.pt (344,665,734 bytes) from
https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt (Apache-2.0), with the sha256 below
(the same in several independent projects). Class names: see panns.py. Names and order of the layers, front end: [code of passt_hear21, its
"base" model]. Equal to the authors' code on random weights; never run on the real ones here: see docs/extractors.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meanaudio.evaluation.extractors.frames import at_least, equal_windows, exactly, htk_mel_filters, listen
from meanaudio.evaluation.extractors.panns import CLASSES, LABELS, read_labels
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint, need_file, read_published

FILE = "passt-s-f128-p16-s10-ap.476-swa.pt"
URL = "https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/"
SHA256 = "302903fa8c4aee817b11dc982da0b29aaf8d11a3e722420476d0a12c9db70c2c"
VERSION = "1"
SAMPLE_RATE, N_FFT, WINDOW, HOP, BANDS = 32000, 1024, 800, 320, 128
LONGEST = 10 * SAMPLE_RATE
PATCH, STRIDE = 16, 10  # mel bins and frames
GRID = (12, 99)  # patches of a 10 s clip: along frequency, along time
SHORTEST = PATCH * HOP  # samples: one patch
BATCH = 8  # windows at once


class PasstMel(nn.Module):
    """audio [B, N] at 32 kHz -> normalised log-mel power [B, 1, 128, T] after pre-emphasis; 0-15 kHz."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)
        self.register_buffer("filters", htk_mel_filters(SAMPLE_RATE, N_FFT, BANDS, 0, 15000), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        emphasised = audio[:, 1:] - 0.97 * audio[:, :-1]
        spectrum = torch.stft(emphasised, N_FFT, HOP, WINDOW, self.window, pad_mode="reflect", return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).mT @ self.filters
        return ((torch.log(power + 1e-5) + 4.5) / 5).mT[:, None]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PasstNetwork(nn.Module):
    """audio [B, N] -> (embeddings [B, D], logits [B, 527]); SHORTEST <= N <= LONGEST. Names are the published file's.

    Two extra tokens stand before the patches (DeiT's class and distillation token); the embedding is the mean of their outputs.
    """

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.mel = PasstMel()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, width, PATCH, STRIDE)})
        self.cls_token, self.dist_token = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, width))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, width, GRID[0], 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, GRID[1]))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patch_embed["proj"](self.mel(audio))
        patches = patches + self.time_new_pos_embed[..., : patches.shape[-1]] + self.freq_new_pos_embed
        tokens = torch.cat([self.cls_token, self.dist_token], 1) + self.new_pos_embed
        x = torch.cat([tokens.expand(len(audio), -1, -1), patches.flatten(2).mT], 1)
        embeddings = self.norm(self.blocks(x))[:, :2].mean(1)
        return embeddings, self.head(embeddings)


class Passt:
    """Clips at 32 kHz -> one 768-d embedding and logits of 527 classes each.

    A clip longer than 10 s is heard in windows of 10 s, the last one ending with the clip, and embeddings and logits are averaged [ours].
    """

    name = "passt"
    sample_rate = SAMPLE_RATE
    dim = 768
    multi_label = True

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        path = need_file(weights, self.name, FILE, URL)
        self.network = PasstNetwork()
        found = read_published(self.network, path, extra=["head_dist."], sha256=SHA256)  # a head that its authors train but do not ask
        self.network.eval().requires_grad_(False).to(device)
        self.classes = read_labels(path.with_name(LABELS))
        self.device = device
        self.fingerprint = fingerprint(self.name, VERSION, found)

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        windows = [equal_windows(at_least(clip, SHORTEST), LONGEST) for clip in clips]
        found = iter(listen(self.network, [row for rows in windows for row in rows], BATCH, self.device))
        features = []
        for rows in windows:
            embeddings, logits = (torch.stack(x) for x in zip(*islice(found, len(rows)), strict=True))
            features.append(ClipFeatures(embeddings.mean(0, keepdim=True), logits.mean(0)))
        return features
