"""What extractors' weights files have in common: how they are read, compared with what is wanted, and named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from meanaudio.checkpoint import file_hash
from meanaudio.convert.foreign import check_names, read_foreign
from meanaudio.errors import InputError

COUNTER = "num_batches_tracked"  # of batch normalisation: no weight, and not in every file


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values, whatever file they lay in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def fingerprint(*parts: str) -> str:
    """sha256 over hashes of weights and the version of what we do around them."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_published(module: nn.Module, path: Path, *, wrappers: Iterable[str] = (), extra: Iterable[str] = (), sha256: str | None) -> str:
    """Fill `module` from a published file, strictly, and give the file's sha256.

    wrappers: see `read_foreign`. extra: beginnings of names in the file that are no weights of ours, such as a spectrogram's tables.
    sha256: what the file must have; None where no trustworthy one is known. Raises InputError.
    """
    found = file_hash(path)
    if sha256 is not None and found != sha256:
        raise InputError(f"{path}: sha256 {found}, the published file's is {sha256}: another file, or a damaged one")
    own = {k: v for k, v in module.state_dict().items() if not k.endswith(COUNTER)}
    state = {k: v for k, v in read_foreign(path, wrappers).items() if not k.startswith(tuple(extra)) and not k.endswith(COUNTER)}
    check_names(state, {k: v.shape for k, v in own.items()}, path)
    module.load_state_dict(state, strict=False)
    return found


def need_file(path: Path | None, name: str, file: str, url: str) -> Path:
    """The weights file that the user named. Raises InputError that says what to download from where."""
    if path is None:
        raise InputError(f"extractor {name!r} needs its weights: download {file} from {url} and give the file, {name}=FILE")
    if not path.is_file():
        raise InputError(f"no such weights file: {path} (extractor {name!r} wants {file} from {url})")
    return path
