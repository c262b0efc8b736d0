"""From a manifest to shards of latents and text features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from meanaudio.audio import fit, load_audio
from meanaudio.checkpoint import file_hash, read_json, require_space, write_json
from meanaudio.codec.codec import VAE_FILE, Codec
from meanaudio.config import SceneConfig, TextConfig
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.scenes import SceneComposer
from meanaudio.data.shards import finish_index, shard_notes, shard_path, write_null_text, write_shard
from meanaudio.errors import InputError
from meanaudio.text import TextEncoder
from meanaudio.types import Gaussian


@dataclass(frozen=True)
class Item:
    """One training window: audio [N], its caption and a unique id."""

    id: str
    caption: str
    audio: Tensor


def window_items(clips: list[Clip], sample_rate: int, seconds: float) -> tuple[int, Callable[[int], Item]]:
    """Each clip's first `seconds`, zero-padded: (count, item number -> Item)."""

    def item(i: int) -> Item:
        clip = clips[i]
        length = seconds if clip.duration is None else min(seconds, clip.duration)
        audio = load_audio(clip.audio, sample_rate, clip.start, length)
        return Item(clip.id, clip.caption, fit(audio, round(seconds * sample_rate)))

    return len(clips), item


def scene_items(clips: list[Clip], count: int, sample_rate: int, seconds: float, seed: int, config: SceneConfig):
    """`count` scenes composed of short clips: (count, item number -> Item)."""
    composer = SceneComposer(clips, sample_rate, seconds, seed, config.model_dump(exclude={"max_lead"}), max_lead=config.max_lead)

    def item(i: int) -> Item:
        scene = composer(i)
        return Item(scene.id, scene.caption, scene.audio)

    return count, item


def prepare(
    manifest: str | Path,
    out: str | Path,
    *,
    codec: Codec,
    codec_folder: Path,
    encoder: TextEncoder,
    text: TextConfig,
    seconds: float,
    split: str = "train",
    scenes: int = 0,
    scene_config: SceneConfig | None = None,
    seed: int = 0,
    shard_size: int = 256,
    batch_size: int = 16,
    progress_bar: bool = True,
) -> int:
    """Write shards of `split`'s clips (or of `scenes` composed windows) into `out`; returns the number of items.

    A relaunch keeps every finished shard made from the same inputs and writes the rest: the bytes are the same as without the break.
    Raises InputError if `out` holds shards of other inputs, naming what differs.
    """
    out, scene_config = Path(out), scene_config or SceneConfig()
    clips = [clip for clip in read_manifest(manifest) if clip.split == split]
    if not clips:
        raise InputError(f"{manifest}: no clips of split {split!r}")
    rate = codec.spec.sample_rate
    count, make = scene_items(clips, scenes, rate, seconds, seed, scene_config) if scenes else window_items(clips, rate, seconds)
    facts = {
        "seconds": seconds,
        "split": split,
        "scenes": scenes,
        "scene_weights": scene_config.model_dump() if scenes else None,
        "seed": seed,
        "codec_hash": file_hash(codec_folder / VAE_FILE),
        "text": text.model_dump(),
        "text_fingerprint": encoder.fingerprint,
        "clips_hash": _hash([{**asdict(c), "audio": c.audio.name} for c in clips]),
        "shard_size": shard_size,
    }
    made_by = _hash(facts)
    _refuse_foreign(out, made_by, facts)
    num_latents = codec.spec.window_latents(seconds)
    require_space(out, count * (4 * num_latents * codec.config.vae.latent_dim + 20 * 2 * encoder.sequence_dim))
    shards = -(-count // shard_size)
    device = next(codec.parameters()).device
    write_json(out / "facts.json", {"made_by": made_by, **facts})
    for number in tqdm(range(shards), unit="shard", disable=not progress_bar, dynamic_ncols=True):
        path = shard_path(out, number)
        notes = shard_notes(path)
        if notes is not None and notes["made_by"] == made_by:
            continue
        items = [make(i) for i in range(number * shard_size, min(count, (number + 1) * shard_size))]
        latents = _encode(codec, items, num_latents, batch_size, device)
        captions = [item.caption for item in items]
        write_shard(path, latents, encoder(captions).to("cpu"), [item.id for item in items], captions, made_by)
    write_null_text(out, encoder([""]).to("cpu"))
    finish_index(out, shards, count, {"made_by": made_by, **facts})
    return count


@torch.inference_mode()
def _encode(codec: Codec, items: list[Item], num_latents: int, batch_size: int, device: torch.device) -> Gaussian:
    parts = []
    for start in range(0, len(items), batch_size):
        audio = torch.stack([item.audio for item in items[start : start + batch_size]])
        posterior = codec.encode(audio[:, : num_latents * codec.spec.samples_per_latent].to(device))
        parts.append((posterior.mean.cpu(), posterior.std.cpu()))
    return Gaussian(*(torch.cat(side) for side in zip(*parts, strict=True)))


def _hash(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _refuse_foreign(out: Path, made_by: str, facts: dict) -> None:
    """Raise InputError if `out` was begun with other inputs."""
    path = out / "facts.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        return
    before = read_json(path)
    if before.get("made_by") != made_by:
        changed = [f"{k}: {before.get(k)!r} -> {v!r}" for k, v in facts.items() if before.get(k) != v]
        raise InputError(f"{out} holds shards made from other inputs; use a new folder. Changed: {'; '.join(changed)}")
