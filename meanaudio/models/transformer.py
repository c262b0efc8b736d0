"""The one network: a Flux-style latent transformer (MeanAudio, arXiv 2508.06098). Flow matching and mean velocity differ by flags."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meanaudio.checkpoint import load_module
from meanaudio.config import NetworkConfig
from meanaudio.errors import InputError
from meanaudio.flow import expand, normal_velocity, path_deviation
from meanaudio.models.layers import JointBlock, Modulation, SequenceConv, StreamBlock, SwiGLU, TimeEmbedding, modulate, rotary_angles
from meanaudio.types import Field, TextFeatures

NETWORK_FILE = "network.safetensors"


@dataclass(frozen=True)
class Condition:
    """Text as the network sees it, made once per prompt.

    sequence [B, S, W]; pooled [B, W]; mask [B, S] or None (all real): True at what may be seen, or a number that is added to the logits of
    attention; places [B, S] of the tokens in their own texts, or None (0 to S - 1).
    """

    sequence: Tensor
    pooled: Tensor
    mask: Tensor | None
    places: Tensor | None = None

    def __getitem__(self, index) -> Condition:
        mask, places = (None if x is None else x[index] for x in (self.mask, self.places))
        return Condition(self.sequence[index], self.pooled[index], mask, places)

    def detach(self) -> Condition:
        return Condition(self.sequence.detach(), self.pooled.detach(), self.mask, self.places)


class Transformer(nn.Module):
    """Velocity network over latents [B, L, C] of any length.

    interval: "none" sees t only (flow matching); "absolute" adds an embedding of r (the release); "relative" adds an embedding of
    t - r that starts at zero, so that a flow-matching network continues from the function it had; "decoupled" shows t to the first two
    thirds of the blocks and r to the rest and to the output (arXiv 2510.24474): no weight more than "none", and the same function at r = t.
    guidance_embedding: a zero-initialised embedding of the guidance scale. guidance_limits: two more, of the times between which guidance
    acts (arXiv 2512.02012).
    mask_text: padded text tokens are hidden from attention (the release attends to them).
    preconditioned: what a normal distribution of the latents' deviations explains is added in closed form, and only the rest is learned;
    see `normal_velocity`. The deviations, `data_std` [C] in units of the network's latents, are a buffer that training sets.

    checkpoint_activations may be set at any time: a gradient pass then keeps the inputs of each block only, and computes the rest of it
    once more when it is needed. Gradients are the same, bit for bit.
    """

    checkpoint_activations = False
    data_std: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        sequence_dim: int,
        pooled_dim: int,
        width: int,
        num_heads: int,
        joint_depth: int,
        single_depth: int,
        interval: Literal["none", "absolute", "relative", "decoupled"],
        guidance_embedding: bool = False,
        guidance_limits: bool = False,
        mask_text: bool = True,
        preconditioned: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim, self.head_dim = latent_dim, width // num_heads
        self.sequence_dim, self.pooled_dim = sequence_dim, pooled_dim
        self.interval, self.mask_text, self.preconditioned = interval, mask_text, preconditioned
        if preconditioned:
            self.register_buffer("data_std", torch.ones(latent_dim))
        self.audio_in = nn.Sequential(SequenceConv(latent_dim, width, 7), nn.SELU(), SwiGLU(width, 7))
        self.sequence_in = nn.Sequential(nn.Linear(sequence_dim, width), SwiGLU(width))
        self.pooled_in = nn.Sequential(nn.Linear(pooled_dim, width), SwiGLU(width))
        self.time_embedding = TimeEmbedding(width)
        self.interval_embedding = TimeEmbedding(width) if interval in ("absolute", "relative") else None
        self.guidance_embedding = TimeEmbedding(width) if guidance_embedding else None
        self.guidance_limits = nn.ModuleList(TimeEmbedding(width) for _ in range(2 if guidance_limits else 0))
        self.joint_blocks = nn.ModuleList(JointBlock(width, num_heads, last=i == joint_depth - 1) for i in range(joint_depth))
        self.single_blocks = nn.ModuleList(StreamBlock(width, num_heads, 3) for _ in range(single_depth))
        self.blocks_of_t = round((joint_depth + single_depth) * 2 / 3)
        self.blocks_of_r = joint_depth + single_depth - self.blocks_of_t
        self.out_modulation = Modulation(width, 2)
        self.out = SequenceConv(width, latent_dim, 7)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for linear layers, N(0, 0.02) time embeddings, zeros for modulation, output and the relative branches' ends."""
        zero = {m.linear for m in self.modules() if isinstance(m, Modulation)}
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in zero:
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.time_embedding.reset_parameters(silent=False)
        if self.interval_embedding is not None:
            self.interval_embedding.reset_parameters(silent=self.interval == "relative")
        for embedding in (self.guidance_embedding, *self.guidance_limits):
            if embedding is not None:
                embedding.reset_parameters(silent=True)
        nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """Become the network that takes and gives each latent channel multiplied by factor [C]; of one that is not preconditioned."""
        first, last = self.audio_in[0], self.out
        assert isinstance(first, SequenceConv) and last.bias is not None
        first.weight.div_(factor[:, None])
        last.weight.mul_(factor[:, None, None])
        last.bias.mul_(factor)

    def condition(self, text: TextFeatures) -> Condition:
        """Project text features once; the result serves every (z, t, r). Raises InputError on other feature widths.

        Texts that are read together (types.read_together) get as much attention as one: of n, the logits of their tokens are lower by
        log n, so that n equal texts are that text.
        """
        found, wanted = (text.sequence.shape[-1], text.pooled.shape[-1]), (self.sequence_dim, self.pooled_dim)
        if found != wanted:
            raise InputError(f"text features are {found} wide (sequence, pooled); this network takes {wanted}")
        sequence, pooled = self.sequence_in(text.sequence), self.pooled_in(text.pooled)
        if text.places is not None:
            texts = ((text.places == 0) & text.mask).sum(1, keepdim=True)
            weight = (-texts.log()).expand(text.mask.shape).masked_fill(~text.mask & self.mask_text, -torch.inf)
            return Condition(sequence, pooled, weight, text.places)
        masked = self.mask_text and not bool(text.mask.all())
        return Condition(sequence, pooled, text.mask if masked else None)

    def forward(self, z: Tensor, t: Tensor, r: Tensor, condition: Condition, scale: Tensor | None = None) -> Tensor:
        """z [B, L, C]; t, r [B] in [0, 1], r <= t; scale, for a network that takes one -> velocity [B, L, C].

        scale: [B] guidance scale, or [B, 3] with the times between which it acts, low and high, for a network that takes these too.
        """
        if not self.preconditioned:
            return self._learned(z, t, r, condition, scale)
        end, begin = expand(t, z), expand(r, z)
        deviation = path_deviation(end, self.data_std)
        learned = self._learned(z / deviation, t, r, condition, scale)
        return normal_velocity(z, end, begin, self.data_std) + self.data_std / deviation * learned

    def _learned(self, z: Tensor, t: Tensor, r: Tensor, condition: Condition, scale: Tensor | None) -> Tensor:
        early = self.time_embedding(t) + condition.pooled
        if self.interval_embedding is not None:
            early = early + self.interval_embedding(r if self.interval == "absolute" else t - r)
        late = self.time_embedding(r) + condition.pooled if self.interval == "decoupled" else early
        guidance = self._guidance(scale)
        if guidance is not None:
            early, late = early + guidance, late + guidance
        early, late = early[:, None], late[:, None]
        conditions = iter([early] * self.blocks_of_t + [late] * self.blocks_of_r)
        text = condition.sequence
        places = torch.arange(text.shape[1], device=z.device) if condition.places is None else condition.places[:, None]
        angles, text_angles = (rotary_angles(at, self.head_dim) for at in (torch.arange(z.shape[1], device=z.device), places))
        x = self._run(self.audio_in, z)
        mask = None
        if condition.mask is not None:
            seen = condition.mask.dtype == torch.bool
            mask = torch.nn.functional.pad(condition.mask, (x.shape[1], 0), value=True if seen else 0.0)[:, None, None]
        for joint in self.joint_blocks:
            x, text = self._run(joint, x, text, next(conditions), angles, text_angles, mask)
        for single in self.single_blocks:
            x = self._run(single, x, next(conditions), angles)
        shift, gain = self.out_modulation(late)
        return self.out(modulate(x, shift, gain))

    def _run(self, block: nn.Module, *args):
        """block(*args). Without a gradient, as in the derivative of an objective, there is nothing to keep and so nothing to save."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
        return block(*args)

    def _guidance(self, scale: Tensor | None) -> Tensor | None:
        """The embedding [B, W] of the guidance inputs. Raises InputError if they are not those that this network takes."""
        if self.guidance_embedding is None:
            if scale is not None:
                raise InputError("this network takes no guidance scale; guide it by two fields instead")
            return None
        if scale is None:
            raise InputError("this network takes a guidance scale and got none")
        columns = scale[:, None] if scale.ndim == 1 else scale
        if columns.shape[1] != 1 + len(self.guidance_limits):
            raise InputError(f"this network takes {1 + len(self.guidance_limits)} guidance inputs and got {columns.shape[1]}")
        embedded = self.guidance_embedding(columns[:, 0].log())
        for limit, embedding in enumerate(self.guidance_limits, start=1):
            embedded = embedded + embedding(columns[:, limit])
        return embedded

    def field(self, condition: Condition, scale: Tensor | None = None) -> Field:
        """The network as a function of (z, t, r) for one condition."""
        return lambda z, t, r: self(z, t, r, condition, scale)


def make_network(config: NetworkConfig) -> Transformer:
    return Transformer(**config.model_dump())


def load_network(folder: Path, config: NetworkConfig, *, dtype: torch.dtype = torch.float32, finite: bool = True) -> Transformer:
    """The network of a checkpoint folder, in evaluation mode and frozen. Strict; see `load_module`."""
    halve = ("",) if dtype == torch.bfloat16 else ()
    return load_module(partial(make_network, config), folder / NETWORK_FILE, finite=finite, halve=halve)
