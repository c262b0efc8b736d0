"""How much each channel of the latents does to the mel."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from meanaudio.codec.codec import VAE

DIGITS = 4  # that are kept, so that threads and processors, which add up in other orders, agree on every bit


def latent_gain(vae: VAE, latents: Tensor, std: Tensor, *, probes: int = 4, seed: int = 0) -> Tensor:
    """Change of the decoded log-mel for a change of each channel by its standard deviation, as multiples of all channels' root mean square.

    latents [B, L, C] of recordings; std [C] -> [C]. The squared norm of each channel's column of the decoder's Jacobian, averaged over the
    latents and estimated with `probes` random projections of the mel (Hutchinson), in float64.
    """
    vae = deepcopy(vae).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    square = torch.zeros_like(std, dtype=torch.float64)
    for z in latents.double().split(16):
        z = z.requires_grad_()
        with torch.enable_grad():
            mel = vae.decode(z)
        for probe in range(probes):
            signs = torch.randint(0, 2, mel.shape, generator=generator).to(mel) * 2 - 1
            (gradient,) = torch.autograd.grad(mel, z, signs, retain_graph=probe + 1 < probes)
            square += gradient.square().sum((0, 1))
    gain = square.sqrt() * std
    relative = gain / gain.square().mean().sqrt()
    return torch.tensor([float(f"{value:.{DIGITS}g}") for value in relative.tolist()])
