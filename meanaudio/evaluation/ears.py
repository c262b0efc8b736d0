"""What a reward's judges hear with: published networks, through which gradients flow back to the mel that a codec's decoder makes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanaudio.checkpoint import load_into
from meanaudio.codec.codec import Codec
from meanaudio.codec.mel import slaney_points
from meanaudio.codec.texture import add_texture
from meanaudio.codec.vocos import Vocos
from meanaudio.config import EarsKind, MelConfig
from meanaudio.evaluation.extractors import aisfx, soundnet

# log10 mel [B, M, F] -> features over time [B, D, T], D as DIMS has it
Ears = Callable[[Tensor], Tensor]

LEAST_FRAMES = 8  # aiSFX's network halves them three times
# A mel has no phase: the power of a band is read off its neighbours' magnitudes, and the peak of the sound off its loudest frame. Both
# factors are medians over recordings of the default corpus; the first is 10^3.03 to 10^3.21 in the bands under 8 kHz.
POWER = 10**3.15
PEAK = 0.0284
LOUDEST = 2.5  # log10 magnitude of a mel, above which what a network makes is cut off
QUIETEST = 1e-4  # peak of a sound that is brought to full scale


class MelEars(nn.Module):
    """aiSFX's features over time [B, 512, T] of a log10 mel [B, M, F] of `config`.

    The largest over time of each are aiSFX's embedding, and those of a stretch what it would make of the stretch, but for the edges.

    What aiSFX would see of the sound, a mel of other bands, other frames and clips with a peak of 1, is made of the mel it already has.
    """

    bands: Tensor
    widths: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.frame_rate = config.sample_rate / config.hop_length
        points = slaney_points(config.n_mels + 2, config.f_min, config.f_max).float()
        at = _between(torch.arange(aisfx.N_FFT // 2 + 1) * (aisfx.SAMPLE_RATE / aisfx.N_FFT), points[1:-1], config.f_max)
        self.register_buffer("bands", aisfx.band_filters() @ at)  # [96, M]
        self.register_buffer("widths", (points[2:] - points[:-2])[:, None] / 2)
        self.network = aisfx.AisfxNetwork()

    def frames(self, mel: Tensor) -> Tensor:
        """[B, M, F] -> [B, T, 96], what the network sees. In float32, also under autocast."""
        with torch.autocast(mel.device.type, enabled=False):
            power = 10 ** (2 * mel.float().clamp(max=LOUDEST))
            # With its gradient: held fixed, it lets a network please the judge by a level that the next look takes away again.
            peak = PEAK**2 * (power * self.widths).sum(1).amax(1).clamp_min(1e-9)
            last = mel.shape[2] - 1
            count = 1 + int(mel.shape[2] / self.frame_rate * aisfx.SAMPLE_RATE) // aisfx.HOP
            place = (torch.arange(count, device=mel.device) * (aisfx.HOP / aisfx.SAMPLE_RATE * self.frame_rate) - 0.5).clamp(0, last)
            before = place.long().clamp(max=max(0, last - 1))
            power = torch.lerp(power[..., before], power[..., (before + 1).clamp(max=last)], place - before)
            return aisfx.compress(POWER / peak[:, None, None] * (self.bands @ power).mT)

    def forward(self, mel: Tensor) -> Tensor:
        frames = self.frames(mel)
        return self.network.features(F.pad(frames, (0, 0, 0, max(0, LEAST_FRAMES - frames.shape[1]))))[-1].mean(3).float()


def _between(frequencies: Tensor, centres: Tensor, f_max: float) -> Tensor:
    """[N, M] weights by which values at `centres` [M] are interpolated at `frequencies` [N]; the outermost go on, and end at f_max."""
    above = torch.searchsorted(centres, frequencies).clamp(1, len(centres) - 1)
    share = ((frequencies - centres[above - 1]) / (centres[above] - centres[above - 1])).clamp(0, 1)
    weights = torch.zeros(len(frequencies), len(centres))
    weights.scatter_(1, above[:, None] - 1, 1 - share[:, None])
    weights.scatter_(1, above[:, None], share[:, None])
    return weights * (frequencies <= f_max)[:, None]


class SoundEars(nn.Module):
    """SoundNet's features over time [B, 256, T] of what a codec's vocoder makes of a log10 mel [B, M, F], brought to a peak of 1.

    Without a Vocos' corrections, which take as long as all the rest.
    """

    def __init__(self, codec: Codec) -> None:
        from torchaudio.transforms import Resample  # not needed to generate, and not there on every machine

        super().__init__()
        self.vocoder, self.texture = copy.deepcopy(codec.vocoder), codec.config.texture
        if isinstance(self.vocoder, Vocos):
            self.vocoder.corrections = 0
        self.resample = Resample(codec.spec.sample_rate, soundnet.SAMPLE_RATE)
        self.network = soundnet.SoundNetNetwork()

    def forward(self, mel: Tensor) -> Tensor:
        audio = self.resample(self.vocoder(add_texture(mel.clamp(max=LOUDEST), self.texture)).float())
        return self.network(audio / audio.abs().amax(1, keepdim=True).clamp_min(QUIETEST)).float()


DIMS: dict[EarsKind, int] = {"aisfx": aisfx.DIM, "soundnet": soundnet.DIM}
assert set(DIMS) == set(get_args(EarsKind))


def make_ears(kind: EarsKind, codec: Codec, device: torch.device) -> Ears:
    """With the published weights, frozen. Raises InputError where they cannot be had."""
    ears: MelEars | SoundEars
    if kind == "aisfx":
        ears = MelEars(codec.config.mel)
        load_into(ears.network, aisfx.load_aisfx(None), "aiSFX")
    else:
        ears = SoundEars(codec)
        load_into(ears.network, soundnet.load_soundnet(None), "SoundNet")
    return ears.requires_grad_(False).eval().to(device)
