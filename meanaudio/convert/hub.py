"""A checkpoint by name: a local folder, an earlier conversion, or a published model that is fetched and converted once."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

from meanaudio.checkpoint import find_local, local_names
from meanaudio.convert.release import CLAP_SOURCE, RELEASES, VAE_SOURCE, VOCODER_SOURCE, convert_release
from meanaudio.errors import InputError
from meanaudio.models.scorer import KNOWN_FILE
from meanaudio.text import clap, flan_t5

HUB_REPO = "AndreasXi/MeanAudio"  # holds every file of RELEASES, the VAE, the vocoder and the CLAP file
# Digests of the files that all releases share, as their first publishers state them: they were published before the releases.
DIGESTS = {
    VAE_SOURCE: ("md5", "69f56803f59a549a1a507c93859fd4d7"),
    VOCODER_SOURCE: ("md5", "eeaf372a38a9c31c362120aba2dde292"),
    CLAP_SOURCE: ("sha256", "51c68f12f9d7ea25fdaaccf741ec7f81e93ee594455410f3bca4f47f88d8e006"),
}
OWN_FILES = ("config.json", "*.safetensors", "*/config.json", "*/*.safetensors", "*/tokenizer.json", KNOWN_FILE, "hashes.json", "README.md")


def cache_folder() -> Path:
    """Where fetched models are converted to: $MEANAUDIO_CACHE, or ~/.cache/meanaudio."""
    return Path(os.environ.get("MEANAUDIO_CACHE", "~/.cache/meanaudio")).expanduser()


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: `find_local`'s, a published model's (fetched and converted into the cache once), or a hub id's.

    $HF_HUB_OFFLINE is respected. Raises InputError that lists what is known, or says which files to put where.
    """
    if (found := find_local(name_or_path)) is not None:
        return found
    name = str(name_or_path)
    if name in RELEASES:
        kept = cache_folder() / "checkpoints" / name
        return kept if (kept / "config.json").is_file() else _fetch_release(name, kept)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not Path(name).parent.exists():
        return _fetch_folder(name)
    known = ", ".join(local_names()) or "(none)"
    raise InputError(
        f"unknown model {name!r}: no checkpoint folder; here are {known}; published and fetched when asked for: {', '.join(RELEASES)}"
    )


def _fetch_release(name: str, out: Path) -> Path:
    """Download the files of a published model into the Hugging Face cache, check them, convert them to `out`."""
    names = [RELEASES[name], VAE_SOURCE, VOCODER_SOURCE, CLAP_SOURCE]
    print(f"{name}: fetching {len(names)} files from {HUB_REPO} and its text encoders, once", file=sys.stderr)
    try:
        files = {file: _download(HUB_REPO, file) for file in names}
        for file in flan_t5.FILES:
            _download(flan_t5.REPOS[0], file)
        _download(clap.TOKENIZER_REPOS[0], "tokenizer.json")
    except ConnectionError as error:
        by_hand = (
            f"put {', '.join(names)} (https://huggingface.co/{HUB_REPO}), a folder flan-t5-large with {', '.join(flan_t5.FILES)} "
            f"(https://huggingface.co/{flan_t5.REPOS[0]}) and a folder roberta-base with tokenizer.json "
            f"(https://huggingface.co/{clap.TOKENIZER_REPOS[0]}) into one folder DIR, then: "
            f"meanaudio convert --release DIR -o checkpoints/{name}"
        )
        raise InputError(f"{name} cannot be fetched: {error}. Without a network: {by_hand}") from None
    for file, path in files.items():
        check_digest(file, path)
    print(f"{name}: converting to {out}", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as together:
        for file, path in files.items():
            (Path(together) / file).symlink_to(path.resolve())
        convert_release(Path(together), out, name)
    return out


def _fetch_folder(repo: str) -> Path:
    """One of our own checkpoint folders from the hub."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=list(OWN_FILES)))
    except Exception as error:  # the client raises many types for missing, gated, offline and broken
        raise InputError(f"{repo} cannot be fetched from the hub: {_first_line(error)}") from None
    if not (folder / "config.json").is_file():
        raise InputError(f"{repo} on the hub is no checkpoint of this package: no config.json; published models are {', '.join(RELEASES)}")
    return folder


def _download(repo: str, file: str) -> Path:
    """A file of the hub, from the cache or with a progress bar. Raises ConnectionError if it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # the client raises many types for missing, gated, offline and broken
        raise ConnectionError(f"{file} of {repo}: {_first_line(error)}") from None


def check_digest(name: str, path: Path) -> None:
    """Raise InputError if a fetched file is not the published one: by DIGESTS, and by the sha256 that the hub's cache names it after."""
    wanted = [DIGESTS[name]] if name in DIGESTS else []
    stored = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", stored):
        wanted.append(("sha256", stored))
    for kind, digest in wanted:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != digest:
            raise InputError(
                f"{path}: {kind} {found[:12]} instead of {digest[:12]}: half-downloaded or another file; delete it and try again"
            )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
