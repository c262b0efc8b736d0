"""A data set whose items stay on the device that trains on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanaudio.data.dataset import Dataset, LatentStatistics
from meanaudio.data.order import Order
from meanaudio.errors import InputError
from meanaudio.types import LatentBatch, TextFeatures, send

READ = 1024  # items at a time


class Resident(Dataset):
    """`data`, read once and kept on `device`: a batch is then an indexing there, and the interpreter is left to the training step.

    Batches have the values of `data`'s, bit for bit. Numbers that 16 bits hold, as those of shards are, take 16. data: must give the same
    item whenever it is asked for it, as shards do. Raises InputError if a GPU has too little room.
    """

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.data, self.device, self.name, self.index = data, device, data.name, data.index
        parts = []
        for start in range(0, len(data), READ):
            part = data.batch(range(start, min(len(data), start + READ)))
            if start == 0:
                self._require_room(part)
            parts.append(self._held(part))
        self._ids = [name for part in parts for name in part.ids]
        self.mean, self.std = torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])
        self.text = TextFeatures.cat([part.text for part in parts])
        self._tokens = self.text.mask.sum(1).cpu()  # to ask the device for a batch's longest caption would wait for it

    def _require_room(self, part: LatentBatch) -> None:
        if self.device.type != "cuda":
            return
        numbers = 2 * part.mean.numel() + part.text.sequence.numel() + part.text.pooled.numel()
        needed = 2 * 2 * numbers // len(part.ids) * len(self.data)  # 16 bits each, and twice while the parts are joined
        free = torch.cuda.mem_get_info(self.device)[0]
        if needed > free:
            raise InputError(
                f"loading.resident: {len(self.data)} items of {self.name} need {needed / 1e9:.1f} GB on {self.device}, "
                f"{free / 1e9:.1f} GB are free"
            )

    def _held(self, part: LatentBatch) -> LatentBatch:
        text = TextFeatures(self._short(part.text.sequence), self._short(part.text.pooled), part.text.mask.to(self.device))
        return LatentBatch(self._short(part.mean), self._short(part.std), text, part.ids)

    def _short(self, x: Tensor) -> Tensor:
        half = x.half()
        return (half if torch.equal(half.float(), x) else x).to(self.device)

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Sequence[int]) -> LatentBatch:
        """Items as one float32 batch on the device; text padded to the longest caption."""
        rows = torch.tensor(list(indices))
        tokens = int(self._tokens[rows].max())
        there = send(rows, self.device)
        text = TextFeatures(self.text.sequence[there, :tokens].float(), self.text.pooled[there].float(), self.text.mask[there, :tokens])
        return LatentBatch(self.mean[there].float(), self.std[there].float(), text, [self._ids[i] for i in indices])

    @property
    def ids(self) -> list[str]:
        return self._ids

    @property
    def captions(self) -> list[str]:
        return self.data.captions

    @property
    def statistics(self) -> LatentStatistics:
        return self.data.statistics

    @property
    def null_text(self) -> TextFeatures:
        return self.data.null_text

    def order(self, seed: int) -> Order:
        return self.data.order(seed)
