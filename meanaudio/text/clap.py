"""The text tower of LAION-CLAP (RoBERTa and a projection, 125 M): one unit vector a caption.

Files: config.json and model.safetensors as `meanaudio convert` writes them from music_speech_audioset_epoch_15_esc_89.98.pt, and
roberta-base's tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from meanaudio.precision import computing_in
from meanaudio.text.files import load_encoder, load_tokenizer, locate, tokenize

TOKENIZER_REPOS = ("FacebookAI/roberta-base", "roberta-base")  # its present name, and the one older caches have
FOLDER = "clap"  # inside a checkpoint
FILES = ("config.json", "model.safetensors")


class ClapText:
    """captions -> unit vectors [B, 512].

    Captions are padded or cut to max_tokens; padding is masked inside, as LAION's code does [code].
    folder: where the files lie; the tokenizer may be in the Hugging Face cache instead. They are read at the first call.
    """

    def __init__(self, folder: Path, *, max_tokens: int = 77, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.max_tokens, self.device, self.dtype = folder, max_tokens, device, dtype

    @property
    def weights(self) -> list[Path]:
        """The files that decide what comes out."""
        return [locate(self.folder, FILES)["model.safetensors"], self._tokenizer_file]

    @property
    def _tokenizer_file(self) -> Path:
        return locate(self.folder, ["tokenizer.json"], TOKENIZER_REPOS)["tokenizer.json"]

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self._tokenizer_file, self.max_tokens)

    @cached_property
    def model(self) -> torch.nn.Module:
        files = locate(self.folder, FILES)
        return load_encoder("ClapTextModelWithProjection", "ClapTextConfig", files, self.device, self.dtype)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        tokens, mask = tokenize(self.tokenizer, captions)
        longest = int(mask.sum(1).max())  # what is padding in every caption is masked, so it need not be computed
        tokens, mask = tokens[:, :longest].to(self.device), mask[:, :longest].to(self.device)
        with computing_in(self.dtype, tokens.device):
            vectors = self.model(input_ids=tokens, attention_mask=mask.long()).text_embeds
        return torch.nn.functional.normalize(vectors.float(), dim=-1)
