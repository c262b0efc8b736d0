"""Files that others wrote: read without running code, and compared name by name with what is wanted."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meanaudio.checkpoint import load_weights
from meanaudio.errors import InputError

# Pairs (theirs, ours), replaced in this order; "^" binds a pair to the beginning of the name. Read backwards, they lead back.
Names = Sequence[tuple[str, str]]

# What training files hold beside tensors: numbers (LAION's) and arrays (PANNs') that numpy wrote, under its old and its new name. None of
# these runs code.
_SCALAR, _ARRAY = (x.__reduce__()[0] for x in (np.float64(0), np.zeros(0)))
_NUMBERS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    type(np.dtype("f4")),
    type(np.dtype("f8")),
    type(np.dtype("i8")),
]


def rename(key: str, names: Names) -> str:
    """Their name -> ours."""
    for theirs, ours in names:
        key = _replace(key, theirs, ours)
    return key


def rename_back(key: str, names: Names) -> str:
    """Our name -> theirs."""
    for theirs, ours in reversed(names):
        key = _replace(key, ours, theirs)
    return key


def _replace(key: str, old: str, new: str) -> str:
    if not old.startswith("^"):
        return key.replace(old, new)
    return new[1:] + key[len(old) - 1 :] if key.startswith(old[1:]) else key


def read_foreign(path: Path, wrappers: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt, .bin or .safetensors file, by name.

    wrappers: keys under which the weights may lie if they are not at the top. Weights of an exponential moving average (`ema_model.`)
    are taken where there are any. Raises InputError for a damaged file, for one that holds objects that could run code, and for weights
    that are not finite.
    """
    values = load_weights(path) if path.suffix == ".safetensors" else _unpickle(path)
    if isinstance(values, tuple) and values:  # weights first, then what was noted beside them (aiSFX's)
        values = values[0]
    for wrapper in wrappers:
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: expected named weights, found {type(values).__name__}")
    averaged = {k.removeprefix("ema_model."): v for k, v in values.items() if str(k).startswith("ema_model.")}
    tensors = {k: v for k, v in (averaged or values).items() if not str(k).endswith("_extra_state")}
    if strangers := [f"{k} ({type(v).__name__})" for k, v in tensors.items() if not isinstance(v, Tensor)]:
        raise InputError(f"{path}: not a file of weights: holds {some(strangers)}")
    if broken := [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]:
        raise InputError(f"{path}: NaN or infinite weights in {some(broken)}")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _unpickle(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            # a zip archive can be mapped: what is not used is then not read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises a different type for each kind of damage
        told = str(error).splitlines() or ["it ends too early"]
        if isinstance(error, pickle.UnpicklingError) and any("GLOBAL" in line or "Unsupported" in line for line in told):
            culprit = next(line.strip() for line in told if "GLOBAL" in line or "Unsupported" in line)
            raise InputError(f"{path}: refused, because it holds more than weights and could run code ({culprit[:200]})") from None
        raise InputError(f"{path}: damaged or not a PyTorch file ({type(error).__name__}: {told[0][:200]})") from None


def check_known(content: bytes, source: str, sha256: str) -> None:
    """Raises InputError for other bytes than the known ones."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{source} is not the known file (its sha256 is not {sha256})")


class _Arrays(pickle.Unpickler):
    """Of arrays and the containers and numbers that pickles know by themselves; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": _ARRAY, "scalar": _SCALAR, "ndarray": np.ndarray, "dtype": np.dtype}
        if module not in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") or name not in known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return known[name]


def read_pickled_array(content: bytes, source: str, *, sha256: str) -> np.ndarray:
    """The array of objects in the bytes of a known .npy file, which numpy would read by running what it says.

    Only arrays, of numbers or of objects, are made of it; as an array can be told to lie where it does not, only bytes with this `sha256`
    are read. Raises InputError for others, and for anything else in them.
    """
    check_known(content, source, sha256)
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of numpy's format")
        np.lib.format.read_array_header_1_0(file)
        found = _Arrays(file, encoding="latin1").load()
    except Exception as error:  # whatever damaged bytes lead to
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(f"{source}: refused, or damaged: an array of arrays is wanted ({told})") from None
    if not isinstance(found, np.ndarray):
        raise InputError(f"{source}: an array is wanted, found {type(found).__name__}")
    return found


def check_names(found: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], source: str | Path) -> None:
    """Raise InputError that lists every missing, extra and misshaped name, in the file's own words."""
    shapes = [f"{k} {tuple(v.shape)} instead of {tuple(wanted[k])}" for k, v in found.items() if k in wanted and v.shape != wanted[k]]
    faults = {
        "missing": [k for k in wanted if k not in found],
        "not expected": [k for k in found if k not in wanted],
        "misshaped": shapes,
    }
    if told := [f"{fault} {some(names)}" for fault, names in faults.items() if names]:
        raise InputError(f"{source}: another file is wanted here: {'; '.join(told)}")


def shape_of(state: Mapping[str, Tensor], key: str, source: str | Path, what: str) -> torch.Size:
    """The shape of one weight, from which sizes are read. Raises InputError if it is not there."""
    if key not in state:
        raise InputError(f"{source}: not {what}: no {key!r} among its {len(state)} names (such as {some(list(state), 3) or 'none'})")
    return state[key].shape


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many children `prefix`0, `prefix`1, ... the names have."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
