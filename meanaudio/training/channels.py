"""The scale on which networks see each channel of the latents."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from meanaudio.codec.codec import load_vae
from meanaudio.codec.gain import latent_gain
from meanaudio.config import TrainConfig
from meanaudio.data.dataset import Dataset

ITEMS = 64  # that the channels' effects are measured on


def latent_scale(config: TrainConfig, data: Dataset) -> Tensor:
    """What latents are divided by, [C]: their standard deviation, over the one that `config.latent_gain` wants them to have.

    data: of the VAE in `config.codec_from`, which whoever opened it has checked. Raises InputError if there is no VAE and one is needed.
    """
    std = data.statistics.std
    if not config.latent_gain:
        return std
    vae, _ = load_vae(Path(config.codec_from or ""))
    items = data.batch(range(min(len(data), ITEMS)))
    return std / latent_gain(vae, items.mean.cpu(), std) ** config.latent_gain
