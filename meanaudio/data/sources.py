"""From a training config to its data sets: shards, raw sound, or a mixture of both."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from meanaudio.checkpoint import file_hash
from meanaudio.codec.codec import VAE_FILE, Codec, latents_name, load_vae
from meanaudio.config import TrainConfig
from meanaudio.data.dataset import Dataset
from meanaudio.data.manifest import MANIFEST_SUFFIXES
from meanaudio.data.mixture import Mixture
from meanaudio.data.raw import RawDataset
from meanaudio.data.resident import Resident
from meanaudio.data.shards import ShardDataset
from meanaudio.errors import InputError
from meanaudio.text import IN_CHECKPOINT, TextEncoder, make_encoder


class Encoders:
    """The codec and the text encoder that a config names, read when they are first needed."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        if config.codec_from is None:
            raise InputError("codec_from must name the folder of the codec, with its trained VAE")
        self.config, self.device, self.folder = config, device, Path(config.codec_from)

    @cached_property
    def codec_hash(self) -> str:
        return latents_name(self.folder)

    @cached_property
    def codec(self) -> Codec:
        """Good for encoding; its vocoder, which may not be trained yet, is a blank one."""
        vae, config = load_vae(self.folder)
        return Codec(config, vae).to(self.device).eval().requires_grad_(False)

    @cached_property
    def text(self) -> TextEncoder:
        config = self.config.text
        return make_encoder(
            config.encoder, max_tokens=config.max_tokens, device=str(self.device), folder=Path(self.config.text_from or self.folder)
        )

    @cached_property
    def text_fingerprint(self) -> str | None:
        """Names the text encoder's weights; None where its files are not at hand, which training on stored features does not need."""
        try:
            return self.text.fingerprint
        except InputError:
            return None


def open_datasets(config: TrainConfig, device: torch.device) -> tuple[Dataset, Dataset]:
    """What the generator is trained on, `data` and `mixture` together, and what it is held against: the val split of `data`.

    Raises InputError where a set was not made for this config, saying what differs.
    """
    encoders = Encoders(config, device)
    held_out = _open(config.data, "val", config, encoders)
    sets = [_open(where, "train", config, encoders) for where in (config.data, *(other.data for other in config.mixture))]
    if (found := held_out.index.get("text_fingerprint")) != (wanted := sets[0].index.get("text_fingerprint")):
        raise InputError(f"{held_out.name}: made with text encoder {found}, {sets[0].name} with {wanted}")
    train = sets[0]
    if len(sets) > 1:
        given = [other.share for other in config.mixture if other.share is not None]
        counts = list(map(len, sets))
        train = Mixture(sets, [1 - sum(given), *given] if given else [count / sum(counts) for count in counts])
    if not config.loading.resident:
        return train, held_out
    if config.encode_text:
        raise InputError("loading.resident keeps what shards store; with encode_text captions are encoded anew for every batch")
    if sound := [data.name for data in sets if not isinstance(data, ShardDataset)]:
        raise InputError(f"loading.resident: {', '.join(sound)} is read as sound, other windows each time; prepare shards of it")
    return Resident(train, device), held_out


def _open(where: str, split: str, config: TrainConfig, encoders: Encoders) -> Dataset:
    """A manifest is read as sound, anything else holds shards in train/ and val/."""
    data: Dataset
    if where.lower().endswith(MANIFEST_SUFFIXES):
        data = RawDataset(
            where,
            split,
            codec=encoders.codec,
            codec_hash=encoders.codec_hash,
            encoder=encoders.text,
            text=config.text,
            seconds=config.seconds,
            windows=config.windows,
            threads=config.loading.threads,
        )
    else:
        encoder = encoders.text if config.encode_text else None
        data = ShardDataset(f"{where.rstrip('/')}/{split}", encoder=encoder, text=config.text, cache=config.loading.cache)
    _check(data, config, encoders)
    return data


def check_codec(data: Dataset, folder: Path) -> None:
    """Raises InputError unless `data` holds latents of the VAE in `folder`, which is codec_from."""
    name = latents_name(folder)
    if (found := data.index["codec_hash"]) != name and found != file_hash(folder / VAE_FILE):
        raise InputError(f"{data.name}: made with codec {found[:12]}, codec_from holds {name[:12]}")


def _check(data: Dataset, config: TrainConfig, encoders: Encoders) -> None:
    try:
        _, text, seconds = (data.index[key] for key in ("codec_hash", "text", "seconds"))
    except KeyError as error:
        raise InputError(f"{data.name}: its index does not say {error}; run meanaudio prepare again") from None
    check_codec(data, encoders.folder)
    if text != config.text.model_dump():
        raise InputError(f"{data.name}: made with text {text}, the config says {config.text.model_dump()}")
    if seconds != config.seconds:
        raise InputError(f"{data.name}: windows of {seconds} s, the config says seconds = {config.seconds}")
    found = data.index.get("text_fingerprint")
    if found is not None and (wanted := encoders.text_fingerprint) not in (None, found):  # gigabytes may be read for it
        raise InputError(f"{data.name}: made with text encoder {found}; text_from, or codec_from, holds {wanted}")
    if isinstance(data, ShardDataset) and data.encoder is None and not config.network.mask_text and config.text.encoder in IN_CHECKPOINT:
        raise InputError(
            f"{data.name}: stores no padding, to which a network with mask_text false attends: set encode_text: true, or mask_text: true"
        )
