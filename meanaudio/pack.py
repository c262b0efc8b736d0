"""From a training run to a checkpoint for others."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from meanaudio.checkpoint import load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE, with_vocoder
from meanaudio.config import CheckpointConfig, parse
from meanaudio.data.shards import NULL_TEXT_FILE
from meanaudio.models.transformer import NETWORK_FILE
from meanaudio.pipeline import MeanAudio
from meanaudio.text import clap, flan_t5

# What else a checkpoint may hold: the features of "" and, of a converted release, its text encoders. Copied as they are.
BESIDE_THE_NETWORK = (NULL_TEXT_FILE, clap.FOLDER, flan_t5.FOLDER)


def pack(network: Path, out: Path, *, codec: Path | None = None, half: bool = True) -> None:
    """Join a generator's export with a vocoder (its own, or that of the folder `codec`) into one checkpoint folder.

    half: weights are stored as float16, computed with in float32. The VAE must be the one the network was trained with, so it is
    always the generator's own. Raises InputError if the vocoder was made for other mels, or if the result does not load; `out` is then
    left alone.
    """
    config = parse(CheckpointConfig, read_json(network / "config.json"), str(network / "config.json"))
    source = codec or network
    if codec is not None:
        config = config.model_copy(update={"codec": with_vocoder(config.codec, codec)})
    weights = {name: load_weights(folder / name) for folder, name in ((network, NETWORK_FILE), (network, VAE_FILE), (source, VOCODER_FILE))}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        beside = Path(name)
        for file, state in weights.items():
            save_weights(beside / file, state, torch.float16 if half else None)
        write_json(beside / "config.json", config.model_dump(mode="json"))
        for part in BESIDE_THE_NETWORK:
            if (network / part).is_dir():
                shutil.copytree(network / part, beside / part)
            elif (network / part).is_file():
                shutil.copyfile(network / part, beside / part)
        MeanAudio.from_pretrained(beside, device="cpu")
        out.mkdir(exist_ok=True)
        for path in beside.iterdir():
            if (out / path.name).is_dir():
                shutil.rmtree(out / path.name)
            path.replace(out / path.name)
