"""Features of sound files, kept by the content of the file and the extractor's fingerprint, so that they are never silently stale.

An entry is CACHE/NAME-FINGERPRINT/CONTENT.safetensors. It states in full what it was made from, and a hash of its own values; one that does
not match, or cannot be read, is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from meanaudio.audio import load_audio
from meanaudio.checkpoint import file_hash, write_beside
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.protocol import ClipFeatures, Extractor
from meanaudio.evaluation.extractors.weights import state_hash

LOADING = "mean of channels, soxr VHQ"  # how a file becomes samples: a change here makes every entry stale
BATCH = 16  # files that go to the extractor in one call


def extract(
    extractor: Extractor,
    paths: Sequence[Path],
    *,
    cache: Path | None,
    progress_bar: bool = False,
    on_error: Callable[[Path, str], None] | None = None,
) -> Iterator[tuple[Path, ClipFeatures]]:
    """(path, features) of each sound file, in order; files are read one after the other, and a few clips are in memory at a time.

    Channels are averaged and the rate is changed to the extractor's. A file that cannot be read as audio yields nothing: on_error(path,
    message) is called, or, without it, InputError is raised. cache: a folder of entries that is read and filled; None keeps nothing.
    """
    with tqdm(total=len(paths), desc=extractor.name, unit="clip", disable=not progress_bar) as bar:
        for first in range(0, len(paths), BATCH):
            group = paths[first : first + BATCH]
            found: dict[Path, ClipFeatures] = {}
            wanted: dict[Path, tuple[Tensor, Path | None, dict[str, str]]] = {}
            for path in dict.fromkeys(group):
                try:
                    facts = _facts(extractor, path)
                    entry = None if cache is None else _entry(cache, extractor, facts)
                    kept = None if entry is None else _read(entry, facts)
                    if kept is not None:
                        found[path] = kept
                    else:
                        wanted[path] = load_audio(path, extractor.sample_rate), entry, facts
                except InputError as error:
                    if on_error is None:
                        raise
                    on_error(path, str(error))
            fresh = extractor([audio for audio, _, _ in wanted.values()]) if wanted else []
            for (path, (_, entry, facts)), features in zip(wanted.items(), fresh, strict=True):
                found[path] = features
                if entry is not None:
                    _write(entry, features, facts)
            for path in group:
                bar.update()
                if path in found:
                    yield path, found[path]


def _facts(extractor: Extractor, path: Path) -> dict[str, str]:
    """What an entry is made from."""
    return {"audio": file_hash(path), "fingerprint": extractor.fingerprint, "rate": str(extractor.sample_rate), "loading": LOADING}


def _entry(cache: Path, extractor: Extractor, facts: dict[str, str]) -> Path:
    return cache / f"{extractor.name}-{extractor.fingerprint[:16]}" / f"{facts['audio']}.safetensors"


def _read(entry: Path, facts: dict[str, str]) -> ClipFeatures | None:
    """The features kept in `entry`, or None if there are none, they were made from something else, or are damaged."""
    if not entry.is_file():
        return None
    try:
        with safe_open(entry, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file is no dict
    except (SafetensorError, OSError):
        return None
    stated = {name: metadata.get(name) for name in facts}
    if stated != facts or metadata.get("values") != state_hash(tensors) or "embeddings" not in tensors:
        return None
    return ClipFeatures(tensors["embeddings"], tensors.get("logits"))


def _write(entry: Path, features: ClipFeatures, facts: dict[str, str]) -> None:
    tensors = {"embeddings": features.embeddings} | ({} if features.logits is None else {"logits": features.logits})
    tensors = {name: values.clone(memory_format=torch.contiguous_format) for name, values in tensors.items()}
    metadata = facts | {"values": state_hash(tensors)}
    write_beside(entry, lambda p: save_file(tensors, p, metadata=metadata))
