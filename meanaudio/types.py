"""Shapes that cross module borders. B batch, L latent frames, C latent channels, S text tokens, D sequence width, P pooled width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor

# A field maps (z [B, L, C], t [B], r [B]) to a velocity [B, L, C]; t = 1 is noise, t = 0 is data, r <= t.
Field = Callable[[Tensor, Tensor, Tensor], Tensor]


def send(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`; to a GPU through page-locked memory, so that neither the GPU nor the calling thread waits for the copy."""
    if device.type != "cuda" or x.device.type == "cuda":
        return x.to(device)
    with torch.cuda.device(device):  # a background thread begins with GPU 0 as its own
        return x.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder says of B captions.

    sequence: [B, S, D] token features. Networks that mask their text never see them where `mask` is False.
    pooled:   [B, P] one vector a caption.
    mask:     [B, S] True at real tokens.
    places:   [B, S] of each token in its own text, from 0, where several are read as one (`read_together`); None: 0 to S - 1.
    """

    sequence: Tensor
    pooled: Tensor
    mask: Tensor
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def to(self, *args, **kwargs) -> TextFeatures:
        """As `Tensor.to`; mask and places keep their type."""
        sequence = self.sequence.to(*args, **kwargs)
        places = None if self.places is None else self.places.to(sequence.device)
        return TextFeatures(sequence, self.pooled.to(*args, **kwargs), self.mask.to(sequence.device), places)

    def each(self, change: Callable[[Tensor], Tensor]) -> TextFeatures:
        """`change` of all that there is."""
        places = None if self.places is None else change(self.places)
        return TextFeatures(change(self.sequence), change(self.pooled), change(self.mask), places)

    def expand(self, batch: int) -> TextFeatures:
        """One caption's features for a whole batch."""
        return self.each(lambda x: x.expand(batch, *x.shape[1:]))

    def pad_to(self, tokens: int | None) -> TextFeatures:
        """Pad (never cut) the token axis to `tokens`; None leaves it."""
        extra = 0 if tokens is None else tokens - self.sequence.shape[1]
        if extra <= 0:
            return self
        pad = torch.nn.functional.pad
        places = None if self.places is None else pad(self.places, (0, extra))
        return TextFeatures(pad(self.sequence, (0, 0, 0, extra)), self.pooled, pad(self.mask, (0, extra)), places)

    def token_places(self) -> Tensor:
        """Places [B, S], those of a text that is read alone too."""
        return torch.arange(self.mask.shape[1], device=self.mask.device).expand_as(self.mask) if self.places is None else self.places

    def where(self, keep: Tensor, other: TextFeatures) -> TextFeatures:
        """Row i is ours where keep[i] [B] is True, otherwise `other`'s (same batch, or one row for all)."""
        tokens = max(self.sequence.shape[1], other.sequence.shape[1])
        a, b = self.pad_to(tokens), other.pad_to(tokens).expand(len(self))
        together = a.places is not None or b.places is not None
        return TextFeatures(
            torch.where(keep[:, None, None], a.sequence, b.sequence),
            torch.where(keep[:, None], a.pooled, b.pooled),
            torch.where(keep[:, None], a.mask, b.mask),
            torch.where(keep[:, None], a.token_places(), b.token_places()) if together else None,
        )

    def __getitem__(self, index) -> TextFeatures:
        """Rows by slice, list, index tensor or boolean mask."""
        return self.each(lambda x: x[index])

    @staticmethod
    def cat(parts: Sequence[TextFeatures]) -> TextFeatures:
        """Join batches; shorter token axes are padded."""
        tokens = max(p.sequence.shape[1] for p in parts)
        parts = [p.pad_to(tokens) for p in parts]
        together = any(p.places is not None for p in parts)
        return TextFeatures(
            torch.cat([p.sequence for p in parts]),
            torch.cat([p.pooled for p in parts]),
            torch.cat([p.mask for p in parts]),
            torch.cat([p.token_places() for p in parts]) if together else None,
        )


def read_together(texts: TextFeatures) -> TextFeatures:
    """All rows as one that weighs no more than a text (Transformer.condition): their tokens, each at its place in its own text; half the
    first's vector and half the mean of the others'.
    """
    first, others = texts.pooled[:1], texts.pooled[1:]
    pooled = (first + others.mean(0, keepdim=True)) / 2 if len(others) else first
    return TextFeatures(texts.sequence[texts.mask][None], pooled, texts.mask[texts.mask][None], texts.token_places()[texts.mask][None])


@dataclass(frozen=True)
class Gaussian:
    """A diagonal normal over latents; mean and std are [B, L, C]."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean + self.std * noise


@dataclass(frozen=True)
class LatentBatch:
    """Posterior of B clips with their text. mean, std: [B, L, C]; ids name the clips in error messages."""

    mean: Tensor
    std: Tensor
    text: TextFeatures
    ids: list[str]

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw latents [B, L, C] from the posterior."""
        return Gaussian(self.mean, self.std).sample(generator)

    def with_text_on(self, device: torch.device) -> LatentBatch:
        return LatentBatch(self.mean, self.std, self.text.each(lambda x: send(x, device)), self.ids)


@dataclass(frozen=True)
class Draws:
    """All that an objective draws for B rows: noise [B, L, C]; times t, r [B], r <= t; keep [B], True where a row keeps its caption.

    An objective that draws more adds fields, each with B rows.
    """

    noise: Tensor
    t: Tensor
    r: Tensor
    keep: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, rows) -> Self:
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: torch.device) -> Self:
        return type(self)(*(send(getattr(self, f.name), device) for f in fields(self)))


@dataclass(frozen=True)
class Loss:
    """An objective's result. per_sample: [B] with gradient; t: [B] the times it was drawn at; logs: plain numbers."""

    per_sample: Tensor
    t: Tensor
    logs: dict[str, float]


class Network(Protocol):
    """What objectives know of a network: text becomes a condition, and (z, t, r, condition) a velocity."""

    def condition(self, text: TextFeatures) -> Any: ...

    def __call__(self, z: Tensor, t: Tensor, r: Tensor, condition: Any) -> Tensor: ...


@dataclass(frozen=True)
class Asked:
    """What B sounds are to hold. parts [B, P]: numbers of captions, -1 where there are fewer. in_order [B]: two, one after another."""

    parts: Tensor
    in_order: Tensor

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, rows) -> Asked:
        return Asked(self.parts[rows], self.in_order[rows])

    def to(self, device: torch.device) -> Asked:
        return Asked(send(self.parts, device), send(self.in_order, device))


class Recall(Protocol):
    """Features of B prompts that a network knew before, each a function of its seed [B]."""

    def __call__(self, seeds: Tensor) -> TextFeatures: ...


class Judge(Protocol):
    """Who asks for sounds, and says how little is heard of what was asked.

    All that is random in it is a function of the seeds [B, 2]: a row's own, and the whole batch's.
    """

    def ask(self, seeds: Tensor) -> tuple[TextFeatures, Asked]: ...

    def __call__(self, latents: Tensor, asked: Asked, seeds: Tensor) -> Tensor:
        """Of normalised latents [B, L, C]: nats [B], differentiable."""
        ...
