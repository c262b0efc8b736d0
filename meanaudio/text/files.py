"""Where the large text encoders' files lie, and how their captions become tokens of a fixed number. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio.checkpoint import file_hash, load_module, read_json
from meanaudio.errors import InputError, Notice


def locate(folder: Path, names: Sequence[str], repos: Sequence[str] = ()) -> dict[str, Path]:
    """Each file of `names`: in `folder` if all are there, otherwise in the local cache of one of the Hugging Face repositories `repos`.

    Raises InputError that says which files to put where.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return {name: folder / name for name in names}
    if repos:
        from huggingface_hub import try_to_load_from_cache

        for repo in repos:
            cached = {name: try_to_load_from_cache(repo, name) for name in names}
            if all(isinstance(path, str) for path in cached.values()):
                return {name: Path(str(path)) for name, path in cached.items()}
    hint = f"put {', '.join(missing)} into {folder}"
    if repos:
        hint += (
            f" (from https://huggingface.co/{repos[0]}), or have them in the Hugging Face cache: hf download {repos[0]} {' '.join(names)}"
        )
    else:
        hint += ", by `meanaudio convert --release DIR` from the released files"
    raise InputError(f"a text encoder's files are missing: {hint}")


def name_with_hash(name: str, files: Sequence[Path]) -> str:
    """`name` and a hash of what the files hold: a fingerprint of an encoder."""
    return f"{name} {hashlib.sha256(''.join(map(file_hash, files)).encode()).hexdigest()[:16]}"


def load_model(name: str, folder: Path, device: str, **options: Any) -> torch.nn.Module:
    """The transformers class `name` from the config.json and model.safetensors of `folder`, float32, frozen.

    options go to the class's constructor. Raises InputError if the files cannot be read or a weight is missing, which transformers alone
    would fill with random numbers.
    """
    from safetensors import SafetensorError

    cls = transformers_class(name)
    try:
        model, report = cls.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, **options)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: not a readable text encoder ({str(error).splitlines()[0][:200]})") from None
    if faults := sorted(str(x) for kind in ("missing_keys", "mismatched_keys") for x in report[kind]):
        raise InputError(f"{folder}: weights of another text encoder: missing or misshaped {', '.join(faults[:5])}")
    return model.eval().requires_grad_(False).to(device)


def load_encoder(cls: str, config: str, files: Mapping[str, Path], device: str, dtype: torch.dtype, **names: Any) -> torch.nn.Module:
    """A large encoder: the transformers class `cls` with the class `config` of its config.json, strictly, through `load_module`.

    dtype: float32, or bfloat16 for matrix layers (see precision.py); transformers itself would hold the file's float32 beside them.
    names: `ignore` and `aliases` of `load_module`.
    """
    values = read_json(files["config.json"])
    try:
        make = partial(transformers_class(cls), transformers_class(config)(**values))
        halve = ("",) if dtype == torch.bfloat16 else ()
        return load_module(make, files["model.safetensors"], finite=False, halve=halve, **names).to(device)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:  # a config that the class cannot be built from
        raise InputError(f"{files['config.json']}: not a readable text encoder ({str(error).splitlines()[0][:200]})") from None


def transformers_class(name: str) -> Any:
    """A class of transformers, told to be quiet. Raises InputError where transformers cannot be imported."""
    try:
        import transformers
        from transformers.utils import logging

        cls = getattr(transformers, name)
    except OSError as error:  # transformers imports torchaudio where it is installed, and one for another torch cannot load
        raise InputError(f"transformers cannot be imported ({error}); if it is torchaudio, install one that fits torch, or none") from error
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return cls


def load_tokenizer(path: Path, max_tokens: int) -> Any:
    """A tokenizer that pads and cuts every caption to max_tokens."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library knows no better type
        raise InputError(f"{path}: not a readable tokenizer.json ({str(error).splitlines()[0][:200]})") from None
    pad = tokenizer.token_to_id("<pad>")
    if pad is None:
        raise InputError(f"{path}: this tokenizer has no <pad> token")
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=pad, pad_token="<pad>", length=max_tokens)
    return tokenizer


def refuse_broken_text(captions: Sequence[str]) -> None:
    """Raise InputError for lone surrogates, which no tokenizer can read."""
    if broken := [c for c in captions if any("\ud800" <= letter <= "\udfff" for letter in c)]:
        raise InputError(f"not valid Unicode text: {broken[0][:80]!r}")


def tokenize(tokenizer: Any, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Captions -> token ids and mask (True at real tokens), both [B, max_tokens]; what was cut is told in a warning."""
    refuse_broken_text(captions)
    encodings = tokenizer.encode_batch(list(captions))
    if long := sum(bool(e.overflowing) for e in encodings):
        warnings.warn(f"{long} text(s) longer than {len(encodings[0].ids)} tokens: the end is not heard", Notice, stacklevel=3)
    return torch.tensor([e.ids for e in encodings]), torch.tensor([e.attention_mask for e in encodings], dtype=torch.bool)
