"""Items -> features: the codec's posterior and the text encoder's states."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from meanaudio.codec.codec import Codec
from meanaudio.data.items import Item
from meanaudio.errors import InputError
from meanaudio.text import TextEncoder
from meanaudio.types import Gaussian, TextFeatures


@torch.no_grad()
def encode_audio(codec: Codec, items: Sequence[Item], num_latents: int) -> Gaussian:
    """Posterior [B, num_latents, C] of windows, on the CPU. Raises InputError, naming the item, if half precision can't hold it."""
    device = next(codec.parameters()).device
    audio = torch.stack([item.audio[: num_latents * codec.spec.samples_per_latent] for item in items])
    posterior = codec.encode(audio.to(device))
    mean, std = posterior.mean.cpu(), posterior.std.cpu()
    fine = torch.isfinite(mean.half()) & torch.isfinite(std.half())
    if not fine.all():
        broken = items[int((~fine.flatten(1).all(1)).nonzero()[0])]
        raise InputError(f"the codec makes NaN, infinite or huge latents of {broken.id!r} ({broken.caption[:60]!r}); is it trained?")
    return Gaussian(mean, std)


def encode_text(encoder: TextEncoder, captions: Sequence[str]) -> TextFeatures:
    """Features of captions, on the CPU; equal captions are encoded once."""
    different = list(dict.fromkeys(captions))
    places = {caption: place for place, caption in enumerate(different)}
    # Indexing copies: what an encoder makes under inference_mode could not be trained on.
    return encoder(different).to("cpu")[torch.tensor([places[caption] for caption in captions])]
