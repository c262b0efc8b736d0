"""What a mel VAE's decoder leaves out, drawn as noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meanaudio.codec.mel import FLOOR

FADE = 0.5  # log10 units above the floor within which the noise fades in: silence stays silent
ROUND = 64  # frames: noise is drawn for whole multiples of it, so that a longer clip begins as a shorter one does
SEED = 0  # of the one pattern of noise: a codec is a function, nothing that a clip's seed decides


def add_texture(mel: Tensor, deviation: float) -> Tensor:
    """mel [B, M, F] (log10 magnitude, a VAE decoder's) -> the same under normal noise of that deviation, in log10 units.

    A latent stands for many mels, and a decoder that was trained by a distance gives their middle, smoother than any of them: rain, engines
    and breath lose what one knows them by. A variational decoder's output is a distribution (Kingma and Welling, arXiv 1312.6114, appendix
    C.2); this is a draw from it, all frames and bands with one deviation.

    The noise depends on a frame's and a band's number alone, so that decoding stays a function of the latents.
    """
    if deviation == 0:
        return mel
    bands, frames = mel.shape[-2:]
    whole = -(-frames // ROUND) * ROUND
    noise = torch.randn(whole, bands, generator=torch.Generator().manual_seed(SEED), device="cpu")[:frames].mT
    audible = ((mel - math.log10(FLOOR)) / FADE).clamp(0, 1)
    return mel + deviation * audible * noise.to(mel)
