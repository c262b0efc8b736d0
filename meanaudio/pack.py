"""From a training run to a checkpoint for others."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from meanaudio.checkpoint import WORDS_FILE, link_others, load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, VOCODER_FILE, with_vocoder
from meanaudio.config import CheckpointConfig, parse
from meanaudio.convert.hub import find_checkpoint
from meanaudio.data.shards import NULL_TEXT_FILE
from meanaudio.errors import InputError
from meanaudio.models.lora import load_with_adapters
from meanaudio.models.scorer import KNOWN_FILE, SCORER_FILE
from meanaudio.models.transformer import NETWORK_FILE, load_network
from meanaudio.pipeline import MeanAudio, read_checkpoint_config
from meanaudio.steering import check_same_latents, codec_names, fitting_scorer
from meanaudio.text import clap, flan_t5

# What else a checkpoint may hold: the features of "" and, of a converted release, its text encoders. Copied as they are.
BESIDE_THE_NETWORK = (NULL_TEXT_FILE, clap.FOLDER, flan_t5.FOLDER)

Weights = Literal["float32", "float16", "int8"]
EIGHT_BITS = (NETWORK_FILE, VOCODER_FILE)  # the parts that "int8" is for


def pack(
    network: Path,
    out: Path,
    *,
    codec: Path | None = None,
    scorer: Path | None = None,
    weights: Weights = "float16",
    by_event: bool | None = None,
    known_captions: int | None = None,
) -> None:
    """Join a generator's export with a vocoder (its own, or that of the folder `codec`) into one checkpoint folder.

    scorer: folder of the scorer to add, or of a checkpoint that has one; the network's own, if it has one, where left out.
    by_event, known_captions: the checkpoint's way with prompts (MeanAudio.generate); the network's own if None.
    weights: how they are stored; they are computed with in float32. "int8" is for the network and the vocoder: an encoder in eight
    bits would move the latents, and the scorer is small, so VAE and scorer are float16 then. The VAE must be the one the network was
    trained with, so it is always the generator's own. Raises InputError if the vocoder was made for other mels, if the scorer listens to
    other latents or reads another text encoder, if `out` is one of the folders read, or if the result does not load; `out` is then left
    alone.
    """
    config = parse(CheckpointConfig, read_json(network / "config.json"), str(network / "config.json"))
    source = codec or network
    ways = {"by_event": by_event, "known_captions": known_captions}
    config = config.model_copy(update={name: way for name, way in ways.items() if way is not None})
    if codec is not None:
        config = config.model_copy(update={"codec": with_vocoder(config.codec, codec)})
    if scorer is not None:
        config = config.model_copy(update={"scorer": fitting_scorer(scorer, config, codec_names(network, config))})
    listener = [] if config.scorer is None else [(scorer or network, SCORER_FILE)]
    parts = [(network, NETWORK_FILE), (network, VAE_FILE), (source, VOCODER_FILE), *listener]
    if out.exists() and any(out.samefile(folder) for folder, _ in parts):
        raise InputError(f"{out}: is packed from, and its weights would be lost; give another folder")
    states = {name: load_weights(folder / name) for folder, name in parts}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        beside = Path(name)
        for file, state in states.items():
            small = torch.int8 if weights == "int8" and file in EIGHT_BITS else torch.float16
            save_weights(beside / file, state, None if weights == "float32" else small)
        write_json(beside / "config.json", config.model_dump(mode="json"))
        for folder, _ in listener:
            shutil.copyfile(folder / KNOWN_FILE, beside / KNOWN_FILE)
        for part in BESIDE_THE_NETWORK:
            if (network / part).is_dir():
                shutil.copytree(network / part, beside / part)
            elif (network / part).is_file():
                shutil.copyfile(network / part, beside / part)
        MeanAudio.from_pretrained(beside, device="cpu")
        out.mkdir(exist_ok=True)
        (out / WORDS_FILE).unlink(missing_ok=True)  # what was learned of the weights that were there
        for path in beside.iterdir():
            if (out / path.name).is_dir():
                shutil.rmtree(out / path.name)
            path.replace(out / path.name)


def merge_lora(base: str | Path, lora: str | Path, out: Path) -> None:
    """Write the checkpoint `out`: `base` with adapters added to its network's weights; all other files are `base`'s.

    lora: as MeanAudio.from_pretrained's. The folder is made beside its place and renamed. Raises InputError if the adapters are another
    checkpoint's, or if `out` already holds something.
    """
    _require_free(out)
    folder = find_checkpoint(base)
    network = load_with_adapters(folder, read_checkpoint_config(folder).network, lora)
    _write_with(folder, network.state_dict(), out)


def blend(checkpoints: Sequence[str | Path], out: Path, *, share: float | None = None) -> None:
    """Write the checkpoint `out`: the first of `checkpoints` with a mean of all their networks' weights; all other files are the first's.

    share: how much of the last there is, the others sharing the rest evenly; as much as of each other if None. Networks that came from
    one and went different ways can be better between than at any end (Wortsman et al., arXiv 2203.05482). Raises InputError for fewer
    than two, unless 0 < share < 1, if the networks differ in more than their weights, or if `out` already holds something.
    """
    _require_free(out)
    if len(checkpoints) < 2:
        raise InputError(f"{len(checkpoints)} checkpoint(s): two or more are blended")
    rest = len(checkpoints) - 1
    last = 1 / len(checkpoints) if share is None else share
    if not 0 < last < 1:
        raise InputError(f"share = {share}: how much of {checkpoints[-1]} there is, between 0 and 1")
    folders = [find_checkpoint(checkpoint) for checkpoint in checkpoints]
    ours, *others = map(read_checkpoint_config, folders)
    codecs, mean, std = codec_names(folders[0], ours), ours.latent_mean, ours.latent_std
    for folder, theirs in zip(folders[1:], others, strict=True):
        check_same_latents(folder, theirs, codecs=codecs, text=ours.text, mean=mean, std=std)
        if ours.network != theirs.network or ours.guidance_range != theirs.guidance_range:
            raise InputError(
                f"{folder}: its network is another than that of {folders[0]}; weights of one kind of network alone can be blended"
            )
    blended = dict[str, Tensor]()
    for folder, weight in zip(folders, [(1 - last) / rest] * rest + [last], strict=True):
        for name, value in load_network(folder, ours.network).state_dict().items():
            blended[name] = blended.get(name, 0) + weight * value
    _write_with(folders[0], blended, out)


def _require_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists; remove it first, or choose another name")


def _write_with(folder: Path, network: Mapping[str, Tensor], out: Path) -> None:
    """The checkpoint in `folder` with other weights, written beside `out` and renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        made = Path(beside) / out.name
        save_weights(made / NETWORK_FILE, network)
        link_others(folder, made, (NETWORK_FILE,))
        made.replace(out)
