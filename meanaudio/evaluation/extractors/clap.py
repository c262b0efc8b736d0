"""LAION's CLAP through transformers: unit vectors of clips and of captions in one space; the CLAP score is their cosine.

Weights: a folder with the files of a Hugging Face repository whose architecture is ClapModel: config.json, model.safetensors (or
pytorch_model.bin), preprocessor_config.json, tokenizer.json; or such a repository's name, if it is in the local Hugging Face cache. Some
are laion/clap-htsat-unfused, laion/clap-htsat-fused and laion/larger_clap_general (all Apache-2.0). Nothing is downloaded here. Which of
them it was is part of the number: the hash of its weights goes into the fingerprint. Never run on real weights here: see
docs/extractors.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from meanaudio.checkpoint import file_hash
from meanaudio.errors import InputError
from meanaudio.evaluation.extractors.frames import equal_windows, exactly
from meanaudio.evaluation.extractors.protocol import ClipFeatures
from meanaudio.evaluation.extractors.weights import fingerprint
from meanaudio.text.files import load_model, load_tokenizer, tokenize

REPO = "laion/clap-htsat-unfused"
FILES = ("config.json", "preprocessor_config.json", "tokenizer.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_TOKENS = 77
VERSION = "1"
BATCH = 8  # windows at once


class Clap:
    """Clips at 48 kHz -> one unit vector each; `encode_text` does the same for captions.

    A clip shorter than the model's window (10 s) is repeated and zero-padded as the model's own preprocessor says; a longer one is heard in
    windows, the last one ending with the clip, and the vectors' mean is scaled to length 1 [ours; LAION's code draws a window at random].
    """

    name = "clap"
    classes: tuple[str, ...] | None = None
    multi_label = False

    def __init__(self, *, weights: Path | None = None, device: str = "cpu") -> None:
        self.folder, self.device = find_folder(weights), device
        self.model = cast(Any, load_model("ClapModel", self.folder, device))
        self.tokenizer = load_tokenizer(self.folder / "tokenizer.json", MAX_TOKENS)
        self.preprocess = load_preprocessor(self.folder)
        self.sample_rate: int = self.preprocess.sampling_rate
        self.dim: int = self.model.config.projection_dim
        file = next(self.folder / name for name in WEIGHTS if (self.folder / name).is_file())
        self.fingerprint = fingerprint(self.name, VERSION, *(file_hash(path) for path in (file, *(self.folder / x for x in FILES))))

    @exactly()
    def __call__(self, clips: Sequence[Tensor]) -> list[ClipFeatures]:
        windows = [equal_windows(clip.cpu(), self.preprocess.nb_max_samples) for clip in clips]
        flat = [row.numpy() for rows in windows for row in rows]
        vectors = iter([vector for i in range(0, len(flat), BATCH) for vector in self._encode(flat[i : i + BATCH])])
        means = [torch.stack([*islice(vectors, len(rows))]).mean(0, keepdim=True) for rows in windows]
        return [ClipFeatures(torch.nn.functional.normalize(mean, dim=-1), None) for mean in means]

    def _encode(self, windows: list[Any]) -> Tensor:
        """Unit vectors [B, D] of windows that are no longer than the model's."""
        mel = self.preprocess(windows, sampling_rate=self.sample_rate, return_tensors="pt")["input_features"]
        # of windows that are not longer, the preprocessor of fused models marks one at random as such: none is
        longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.device)
        pooled = self.model.audio_model(input_features=mel.float().to(self.device), is_longer=longer).pooler_output
        return torch.nn.functional.normalize(self.model.audio_projection(pooled).float().cpu(), dim=-1)

    @exactly()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] on the CPU; captions are cut to 77 tokens with a warning."""
        found = []
        for first in range(0, len(captions), BATCH):
            tokens, mask = (x.to(self.device) for x in tokenize(self.tokenizer, captions[first : first + BATCH]))
            pooled = self.model.text_model(input_ids=tokens, attention_mask=mask.long()).pooler_output
            found.append(torch.nn.functional.normalize(self.model.text_projection(pooled).float().cpu(), dim=-1))
        return torch.cat(found) if found else torch.zeros(0, self.dim)


def find_folder(weights: Path | None) -> Path:
    """The folder itself, or that of a repository's name in the local Hugging Face cache. Raises InputError that names what is missing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = weights
    if folder is None or not folder.is_dir():
        repo = REPO if weights is None else weights.as_posix()
        try:
            cached = try_to_load_from_cache(repo, "config.json")
        except HFValidationError:  # no name that a repository could have
            cached = None
        if not isinstance(cached, str):
            raise InputError(
                f"CLAP's files are neither in a folder {repo} nor in the Hugging Face cache: hf download {REPO}, or give clap=FOLDER"
            )
        folder = Path(cached).parent
    missing = [name for name in FILES if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in WEIGHTS):
        missing.append(" or ".join(WEIGHTS))
    if missing:
        raise InputError(f"{folder}: CLAP's files are missing: {', '.join(missing)} (from https://huggingface.co/{REPO})")
    return folder


def load_preprocessor(folder: Path) -> Any:
    from transformers import ClapFeatureExtractor

    try:
        return ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: not a readable preprocessor_config.json ({str(error).splitlines()[0][:200]})") from None
