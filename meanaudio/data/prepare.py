"""From a manifest to shards of latents and text features; by one process, or by several that share the work without talking."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from meanaudio.checkpoint import file_hash, read_json, remove_unfinished, require_space, write_json
from meanaudio.codec.codec import VAE_FILE, Codec, latents_name
from meanaudio.config import SceneConfig, TextConfig, WindowConfig
from meanaudio.data.extract import encode_audio, encode_text
from meanaudio.data.items import ClipWindows, Item, Items, Scenes, read_split
from meanaudio.data.prefetch import Prefetcher
from meanaudio.data.shards import CAPTIONS, INDEX, finish_index, shard_notes, shard_path, write_null_text, write_shard
from meanaudio.data.worker import Worker
from meanaudio.errors import InputError
from meanaudio.text import TextEncoder
from meanaudio.types import Gaussian, TextFeatures

FORMAT = 2  # of a shard; shards of another are made anew
FACTS = "facts.json"
TOKENS = 20  # of a caption, for the estimate of the space needed


@dataclass(frozen=True)
class Prepared:
    """What a call found done when it ended. left_out: id and reason of each item whose sound cannot be had, of this worker or of all."""

    folder: Path
    worker: Worker
    shards: int
    missing: int  # shards that other workers have not made yet
    items: int
    left_out: list[dict[str, str]]

    @property
    def complete(self) -> bool:
        return not self.missing

    def to_text(self) -> str:
        lines = [f"left out {entry['id']}: {entry['reason']}" for entry in self.left_out[:5]]
        if len(self.left_out) > 5:
            lines.append(f"left out {len(self.left_out) - 5} more" + (f": see {self.folder / INDEX}" if self.complete else ""))
        if self.complete:
            return "\n".join([*lines, f"{self.items} items in {self.folder}, {len(self.left_out)} left out"])
        done = f"{self.shards - self.missing} of {self.shards} shards are in {self.folder}"
        lines.append(f"worker {self.worker.number} of {self.worker.count} is done; {done}, {INDEX} follows with the last")
        return "\n".join(lines)


def prepare(
    manifest: str | Path,
    out: str | Path,
    *,
    codec: Codec,
    codec_folder: Path,
    encoder: TextEncoder | None,
    text: TextConfig,
    seconds: float,
    split: str = "train",
    windows: WindowConfig | None = None,
    scenes: int = 0,
    scene_config: SceneConfig | None = None,
    seed: int = 0,
    shard_size: int = 256,
    batch_size: int = 16,
    threads: int = 4,
    worker: Worker | None = None,
    max_left_out: float = 0.01,
    progress_bar: bool = True,
) -> Prepared:
    """Write this worker's share of the shards of `split`'s windows (or of `scenes` composed ones) into `out`.

    The worker that finds all shards complete writes index.json. A relaunch keeps every finished shard made from the same inputs and writes
    the rest: the bytes are those of an undisturbed run. Items whose sound cannot be had are left out and listed; a relaunch tries again.
    encoder: None stores no text features. threads: files read at once, while codec and encoder work on what was read before.
    max_left_out: share of all items that may be left out. Raises InputError above it, or if `out` holds shards of other inputs.
    """
    out, worker, windows = Path(out), worker or Worker(), windows or WindowConfig()
    clips, rate = read_split(manifest, split), codec.spec.sample_rate
    items: Items
    if scenes:
        items = Scenes(clips, scenes, rate, seconds, seed, scene_config or SceneConfig())
    else:
        items = ClipWindows(clips, rate, seconds, windows, threads=threads)
    latents, vae = latents_name(codec_folder), file_hash(codec_folder / VAE_FILE)
    facts = {
        "format": FORMAT,
        "seconds": seconds,
        "split": split,
        "windows": None if scenes else windows.model_dump(),
        "scenes": scenes,
        "scene_weights": _scene_facts(scene_config or SceneConfig()) if scenes else None,
        "seed": seed,
        "codec_hash": latents,
        **({} if vae == latents else {"vae_hash": vae}),  # the bytes are this file's, whatever its latents go by
        "text": None if encoder is None else text.model_dump(),
        "text_fingerprint": None if encoder is None else encoder.fingerprint,
        "clips": len(clips),
        "clips_hash": _hash([{**asdict(c), "audio": c.audio.name} for c in clips]),
        "planned": len(items),
        "shard_size": shard_size,
    }
    job = _Job(out, items, codec, encoder, {"made_by": _hash(facts), **facts}, batch_size, worker, int(max_left_out * len(items)))
    job.begin(Counter(clip.caption for clip in clips))
    job.make_shards(threads, progress_bar)
    return job.finish()


class _Job:
    """One worker's call. facts: all that the folder's bytes depend on, and their hash as made_by. limit: items that may be left out."""

    def __init__(
        self,
        out: Path,
        items: Items,
        codec: Codec,
        encoder: TextEncoder | None,
        facts: dict[str, Any],
        batch_size: int,
        worker: Worker,
        limit: int,
    ) -> None:
        self.out, self.items, self.codec, self.encoder, self.facts = out, items, codec, encoder, facts
        self.batch_size, self.worker, self.limit = batch_size, worker, limit
        self.num_latents = codec.spec.window_latents(facts["seconds"])
        self.shards = -(-len(items) // facts["shard_size"])
        self.left_out: list[dict[str, str]] = []

    def begin(self, captions: Mapping[str, int]) -> None:
        """Write facts.json and captions.json. Raises InputError if the folder was begun with other inputs."""
        path = self.out / FACTS
        if not path.exists():
            write_json(path, self.facts)
        before = read_json(path)
        if before.get("made_by") != self.facts["made_by"]:
            changed = [f"{k}: {before.get(k)!r} -> {v!r}" for k, v in self.facts.items() if k != "made_by" and before.get(k) != v]
            raise InputError(f"{self.out} holds shards made from other inputs; use a new folder. Changed: {'; '.join(changed)}")
        if not (self.out / CAPTIONS).exists():  # folders of an earlier version have none
            write_json(self.out / CAPTIONS, captions)

    def make_shards(self, threads: int, progress_bar: bool) -> None:
        """Write this worker's shards that are not there yet. Raises InputError as soon as too many items are left out."""
        mine = self.worker.share(self.shards)
        todo = [number for number in mine if not self._is_done(number)]
        chunks = [chunk for number in todo for chunk in self._chunks(number)]
        total, left = sum(len(self._numbers(number)) for number in mine), sum(map(len, chunks))
        width = 0 if self.encoder is None else TOKENS * self.encoder.sequence_dim
        require_space(self.out, 2 * left * (2 * self.num_latents * self.codec.config.vae.latent_dim + width))
        load = Prefetcher(lambda c: [self._load(i) for i in chunks[c]], ahead=threads, threads=threads, stop=len(chunks))
        loaded = map(load, range(len(chunks)))
        bar = tqdm(total=total, initial=total - left, unit="item", disable=not progress_bar, dynamic_ncols=True)
        try:
            for number in todo:
                parts = []
                for chunk in self._chunks(number):
                    parts.append(self._encode(next(loaded)))
                    bar.update(len(chunk))
                self._write(number, parts)
        finally:
            bar.close()
            load.close()

    def _numbers(self, shard: int) -> range:
        """Numbers of the items that belong to a shard."""
        size = self.facts["shard_size"]
        return range(shard * size, min(len(self.items), (shard + 1) * size))

    def _chunks(self, shard: int) -> list[range]:
        """The same in batches of the codec, which do not cross shards: then a shard does not depend on what was made before it."""
        numbers = self._numbers(shard)
        return [numbers[start : start + self.batch_size] for start in range(0, len(numbers), self.batch_size)]

    def _is_done(self, shard: int) -> bool:
        """True if the shard is there and every item it left out still cannot be had."""
        notes = shard_notes(shard_path(self.out, shard))
        if notes is None or notes["made_by"] != self.facts["made_by"]:
            return False
        there = set(notes["ids"])
        if notes["left_out"] and any(isinstance(self._load(i), Item) for i in self._numbers(shard) if self.items.id(i) not in there):
            return False
        self._leave_out(notes["left_out"])
        return True

    def _load(self, i: int) -> Item | dict[str, str]:
        """Item number i, or its id and why it cannot be had."""
        try:
            return self.items[i]
        except InputError as error:
            return {"id": self.items.id(i), "reason": str(error)}

    def _encode(self, loaded: list[Item | dict[str, str]]) -> _Part:
        items = [item for item in loaded if isinstance(item, Item)]
        left_out = [entry for entry in loaded if not isinstance(entry, Item)]
        self._leave_out(left_out)
        captions = [item.caption for item in items]
        latents = encode_audio(self.codec, items, self.num_latents) if items else None
        text = encode_text(self.encoder, captions) if items and self.encoder is not None else None
        return _Part(latents, text, [item.id for item in items], captions, left_out)

    def _leave_out(self, entries: Sequence[dict[str, str]]) -> None:
        self.left_out += entries
        if len(self.left_out) > self.limit:
            first = self.left_out[0]
            raise InputError(
                f"{len(self.left_out)} of {len(self.items)} items cannot be made, {self.limit} are allowed (max_left_out); "
                f"the first is {first['id']!r}: {first['reason']}"
            )

    def _write(self, shard: int, parts: Sequence[_Part]) -> None:
        channels = self.codec.config.vae.latent_dim
        latents = [part.latents for part in parts if part.latents is not None]
        nothing = torch.zeros(0, self.num_latents, channels)
        text = [part.text for part in parts if part.text is not None]
        if self.encoder is not None and not text:
            text = [encode_text(self.encoder, [""])[:0]]
        write_shard(
            shard_path(self.out, shard),
            Gaussian(torch.cat([nothing, *(x.mean for x in latents)]), torch.cat([nothing, *(x.std for x in latents)])),
            TextFeatures.cat(text) if text else None,
            [name for part in parts for name in part.ids],
            [caption for part in parts for caption in part.captions],
            self.facts["made_by"],
            [entry for part in parts for entry in part.left_out],
        )

    def finish(self) -> Prepared:
        """Write null text and index if all workers' shards are there. Two workers may both find so: they write the same."""
        there = [shard_notes(shard_path(self.out, number)) for number in range(self.shards)]
        missing = sum(notes is None or notes["made_by"] != self.facts["made_by"] for notes in there)
        if missing:
            return Prepared(self.out, self.worker, self.shards, missing, 0, self.left_out)
        self.left_out = []
        self._leave_out([entry for notes in there if notes is not None for entry in notes["left_out"]])
        try:
            if self.encoder is not None:
                write_null_text(self.out, encode_text(self.encoder, [""]))
            finish_index(self.out, self.shards, len(self.items), self.facts)
        except FileNotFoundError:  # another worker, with the index written, has tidied up
            if not (self.out / INDEX).exists():
                raise
        remove_unfinished(self.out)
        return Prepared(self.out, self.worker, self.shards, 0, len(self.items) - len(self.left_out), self.left_out)


@dataclass(frozen=True)
class _Part:
    """What became of one batch of items."""

    latents: Gaussian | None
    text: TextFeatures | None
    ids: list[str]
    captions: list[str]
    left_out: list[dict[str, str]]


def _scene_facts(config: SceneConfig) -> dict[str, float]:
    """The config's values. Versions that are off are left out: scenes made before there were any are the same ones."""
    return {key: value for key, value in config.model_dump().items() if value or key not in ("speed", "tone", "room")}


def _hash(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
