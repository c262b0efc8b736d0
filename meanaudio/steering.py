"""Which field is integrated: what the options of a generation mean for a network, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio.checkpoint import file_hash, read_json
from meanaudio.codec.codec import VAE_FILE
from meanaudio.concepts import labels
from meanaudio.config import CheckpointConfig, NetworkConfig, ScorerCheckpointConfig, TextConfig, parse
from meanaudio.errors import InputError
from meanaudio.guidance import BASE, Classifier, ClassifierGuidance, Reference, check_limits, classifier_guided, guided, within
from meanaudio.models.transformer import Transformer
from meanaudio.types import Field, TextFeatures

MAX_SCALE = 100
SAME_LATENTS = 0.01  # of a standard deviation: how far two networks' normalisations may be apart to work together
SHOWN_CLASSES = 30  # in an error
ALWAYS = (0.0, 1.0)


@dataclass
class Evaluations:
    """Network evaluations of a generation, counted by clips: a pass over half of the batch counts half."""

    clips: int = 0

    def add(self, clips: int) -> None:
        self.clips += clips


@dataclass(frozen=True)
class Steering:
    """What a generation moves towards and away from. 1 is no guidance.

    scale: an input of the network where it takes one, else the distance from `away`. limits: the times between which guidance acts.
    weaker: the network that sees `away` in place of the main one (autoguidance). away: text features, one row or B; None: the prompts'.
    classifier, wanted [B, K], class_text: a classifier of the codec's latents, the classes to hear in each clip, and text features of
    given classes.
    """

    scale: float = 1.0
    limits: tuple[float, float] = ALWAYS
    away: TextFeatures | None = None
    weaker: tuple[Transformer, CheckpointConfig] | None = None
    classifier: Classifier | None = None
    wanted: Tensor | None = None
    class_text: Callable[[Sequence[int]], TextFeatures] | None = None
    settings: ClassifierGuidance = field(default_factory=ClassifierGuidance)
    evaluations: Evaluations = field(default_factory=Evaluations)

    def of(self, rows: Sequence[int]) -> Steering:
        """The same for some of the clips. `away` must be one row or None."""
        return replace(self, wanted=None if self.wanted is None else self.wanted[rows])


def steered_field(network: Transformer, config: CheckpointConfig, text: TextFeatures, steering: Steering) -> Field:
    """The field of `network` for the prompts `text` [B], guided as `steering` says. It works on normalised latents."""
    scale, inputs = steering.scale, None
    if config.guidance_range is not None:
        inputs, scale = guidance_input(config.network, scale, steering.limits), 1.0
    tally, count = steering.evaluations, len(text)
    main = _field(network, network.condition(text), inputs, tally)
    other, other_inputs = network, inputs
    if steering.weaker is not None:
        other, weaker_config = steering.weaker
        other_inputs = guidance_input(weaker_config.network, 1.0, ALWAYS) if weaker_config.guidance_range else None
    away = text if steering.away is None else steering.away.expand(count)
    if steering.classifier is None or steering.wanted is None:
        if scale == 1:
            return main
        if steering.away is None and other is network:
            raise InputError(f"guidance_scale = {scale} needs the features of a reference text")
        return guided(main, _field(other, other.condition(away), other_inputs, tally), scale, steering.limits)

    condition, class_text = other.condition(away), steering.class_text

    def reference(z: Tensor, t: Tensor, r: Tensor, rows: Tensor, choice: Tensor) -> Tensor:
        chosen, rival = condition[rows], choice != BASE
        if class_text is not None and rival.any():
            some = choice.where(rival, choice[rival][0])  # where none is chosen, any will do
            chosen = other.condition(class_text(some.tolist()).where(rival, away[rows]))
        return _field(other, chosen, other_inputs, tally)(z, t, r)

    mean, std = (torch.tensor(x, device=text.pooled.device) for x in (config.latent_mean, config.latent_std))
    hear = steering.classifier
    return classifier_guided(
        main, reference, lambda clean: hear(clean.float() * std + mean), steering.wanted, steering.settings, base_scale=scale,
        limits=steering.limits,
    )  # fmt: skip


def _field(network: Transformer, condition: Any, inputs: Callable[[Tensor], Tensor] | None, tally: Evaluations) -> Field:
    def field(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        tally.add(len(z))
        return network.field(condition, None if inputs is None else inputs(t))(z, t, r)

    return field


def guidance_input(config: NetworkConfig, scale: float, limits: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """t [B] -> the guidance inputs of a network that takes some: the scale [B], 1 outside the limits, or [B, 3] with the limits."""
    if config.guidance_limits:
        return lambda t: torch.tensor([scale, *limits], device=t.device, dtype=t.dtype).repeat(len(t), 1)
    return lambda t: torch.where(within(t, limits), scale, 1.0).to(t.dtype)


# ---------------------------------------------------------------- refusals


def check_steering(
    name: str, config: CheckpointConfig, *, scale: float, limits: tuple[float, float], negative_prompt: str | None, weaker: bool,
    classifier: bool, classifier_reference: Reference,
) -> None:  # fmt: skip
    """Raises InputError for options that this checkpoint cannot follow, or that would have no effect."""
    check_limits(limits)
    if not 1 <= scale <= MAX_SCALE:
        raise InputError(f"guidance_scale = {scale}: must be from 1 (none) to {MAX_SCALE}")
    if config.guidance_range is not None:
        low, high = config.guidance_range
        if not low <= scale <= high:
            raise InputError(f"guidance_scale = {scale:g}: {name} takes it as an input and was trained from {low:g} to {high:g}")
        if limits != ALWAYS and low > 1 and not config.network.guidance_limits:
            raise InputError(f"guidance_limits = {limits}: outside them the scale is 1, and {name} was trained from {low:g}")
        if negative_prompt is not None:
            raise InputError(f"negative_prompt {negative_prompt!r}: {name} has learned to move away from no text, and takes only the scale")
        if weaker:
            raise InputError(f"guide_with: {name} has learned its guidance, and takes only the scale; use it without another network")
        if classifier and classifier_reference == "base":
            raise InputError(f"classifier_reference 'base': {name} has learned to move away from no text; use 'rival'")
    elif scale == 1:
        moves_from_base = classifier and classifier_reference == "base"
        if negative_prompt is not None and not moves_from_base:
            raise InputError(f"negative_prompt {negative_prompt!r} has no effect at guidance_scale 1; ask for more, such as 1.5")
        if weaker and not classifier:
            raise InputError("guide_with has no effect at guidance_scale 1; ask for more, such as 1.5")


def least_steering(config: CheckpointConfig) -> Steering:
    """No guidance, or the least that a network which takes a scale was trained for."""
    return Steering(scale=1.0 if config.guidance_range is None else config.guidance_range[0])


def codec_names(folder: Path, config: CheckpointConfig) -> set[str]:
    """Hashes that a checkpoint's VAE goes by: the name of its latents, and of the file itself, which may be in 16 bits or have a decoder
    that went on."""
    own = folder / VAE_FILE
    return {config.codec_hash, file_hash(own)} if own.is_file() else {config.codec_hash}


def check_same_latents(
    folder: Path, found: CheckpointConfig, *, codecs: set[str], text: TextConfig, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raises InputError if the network in `folder` works on other latents or hears another text encoder than the one it shall join.

    codecs: names of the codec it must have been trained with, as from `codec_names`.
    """
    if not codecs & codec_names(folder, found):
        raise InputError(f"{folder}: trained on latents of codec {found.codec_hash[:12]}, this network on those of {min(codecs)[:12]}")
    if found.text.encoder != text.encoder:
        raise InputError(f"{folder}: trained with text encoder {found.text.encoder!r}, this network with {text.encoder!r}")
    moved = max(abs(a - b) / s for a, b, s in zip(found.latent_mean, mean, std, strict=True))
    scaled = max(abs(a / b - 1) for a, b in zip(found.latent_std, std, strict=True))
    if max(moved, scaled) > SAME_LATENTS:
        apart = max(moved, scaled)
        raise InputError(f"{folder}: its latents are normalised otherwise (by {apart:.1%} of a deviation); train both on the same shards")


def check_weaker(folder: Path, found: CheckpointConfig, config: CheckpointConfig, codecs: set[str]) -> None:
    """Raises InputError unless the network in `folder` can be the reference of one of `config`'s checkpoint."""
    check_same_latents(folder, found, codecs=codecs, text=config.text, mean=config.latent_mean, std=config.latent_std)
    if found.network.interval == "none" and config.network.interval != "none":
        raise InputError(f"guide_with {folder}: it knows velocities only, and this network jumps by mean velocities; use one that does")
    if found.guidance_range is not None and found.guidance_range[0] > 1:
        raise InputError(f"guide_with {folder}: trained for guidance scales {found.guidance_range}; it must know scale 1")


def fitting_scorer(folder: Path, config: CheckpointConfig, codecs: set[str]) -> ScorerCheckpointConfig:
    """The config of the scorer in `folder`, a scorer's or a checkpoint's. codecs: as from `codec_names`.

    Raises InputError if there is none, or if it was trained for another codec or text encoder than the network of `config`.
    """
    values = read_json(folder / "config.json")
    section = values.get("scorer") if "network" in values else values
    if section is None:
        raise InputError(f"{folder}: a checkpoint without a scorer")
    found = parse(ScorerCheckpointConfig, section, str(folder / "config.json"))
    if found.codec_hash not in codecs:
        raise InputError(f"{folder}: listens to latents of codec {found.codec_hash[:12]}, this network makes those of {min(codecs)[:12]}")
    if found.text != config.text:
        raise InputError(f"{folder}: trained with text {found.text.model_dump()}, this network with {config.text.model_dump()}")
    return found


def wanted_classes(prompts: Sequence[str], classes: Sequence[str], related: Tensor | None = None) -> Tensor:
    """[B, K] True at the classes that a prompt names and those `related` [K, K] to them. Raises InputError if a prompt names none."""
    wanted = torch.tensor(labels(prompts, classes)).reshape(len(prompts), len(classes))
    for prompt, row in zip(prompts, wanted, strict=True):
        if not row.any():
            more = f", and {len(classes) - SHOWN_CLASSES} more" if len(classes) > SHOWN_CLASSES else ""
            raise InputError(f"prompt {prompt[:60]!r} names nothing that the classifier knows: {', '.join(classes[:SHOWN_CLASSES])}{more}")
    return wanted if related is None else wanted | (wanted.float() @ related.float().cpu() > 0)
