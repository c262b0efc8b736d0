"""Weights and configs on disk. Nothing here is pickled by us or unpickled as code.

A checkpoint folder holds config.json and one safetensors file a part; it describes itself, so reading it takes no flags.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from meanaudio.eight_bits import from_eight_bits, to_eight_bits
from meanaudio.errors import InputError
from meanaudio.precision import hold_in_bfloat16

HASHES_FILE = "hashes.json"
WORDS_FILE = "words.safetensors"  # reading.py: of the very network
ABOUT_WEIGHTS = (HASHES_FILE, WORDS_FILE, "README.md", "best.json")


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `path`, then rename it: readers see the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # not the process id: other machines may write here too
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove files that killed processes had begun beside their place, in `folder` and below. Nobody may be writing there."""
    for part in folder.rglob(".*.part*"):
        if not part.is_dir():
            part.unlink(missing_ok=True)


def link_file(source: Path, target: Path) -> None:
    """`target` becomes another name of the file `source`, or, where the disk has no such thing, a copy of it."""

    def write(path: Path) -> None:
        try:
            os.link(source.resolve(), path)
        except OSError:
            shutil.copyfile(source, path)

    write_beside(target, write)


def link_others(folder: Path, out: Path, own: Collection[str]) -> None:
    """Put all files of the checkpoint `folder` into `out`, but those in `own` and those that speak of `folder`'s weights alone."""
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = file.relative_to(folder)
        if name.as_posix() not in (*own, *ABOUT_WEIGHTS):
            link_file(file, out / name)


def write_text(path: Path, text: str) -> None:
    write_beside(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError if the file is missing or holds no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object")
    return values


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """safetensors' `save_file`, which makes files that nobody but their owner can read, with the rights that other new files have."""
    path.touch()
    rights = path.stat().st_mode
    save_file(dict(tensors), path, metadata)
    path.chmod(rights)


def save_weights(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a state dict as safetensors; floating tensors are stored as `dtype` if given. Raises OSError if the disk takes no more.

    int8: as `to_eight_bits` says.
    """
    if dtype == torch.int8:
        state, dtype = to_eight_bits(state), None

    def ready(x: Tensor) -> Tensor:
        x = x.detach().cpu()
        return (x.to(dtype) if dtype is not None and x.is_floating_point() else x).contiguous()

    tensors = {k: ready(v) for k, v in state.items()}
    try:
        write_beside(path, partial(save_tensors, tensors))
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written; what was there before is untouched ({error})") from None


def load_weights(path: Path, *, finite: bool = True) -> dict[str, Tensor]:
    """Read a safetensors file; weights stored in eight bits become float32.

    Raises InputError if missing, truncated, or (with `finite`) if a weight is NaN or infinite.
    """
    if not path.is_file():
        raise InputError(f"no such weights file: {path}")
    try:
        state = from_eight_bits(load_file(path), str(path))
    except (SafetensorError, OSError, struct.error) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    if finite:
        bad = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
        if bad:
            raise InputError(f"{path}: NaN or infinite weights in {some(bad)}")
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Strict load, cast to the module's own types. Raises InputError that lists missing, extra and misshaped keys.

    A module on the meta device takes the tensors themselves, without a copy.
    """
    own = module.state_dict()
    faults = []
    if missing := [k for k in own if k not in state]:
        faults.append(f"missing {some(missing)}")
    if extra := [k for k in state if k not in own]:
        faults.append(f"not expected {some(extra)}")
    shapes = [f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}" for k, v in state.items() if k in own and v.shape != own[k].shape]
    if shapes:
        faults.append(f"misshaped {some(shapes)}")
    if faults:
        raise InputError(f"{source}: weights of another network: {'; '.join(faults)}")
    assign = any(v.is_meta for v in own.values())
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, assign=assign)


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return options["tensor"] if "tensor" in options else args[0]
        return func(*args, **options)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built here have shapes and no contents: they lie on the meta device, and `nn.init` does nothing.

    (It would do nothing there anyway, but torch's `normal_` of a meta tensor imports torch's compiler, which takes seconds.)
    """
    with torch.device("meta"), _Unfilled():
        yield


M = TypeVar("M", bound=nn.Module)


def load_module(
    make: Callable[[], M],
    path: Path,
    *,
    finite: bool = True,
    halve: Sequence[str] = (),
    ignore: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
) -> M:
    """The module that `make` builds, with the weights of the safetensors file `path`, in evaluation mode and frozen.

    Nothing is computed for weights that are overwritten, and weights in the module's own type stay mapped to the file until they are used.
    finite: refuse NaN and infinite weights, which reads the whole file. halve: submodules ("" is all) to `hold_in_bfloat16`.
    ignore: beginnings of names in the file that are not wanted. aliases: names that share the weights of another if the file lacks them.
    Raises InputError as `load_weights` and `load_into` do.
    """
    with without_weights():
        module = make()
    for part in halve:
        hold_in_bfloat16(module.get_submodule(part))
    state = {k: v for k, v in load_weights(path, finite=finite).items() if not k.startswith(ignore)}
    places = {k: k for k in state} | {k: v for k, v in (aliases or {}).items() if k not in state and v in state}
    types = {k: v.dtype for k, v in module.state_dict().items()}
    load_into(module, {k: _typed(path, v, state[v], types.get(k)) for k, v in places.items()}, path)
    return module.eval().requires_grad_(False)


def _typed(path: Path, key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in that type; what has to be changed is read through a mapping of its own, and so leaves memory with it."""
    if dtype is None or tensor.dtype == dtype:
        return tensor
    with safe_open(path, "pt") as file:
        stored = file.get_tensor(key)
    return (stored if stored.is_floating_point() else tensor).to(dtype)


def some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal. Raises InputError if it is missing."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """sha256, hexadecimal, over names and sha256s of what makes a checkpoint: all json (but hashes.json) and safetensors files."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors") and p.name != HASHES_FILE and p.is_file())
    lines = [f"{file_hash(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_local(name_or_path: str | Path) -> Path | None:
    """A checkpoint folder on this disk: a path that holds config.json, or the name of a folder under checkpoints/; None if there is none.

    Looked up in this order: the path as given, ./checkpoints/NAME, checkpoints/NAME beside the installed package,
    $MEANAUDIO_CHECKPOINTS/NAME. Raises InputError for a folder that is no checkpoint.
    """
    given = Path(name_or_path).expanduser()
    if (given / "config.json").is_file():
        return given
    if given.is_dir():
        raise InputError(f"{given}: no config.json in this folder; is it a checkpoint?")
    if given.name == str(given):  # a name, perhaps with a slash behind it
        return next((home / given for home in _homes() if (home / given / "config.json").is_file()), None)
    return None


def local_names() -> list[str]:
    """Names that `find_local` knows."""
    return sorted({p.parent.name for home in _homes() for p in home.glob("*/config.json")})


def _homes() -> list[Path]:
    homes = [Path("checkpoints"), Path(__file__).resolve().parent.parent / "checkpoints"]
    extra = os.environ.get("MEANAUDIO_CHECKPOINTS")
    return [*homes, Path(extra).expanduser()] if extra else homes


def write_hashes(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write hashes.json: size and sha256 of every file below `folder`, with `facts` beside them."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != HASHES_FILE)
    files = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_hash(p)} for p in paths}
    write_json(folder / HASHES_FILE, {**facts, "files": files})


def check_sizes(folder: Path) -> bool:
    """True if the folder states its files' sizes in hashes.json and they are right, False if it states none.

    Quick: a file half copied is found, a byte changed is not (`verify` finds that). Raises InputError that lists what is wrong.
    """
    return _compare(folder, lambda path, stated: path.stat().st_size == stated["bytes"], "of another size")


def verify(folder: Path) -> bool:
    """As `check_sizes`, but by the contents of every file."""
    return _compare(folder, lambda path, stated: file_hash(path) == stated["sha256"], "changed")


def _compare(folder: Path, same: Callable[[Path, dict[str, Any]], bool], otherwise: str) -> bool:
    if not (folder / HASHES_FILE).is_file():
        return False
    stated = read_json(folder / HASHES_FILE).get("files")
    if not isinstance(stated, dict) or not all(isinstance(v, dict) and {"bytes", "sha256"} <= v.keys() for v in stated.values()):
        raise InputError(f"{folder / HASHES_FILE}: of another version of meanaudio; convert the published files again")
    missing = [f"{name} missing" for name in stated if not (folder / name).is_file()]
    wrong = [f"{name} {otherwise}" for name, facts in stated.items() if (folder / name).is_file() and not same(folder / name, facts)]
    if missing or wrong:
        raise InputError(f"{folder} is not as it was made: {some([*missing, *wrong])}; copy or convert it again")
    return True


def require_space(folder: Path, needed: int) -> None:
    """Raise InputError if the disk below `folder` has fewer than `needed` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{folder}: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
