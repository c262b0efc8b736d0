"""The scale on which networks see each channel of the latents."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from meanaudio.checkpoint import file_hash
from meanaudio.codec.codec import VAE_FILE, load_vae
from meanaudio.codec.gain import latent_gain
from meanaudio.config import TrainConfig
from meanaudio.data.dataset import Dataset
from meanaudio.errors import InputError

ITEMS = 64  # that the channels' effects are measured on


def latent_scale(config: TrainConfig, data: Dataset) -> Tensor:
    """What latents are divided by, [C]: their standard deviation, over the one that `config.latent_gain` wants them to have.

    Raises InputError if that needs the VAE of `config.codec_from` and there is none, or one of other latents than the data's.
    """
    std = data.statistics.std
    if not config.latent_gain:
        return std
    folder = Path(config.codec_from or "")
    vae, _ = load_vae(folder)
    if (found := file_hash(folder / VAE_FILE)) != data.index["codec_hash"]:
        raise InputError(f"{data.name}: made with VAE {data.index['codec_hash'][:12]}, codec_from {folder} has {found[:12]}")
    items = data.batch(range(min(len(data), ITEMS)))
    return std / latent_gain(vae, items.mean, std) ** config.latent_gain
