"""Training without preparation: sounds are read, cut and encoded when a batch asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from meanaudio.codec.codec import Codec
from meanaudio.config import TextConfig, WindowConfig
from meanaudio.data.dataset import Dataset, LatentStatistics
from meanaudio.data.extract import encode_audio, encode_text
from meanaudio.data.items import ClipWindows, read_split
from meanaudio.data.parallel import map_files
from meanaudio.text import TextEncoder
from meanaudio.types import LatentBatch, TextFeatures

STATISTICS_ITEMS = 512  # windows that the latents' mean and spread are estimated from


class RawDataset(Dataset):
    """The windows of a manifest's split, with the codec and the text encoder at work in every batch.

    For small sets, trials and codecs that still change: a prepared set costs this work once, not once an epoch.
    A sound that cannot be read ends the run with an InputError that names it: `meanaudio data check` finds them before.
    """

    def __init__(
        self,
        manifest: str | Path,
        split: str,
        *,
        codec: Codec,
        codec_hash: str,
        encoder: TextEncoder,
        text: TextConfig,
        seconds: float,
        windows: WindowConfig | None = None,
        threads: int = 4,
    ) -> None:
        self.name = f"{manifest} ({split})"
        self.items = ClipWindows(read_split(manifest, split), codec.spec.sample_rate, seconds, windows or WindowConfig(), threads=threads)
        self.codec, self.encoder, self.threads = codec, encoder, threads
        self.num_latents = codec.spec.window_latents(seconds)
        self.index = {
            "seconds": seconds,
            "split": split,
            "codec_hash": codec_hash,
            "text": text.model_dump(),
            "text_fingerprint": encoder.fingerprint,
        }

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def ids(self) -> list[str]:
        return [self.items.id(i) for i in range(len(self))]

    @cached_property
    def captions(self) -> list[str]:
        return [self.items.caption(i) for i in range(len(self))]

    def batch(self, indices: Sequence[int]) -> LatentBatch:
        items = list(map_files(self.items.__getitem__, indices, workers=self.threads))
        latents = encode_audio(self.codec, items, self.num_latents)
        text = encode_text(self.encoder, [item.caption for item in items])
        return LatentBatch(latents.mean, latents.std, text, [item.id for item in items])

    @cached_property
    def statistics(self) -> LatentStatistics:
        """Estimated from windows spread evenly over the set: the same in every process and at every resume."""
        count = min(len(self), STATISTICS_ITEMS)
        chosen = [i * len(self) // count for i in range(count)]
        total = square = torch.zeros((), dtype=torch.float64)
        for start in range(0, count, 16):
            latents = encode_audio(self.codec, [self.items[i] for i in chosen[start : start + 16]], self.num_latents)
            mean, std = latents.mean.double().flatten(0, 1), latents.std.double().flatten(0, 1)
            total, square = total + mean.sum(0), square + (mean**2 + std**2).sum(0)
        return LatentStatistics.of_sums(total, square, count * self.num_latents)

    @cached_property
    def null_text(self) -> TextFeatures:
        return encode_text(self.encoder, [""])
