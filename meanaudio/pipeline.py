"""Text to audio: the one place where text, network, codec and sampler meet."""

from __future__ import annotations

import math
import operator
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio import DEFAULT_MODEL
from meanaudio.audio import high_pass, join, limit_peak, match_level, save_audio
from meanaudio.checkpoint import WORDS_FILE, check_sizes, find_local, read_json
from meanaudio.codec.codec import Codec, load_codec
from meanaudio.config import CheckpointConfig, parse
from meanaudio.convert.hub import find_checkpoint
from meanaudio.data.events import split_events
from meanaudio.data.shards import NULL_TEXT_FILE, read_null_text
from meanaudio.errors import InputError, Notice, OutsideKnowledge
from meanaudio.guidance import Classifier, ClassifierGuidance, Reference, within
from meanaudio.memory import keep_freed_memory
from meanaudio.models.lora import load_with_adapters
from meanaudio.models.scorer import SCORER_FILE, CaptionClassifier, Scorer, load_scorer
from meanaudio.models.tagger import load_tagger
from meanaudio.models.transformer import Transformer, load_network
from meanaudio.precision import DTYPES, computing_in, warn_if_slow
from meanaudio.ranking import best_of, candidate_seeds, check_candidates, event_seeds, outside_notice, shortened
from meanaudio.reading import Company, load_heard
from meanaudio.sampling import integrate, integrate_stochastic, invert, per_sample_noises, uniform_times
from meanaudio.steering import (
    ALWAYS,
    Steering,
    check_steering,
    check_weaker,
    codec_names,
    fitting_scorer,
    least_steering,
    steered_field,
    wanted_classes,
)
from meanaudio.text import TextEncoder, make_encoder
from meanaudio.types import TextFeatures, read_together

MIN_DURATION, MAX_DURATION = 0.01, 120.0  # seconds
MAX_PROMPT = 1000  # characters
MAX_SEED = 2**63 - 1
FAST = "fast"  # a vocoder's name: the default checkpoint's, which is a small fraction of BigVGAN's work
REMEMBERED_TEXTS = 512  # a call reads up to five texts a sound, and those that were not remembered would be read twice
SHORTEST_EVENT = 0.5  # seconds: a prompt of more sounds than there is room for, or than MOST_EVENTS, is not parted
MOST_EVENTS = 8
OVERLAP = 0.05  # seconds in which one sound of a parted prompt fades into the next


def read_checkpoint_config(folder: Path) -> CheckpointConfig:
    return parse(CheckpointConfig, read_json(folder / "config.json"), str(folder / "config.json"))


def resolve_device(device: str | None) -> torch.device:
    """The device asked for, or the best there is: cuda, mps, cpu. Raises InputError for one that does not exist here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if found.type == "meta":
        raise InputError("device 'meta' computes nothing; use cpu, cuda or mps")
    return found


def resolve_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for ("float32", "bf16"), or bf16 on CUDA and float32 elsewhere."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


@dataclass(frozen=True)
class Audio:
    """Generated sound. samples: [B, N] float32 on the CPU, peaks within 0.98. parameters: one dict a clip that makes it again: arguments
    of `generate` or `edit`, and of `from_pretrained` where they are not the default (model, lora, vocoder, dtype).

    Where candidates were ranked they also say the clip's score, and chosen_seed, which makes the clip again without its rivals; of a clip
    of several events a list, each of which makes its event, alone and in its share of the time.
    evaluations: of networks, a clip, on average; of several events each is one.
    """

    samples: Tensor
    sample_rate: int
    parameters: list[dict[str, Any]]
    evaluations: float = 0.0

    def save(self, path: str | Path, index: int = 0) -> Path:
        """Write clip `index` as wav, flac or ogg with its parameters in the file's comment."""
        return save_audio(path, self.samples[index], self.sample_rate, self.parameters[index])


class MeanAudio:
    """A loaded checkpoint. Build it with `from_pretrained`.

    dtype: precision of matrix products in text encoder, network and codec; norms, sums along the networks and the sampler's state stay
    float32. The features of the last REMEMBERED_TEXTS different texts are remembered.
    """

    def __init__(
        self, config: CheckpointConfig, network: Transformer, codec: Codec, encoder: TextEncoder, *, name: str, dtype: torch.dtype,
        null_text: TextFeatures | None = None, folder: Path | None = None, scorer: Scorer | None = None, heard: Tensor | None = None,
        loaded_with: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """heard: what is heard in outputs of the scorer's known captions (reading.Company). loaded_with: options of `from_pretrained` that
        change what is heard; they become part of every clip's parameters.
        """
        self.config, self.network, self.codec, self.encoder = config, network, codec, encoder
        self.loaded_with = dict(loaded_with or {}) | ({"dtype": "bf16"} if dtype == torch.bfloat16 else {})
        self.name, self.dtype, self.folder, self.scorer = name, dtype, folder, scorer
        self.company = None if scorer is None else Company(scorer, heard)
        self.device = next(network.parameters()).device
        self.mean = torch.tensor(config.latent_mean, device=self.device)
        self.std = torch.tensor(config.latent_std, device=self.device)
        self.null_text = None if null_text is None else self._as_trained(null_text.to(self.device))
        self._features: dict[str, TextFeatures] = {}
        self._guide: tuple[Path, Transformer, CheckpointConfig] | None = None

    @property
    def _model(self) -> str:
        """What `from_pretrained` knows the checkpoint by, whatever was added to it."""
        return self.name if self.folder is None else self.folder.name

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.codec.spec.sample_rate

    @staticmethod
    def from_pretrained(
        name_or_path: str | Path = DEFAULT_MODEL,
        device: str | None = None,
        dtype: str | None = None,
        *,
        lora: str | Path | None = None,
        vocoder: str | Path | None = None,
        compile: bool = False,
    ) -> MeanAudio:
        """Load a checkpoint: a folder, a name under checkpoints/, a published model's name (fetched and converted once), or a hub id.

        lora: the folder of adapters that were trained on this checkpoint, or "folder:scale" for more or less of them.
        vocoder: "fast", or another checkpoint whose vocoder reads the same mels, in place of this one's own.
        compile: let torch.compile make kernels for network and codec; the first clip of each length then takes minutes.
        Raises InputError if a checkpoint is unknown, incomplete, damaged, or holds weights of another network.
        """
        folder = find_checkpoint(name_or_path)
        where = resolve_device(device)
        if where.type == "cpu":
            keep_freed_memory()
        precision = resolve_dtype(dtype, where)
        warn_if_slow(precision, where)
        config = read_checkpoint_config(folder)
        finite = not check_sizes(folder)  # a converted checkpoint's weights were looked through when it was made
        encoder = make_encoder(config.text.encoder, max_tokens=config.text.max_tokens, device=str(where), folder=folder, dtype=precision)
        if lora is None:
            network = load_network(folder, config.network, dtype=precision, finite=finite)
        else:
            network = load_with_adapters(folder, config.network, lora, dtype=precision, finite=finite)
        vocoder_from = None if vocoder is None else _find_vocoder(vocoder)
        codec = load_codec(folder, vocoder_from=vocoder_from, dtype=precision, finite=finite)
        network, codec = network.to(where), codec.to(where)
        if compile:
            torch._dynamo.config.suppress_errors = True  # where no kernel can be made, the ordinary ones are used
            for part in (network, codec.vae.decoder, codec.vocoder):
                part.compile()
        null_text = read_null_text(folder) if (folder / NULL_TEXT_FILE).exists() else None
        scorer = None if config.scorer is None else load_scorer(folder, config.scorer, finite=finite).to(where)
        heard = None
        if scorer is not None and lora is None and (folder / WORDS_FILE).exists():  # what is heard is not true of it with adapters
            heard = load_heard(folder, list(scorer.known)).to(where)
        name = folder.name if lora is None else f"{folder.name} + {lora}"
        return MeanAudio(
            config, network, codec, encoder, name=name, dtype=precision, null_text=null_text, folder=folder, scorer=scorer, heard=heard,
            loaded_with={key: str(value) for key, value in (("lora", lora), ("vocoder", vocoder)) if value is not None},
        )  # fmt: skip

    # The three stages; `generate` is their composition, and a benchmark may time each.

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of each text, from memory where it was encoded before (see `forget_text`)."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._features]:
            with torch.autocast(self.device.type, enabled=False):  # what is remembered does not depend on who asked first
                features = self.encoder(new).to(self.device)
            features = self._as_trained(features)
            # padding that the network never sees would only make a text's features depend on its neighbours
            lengths = features.mask.sum(1).tolist() if self.config.network.mask_text else [features.mask.shape[1]] * len(new)
            for i, (text, length) in enumerate(zip(new, lengths, strict=True)):
                self._features[text] = TextFeatures(
                    features.sequence[i : i + 1, :length], features.pooled[i : i + 1], features.mask[i : i + 1, :length]
                )
        found = TextFeatures.cat([self._features[text] for text in texts])
        for text in list(self._features)[:-REMEMBERED_TEXTS]:
            self._features.pop(text, None)
        return found

    def _as_trained(self, text: TextFeatures) -> TextFeatures:
        """A network that sees padding always sees as much of it."""
        return text if self.config.network.mask_text else text.pad_to(self.config.text.max_tokens)

    def forget_text(self) -> None:
        """Encode every text anew from now on: for measurements, and for what must not depend, in the last bit, on what was asked before."""
        self._features.clear()

    @torch.inference_mode()
    def sample_latents(
        self, text: TextFeatures, seeds: Sequence[int], num_latents: int, *, steps: int = 1, steering: Steering | None = None,
        stochastic: bool = False,
    ) -> Tensor:  # fmt: skip
        """Latents [B, num_latents, C] for B texts. steering: guidance; none if left out. stochastic: fresh noise at every step."""
        noises = per_sample_noises((num_latents, self.config.network.latent_dim), seeds, self.device)
        times, mean = uniform_times(steps), self.config.network.interval != "none"
        with self.precision():
            field = steered_field(self.network, self.config, text, steering or Steering())
            if stochastic:
                normalised = integrate_stochastic(field, noises, times, mean=mean)
            else:
                normalised = integrate(field, next(noises), times, mean=mean)
        return normalised.float() * self.std + self.mean

    @torch.inference_mode()
    def move_latents(
        self, latents: Tensor, source: TextFeatures, text: TextFeatures, *, strength: float, steps: int, iterations: int, steering: Steering
    ) -> Tensor:
        """Latents [B, L, C] up to the noise level `strength` as `source`, and down again as `text`, steered."""
        times, mean = uniform_times(steps, strength), self.config.network.interval != "none"
        with self.precision():
            unguided = replace(least_steering(self.config), evaluations=steering.evaluations)
            up = steered_field(self.network, self.config, source, unguided)
            noise = invert(up, (latents - self.mean) / self.std, times, mean=mean, iterations=iterations)
            normalised = integrate(steered_field(self.network, self.config, text, steering), noise, times, mean=mean)
        return normalised.float() * self.std + self.mean

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """audio [B, N] in [-1, 1] -> latents [B, L, C]: the mean of the codec's posterior."""
        with self.precision():
            return self.codec.encode(torch.as_tensor(audio).to(self.device)).mean.float()

    @torch.inference_mode()
    def decode(self, latents: Tensor, num_samples: int) -> Tensor:
        """latents [B, L, C] -> audio [B, num_samples], as loud as it comes."""
        with self.precision():
            audio = self.codec.decode(latents)
        return audio[:, :num_samples].float()

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        duration: float | None = None,
        steps: int = 1,
        guidance_scale: float = 1.0,
        negative_prompt: str | None = None,
        guidance_limits: tuple[float, float] = ALWAYS,
        guide_with: str | Path | None = None,
        classifier: str | Path | Classifier | None = None,
        classifier_scale: float = 3.0,
        classifier_reference: Reference = "base",
        stochastic: bool = False,
        seed: int | None = None,
        num_candidates: int = 1,
        keep: int = 1,
        by_event: bool | None = None,
        known_captions: int | None = None,
        level_db: float | None = -18.0,
    ) -> Audio:
        """One clip a prompt, exactly `duration` seconds (default: the length the checkpoint was trained at).

        steps: solver steps, each one network evaluation (two with guidance). guidance_scale: 1 is none; an input of the network, at no
        more evaluations, for a checkpoint that takes it (`config.guidance_range`). negative_prompt: what to move away from in place of no
        text. guidance_limits: guide for times t within them only; t = 1 is noise.
        guide_with: a weaker or earlier checkpoint that is moved away from; it hears negative_prompt if there is one, else the prompt.
        classifier: folder of a tagger or a scorer, a checkpoint with a scorer, or a Classifier; where a clip sounds like another of its
        classes, it is guided by up to `classifier_scale` (see guidance.classifier_guided), alone or with either of the others.
        classifier_reference: away from what guidance moves away from ("base"), or from the class that it is mistaken for ("rival").
        stochastic: fresh noise at every step but the last. seed: clip k is drawn from seed + k, and is the same alone or in a batch; drawn
        at random if None (see Audio.parameters).
        num_candidates: so many clips are drawn for each prompt, and the `keep` that fit it best by the checkpoint's scorer are decoded, the
        best first. Candidate j of clip k is drawn from seed + k + 2654435769 j.
        by_event: what a prompt says is heard one after another ("a dog barks, then a door slams"; data/events.py) is generated sound by
        sound, each in its share of the time and at its own level, and joined; None: as the checkpoint does (`config.by_event`). Event j is
        drawn from the clip's seed + 1779033703 j, and candidates are ranked event by event.
        known_captions: each text is read together with up to so many captions that the checkpoint was taught and that say nearly the same
        (reading.py); the checkpoint's own number if None, 0 for the text alone. Candidates are ranked by the text alone.
        level_db: the loudest 400 ms of each clip, by event of each sound, are brought to this level in dBFS, peaks permitting; None leaves
        levels as they come. Below 20 Hz nothing is left.
        Raises InputError for an empty or overlong prompt, for numbers out of range, and for guidance or candidates that this checkpoint
        cannot follow; warns (OutsideKnowledge) of prompts unlike anything that a checkpoint with a scorer was taught.
        """
        prompts = _prompts(prompts)
        duration = self.config.seconds if duration is None else _real("duration", duration)
        steps, num_candidates, keep = _whole("steps", steps), _whole("num_candidates", num_candidates), _whole("keep", keep)
        guidance_scale, classifier_scale = _real("guidance_scale", guidance_scale), _real("classifier_scale", classifier_scale)
        guidance_limits = (_real("guidance_limits", guidance_limits[0]), _real("guidance_limits", guidance_limits[1]))
        seed = None if seed is None else _whole("seed", seed)
        level_db = None if level_db is None else _real("level_db", level_db)
        known_captions = None if known_captions is None else _whole("known_captions", known_captions)
        _check(prompts, duration, negative_prompt, seed, level_db)
        check_candidates(self.name, self.scorer is not None, num_candidates, keep)
        parted = self.config.by_event if by_event is None else by_event
        told_apart = [events_of(prompt, duration, by_event=parted) for prompt in prompts]
        events = [each for each, _ in told_apart]
        if unparted := [prompt for prompt, (_, crowded) in zip(prompts, told_apart, strict=True) if crowded]:
            which = shortened(unparted[0]) + (f" and {len(unparted) - 1} more" if len(unparted) > 1 else "")
            room = f"at most {MOST_EVENTS} sounds of {SHORTEST_EVENT:g} s or more are made one by one"
            warnings.warn(f"made as a whole: {which}; {room}", Notice, stacklevel=2)
        if (longest := duration / min(map(len, events))) > 1.5 * self.config.seconds:
            warnings.warn(f"{self.name} was trained on {self.config.seconds:g} s; {longest:g} s may drift or repeat", stacklevel=2)
        first = secrets.randbelow(2**31) if seed is None else seed
        texts = [event for each in events for event in each]
        seeds = candidate_seeds(event_seeds(first, [len(each) for each in events]), num_candidates)
        asked = [event for event in texts for _ in range(num_candidates)]
        text, steering = self.steer(
            asked, guidance_scale=guidance_scale, negative_prompt=negative_prompt,
            guidance_limits=guidance_limits, guide_with=guide_with, classifier=classifier, classifier_scale=classifier_scale,
            classifier_reference=classifier_reference, known_captions=known_captions,
        )  # fmt: skip
        own = text if num_candidates == 1 else self.encode_text(asked)
        guides = guidance_scale != 1 or classifier is not None
        if guides and not within(uniform_times(steps)[:-1], guidance_limits).any():
            raise InputError(f"guidance_limits = {guidance_limits}: none of {steps} step(s) begins within them, so nothing would be guided")
        self._tell_what_is_outside(texts)
        samples = torch.empty(len(prompts), keep, self.codec.spec.num_samples(duration))
        ranked = list[list[dict[str, Any]]]([[] for _ in prompts])
        rows = torch.arange(len(seeds)).split([len(each) * num_candidates for each in events])
        for count in sorted(set(map(len, events))):  # clips of as many sounds, which are equally long, at once
            clips = [k for k, each in enumerate(events) if len(each) == count]
            some = torch.cat([rows[k] for k in clips]).tolist()
            samples[clips], told = self._clips(
                text[some], own[some], steering.of(some), [seeds[i] for i in some], samples.shape[-1], events=count,
                candidates=num_candidates, keep=keep, steps=steps, stochastic=stochastic, level_db=level_db,
            )  # fmt: skip
            for k, each in zip(clips, told, strict=True):
                ranked[k] = each
        shared = {"model": self._model, "duration": duration, "steps": steps, "guidance_scale": guidance_scale, "level_db": level_db}
        options: dict[str, Any] = {
            "negative_prompt": negative_prompt, "guidance_limits": None if tuple(guidance_limits) == ALWAYS else list(guidance_limits),
            "guide_with": guide_with and str(guide_with), "stochastic": stochastic or None,
            "by_event": None if parted == self.config.by_event else parted,
            "known_captions": known_captions,
        }  # fmt: skip
        shared |= {key: value for key, value in options.items() if value is not None} | self.loaded_with
        if isinstance(classifier, str | Path):
            shared |= {"classifier": str(classifier), "classifier_scale": classifier_scale, "classifier_reference": classifier_reference}
        parameters = [
            {
                "prompt": prompt,
                "seed": first + k,
                **shared,
                **({"events": events[k]} if len(events[k]) > 1 else {}),
                **each,
            }
            for k, prompt in enumerate(prompts)
            for each in ranked[k]
        ]
        return Audio(samples.flatten(0, 1), self.sample_rate, parameters, steering.evaluations.clips / len(parameters))

    @torch.inference_mode()
    def score(self, latents: Tensor, text: TextFeatures) -> Tensor:
        """How well each clip [B, L, C] fits its own text, from -1 to 1: [B]. Raises InputError if the checkpoint has no scorer."""
        if self.scorer is None:
            raise InputError(f"{self.name} has no scorer (docs/scorer.md)")
        return self.scorer(latents, text.pooled.float())

    def _clips(
        self, text: TextFeatures, own: TextFeatures, steering: Steering, seeds: Sequence[int], num_samples: int, *, events: int,
        candidates: int, keep: int, steps: int, stochastic: bool, level_db: float | None,
    ) -> tuple[Tensor, list[list[dict[str, Any]]]]:  # fmt: skip
        """Clips of `events` sounds each [B, keep, num_samples], and what their parameters say of how they were chosen.

        text, own, seeds: of B * events * candidates sounds, clip by clip and event by event; own is the text by itself, for the scorer.
        """
        overlap = round(OVERLAP * self.sample_rate)
        length = math.ceil((num_samples + (events - 1) * overlap) / events)
        num_latents = self.codec.spec.covering_latents(length / self.sample_rate)
        latents = self.sample_latents(text, seeds, num_latents, steps=steps, steering=steering, stochastic=stochastic)
        told = list[list[dict[str, Any]]]([[{}] for _ in range(len(seeds) // events)])
        if candidates > 1:
            scores = self.score(latents, own)
            best = torch.tensor(best_of(scores, candidates, keep)).unflatten(0, (-1, events, keep))
            latents = latents[best.flatten().to(latents.device)]
            told = [
                [
                    {
                        "num_candidates": candidates, **({"keep": keep, "rank": rank} if keep > 1 else {}),
                        "chosen_seed": seeds[places[0]] if events == 1 else [seeds[i] for i in places],
                        "score": round(scores[places].mean().item(), 4),
                    }
                    for rank, places in enumerate(clip.T.tolist(), 1)
                ]
                for clip in best
            ]  # fmt: skip
        sounds = self._sound(latents, length, level_db).unflatten(0, (-1, events, keep))
        return limit_peak(join(sounds.unbind(1), overlap)[..., :num_samples]), told

    def _tell_what_is_outside(self, prompts: Sequence[str]) -> None:
        if self.scorer is not None and (notice := outside_notice(self.name, self.scorer, prompts, self.encode_text(prompts).pooled)):
            warnings.warn(notice, OutsideKnowledge, stacklevel=3)

    def edit(
        self,
        audio: Tensor,
        prompts: str | Sequence[str],
        *,
        source: str | None = None,
        strength: float = 0.7,
        steps: int = 8,
        iterations: int = 2,
        guidance_scale: float = 1.0,
        negative_prompt: str | None = None,
        level_db: float | None = -18.0,
    ) -> Audio:
        """A recording [N] at `sample_rate` as each of the prompts would have it: encoded up to the noise level `strength` as what it is,
        and decoded from there as something else. Nothing is drawn at random.

        source: what the recording is; no text if None. strength: 0 (excluded) keeps all, 1 keeps only what the noise remembers. steps: each
        way; iterations: evaluations a step on the way up (see sampling.invert). guidance is for the way down, as in `generate`.
        """
        prompts, audio = _prompts(prompts), torch.as_tensor(audio)
        if audio.ndim != 1:
            raise InputError(f"expected one recording [N], got {tuple(audio.shape)}")
        if not audio.is_floating_point():
            raise InputError(f"a recording of {str(audio.dtype).removeprefix('torch.')}: must be floating point, in [-1, 1]")
        if not (audio.abs() <= 1).all():  # nor NaN
            raise InputError(f"a recording with samples of {audio.abs().max().item():g}: must be in [-1, 1]")
        audio = audio.float()
        duration = len(audio) / self.sample_rate
        _check([*prompts, *([] if source is None else [source])], duration, negative_prompt, None, level_db)
        if not 0 < strength <= 1:
            raise InputError(f"strength = {strength}: must be above 0 and at most 1")
        text, steering = self.steer(prompts, guidance_scale=guidance_scale, negative_prompt=negative_prompt, known_captions=0)
        self._tell_what_is_outside(prompts)
        before = self.null_text if source is None and self.null_text is not None else self.encode_text([source or ""])
        latents = self.encode(audio[None].to(self.device)).expand(len(prompts), -1, -1)
        moved = self.move_latents(
            latents, before.expand(len(prompts)), text, strength=strength, steps=steps, iterations=iterations, steering=steering
        )
        shared = self.loaded_with | {"model": self._model, "source": source, "strength": strength, "steps": steps, "iterations": iterations}
        shared |= {"guidance_scale": guidance_scale, "level_db": level_db}
        shared |= {"negative_prompt": negative_prompt} if negative_prompt else {}
        parameters = [{"prompt": prompt, **shared} for prompt in prompts]
        return Audio(self._sound(moved, len(audio), level_db), self.sample_rate, parameters, steering.evaluations.clips / len(prompts))

    def steer(
        self, prompts: Sequence[str], *, guidance_scale: float = 1.0, negative_prompt: str | None = None,
        guidance_limits: tuple[float, float] = ALWAYS, guide_with: str | Path | None = None,
        classifier: str | Path | Classifier | None = None, classifier_scale: float = 3.0, classifier_reference: Reference = "base",
        known_captions: int | None = None,
    ) -> tuple[TextFeatures, Steering]:  # fmt: skip
        """(what the network reads for each prompt, the options of `generate` as a Steering).

        Raises InputError for what this checkpoint cannot follow.
        """
        limits = (float(guidance_limits[0]), float(guidance_limits[1]))
        check_steering(
            self.name, self.config, scale=guidance_scale, limits=limits, negative_prompt=negative_prompt, weaker=guide_with is not None,
            classifier=classifier is not None, classifier_reference=classifier_reference,
        )  # fmt: skip
        weaker = None if guide_with is None else self._weaker(guide_with)
        settings = ClassifierGuidance(scale=classifier_scale, reference=classifier_reference)
        hear = self._classifier(classifier) if isinstance(classifier, str | Path) else classifier
        moves = guidance_scale != 1 or (hear is not None and classifier_reference == "base")
        from_null = negative_prompt is None and weaker is None and moves and self.config.guidance_range is None
        negative = [negative_prompt] if negative_prompt is not None else [""] if from_null and self.null_text is None else []
        features = self.encode_text([*prompts, *negative])
        own, away = features[: len(prompts)], features[-1:] if negative else self.null_text if from_null else None
        text = self._in_company(prompts, own, self.config.known_captions if known_captions is None else known_captions)
        steering = Steering(scale=guidance_scale, limits=limits, away=away, weaker=weaker, settings=settings)
        if hear is None:
            return text, steering

        if isinstance(hear, CaptionClassifier):
            wanted = hear.wanted(own.pooled)
        else:
            wanted = wanted_classes(prompts, hear.classes, hear.related).to(self.device)
        return text, replace(steering, classifier=hear, wanted=wanted, class_text=lambda k: self.encode_text([hear.classes[i] for i in k]))

    @torch.inference_mode()
    def _in_company(self, prompts: Sequence[str], text: TextFeatures, count: int) -> TextFeatures:
        """The text of each prompt, read together with up to `count` known captions that say nearly the same."""
        if count < 0:
            raise InputError(f"known_captions = {count}: must be 0 or more")
        if count == 0:
            return text
        if self.company is None:
            raise InputError(f"known_captions = {count}: {self.name} has no scorer, which says what captions it knows (docs/scorer.md)")
        if not self.config.network.mask_text:
            raise InputError(f"known_captions = {count}: the network of {self.name} reads padding, which leaves no room for them")
        chosen = self.company(prompts, text.pooled, count)
        captions = list(dict.fromkeys(caption for row in chosen for caption in row))
        if not captions:
            return text
        read, places = self.encode_text(captions), {caption: i for i, caption in enumerate(captions)}
        return TextFeatures.cat(
            [read_together(TextFeatures.cat([text[i : i + 1], read[[places[c] for c in row]]])) for i, row in enumerate(chosen)]
        )

    def _classifier(self, name_or_path: str | Path) -> Classifier:
        """A tagger, or a scorer by the captions it was taught."""
        folder = find_local(name_or_path) or Path(name_or_path)
        if (folder / SCORER_FILE).is_file():
            scorer = load_scorer(folder, fitting_scorer(folder, self.config, self._codecs())).to(self.device)
            return CaptionClassifier(scorer)
        return load_tagger(folder, self._codecs()).to(self.device)

    def _weaker(self, name_or_path: str | Path) -> tuple[Transformer, CheckpointConfig]:
        """The network of another checkpoint, to be guided with; the last one is kept."""
        folder = find_checkpoint(name_or_path)
        if self._guide is None or self._guide[0] != folder:
            config = read_checkpoint_config(folder)
            check_weaker(folder, config, self.config, self._codecs())
            self._guide = folder, load_network(folder, config.network, dtype=self.dtype).to(self.device), config
        return self._guide[1:]

    def _codecs(self) -> set[str]:
        return {self.config.codec_hash} if self.folder is None else codec_names(self.folder, self.config)

    def _sound(self, latents: Tensor, num_samples: int, level_db: float | None) -> Tensor:
        """Decoded, freed of what nobody hears, brought to its level and kept from clipping: [B, num_samples]."""
        samples = high_pass(self.decode(latents, num_samples).cpu(), self.sample_rate)
        if not torch.isfinite(samples).all():
            raise InputError("what was made holds NaN or infinite samples: where it was guided, a lower guidance_scale may help")
        if level_db is not None:
            samples = match_level(samples, level_db, self.sample_rate)
        return limit_peak(samples)

    def precision(self) -> torch.autocast:
        """The context that `dtype` asks for: the two inner stages need it where they are called by hand."""
        return computing_in(self.dtype, self.device)


def _find_vocoder(name_or_path: str | Path) -> Path:
    """The folder of the checkpoint whose vocoder is meant."""
    try:
        return find_checkpoint(DEFAULT_MODEL if name_or_path == FAST else name_or_path)
    except InputError as error:
        raise InputError(f"vocoder: {error}; {FAST!r} is that of {DEFAULT_MODEL}") from None


def events_of(prompt: str, duration: float, *, by_event: bool) -> tuple[list[str], bool]:
    """The sounds of a prompt that are made one by one, and whether it tells of more than there is room for: it is made whole then."""
    heard = split_events(prompt) if by_event else [prompt]
    crowded = 1 < len(heard) > min(MOST_EVENTS, duration / SHORTEST_EVENT)
    return [prompt] if crowded else heard, crowded


def _prompts(given: str | Sequence[str]) -> list[str]:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Iterable):
        raise InputError(f"prompts = {given!r}: must be a sentence, or several")
    prompts = list(given)
    if others := [prompt for prompt in prompts if not isinstance(prompt, str)]:
        raise InputError(f"prompt {others[0]!r}: must be a sentence")
    return prompts


def _whole(name: str, value: Any) -> int:
    """As an int, numpy's and torch's too."""
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} = {value!r}: must be a whole number") from None


def _real(name: str, value: Any) -> float:
    """As a float, numpy's and torch's too."""
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise InputError(f"{name} = {value!r}: must be a number")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise InputError if there is none, or one that says nothing or too much."""
    if not prompts:
        raise InputError("no prompt given")
    for prompt in prompts:
        if not prompt.strip():
            raise InputError(f"empty prompt {prompt!r}: describe a sound, as in 'a dog barks'")
        if len(prompt) > MAX_PROMPT:
            raise InputError(f"prompt of {len(prompt)} characters ({prompt[:30]!r}...): at most {MAX_PROMPT}")


def _check(prompts: list[str], duration: float, negative_prompt: str | None, seed: int | None, level_db: float | None) -> None:
    check_prompts(prompts)
    if negative_prompt is not None:
        check_prompts([negative_prompt])
    if not MIN_DURATION <= duration <= MAX_DURATION:
        raise InputError(f"duration = {duration} s: must be from {MIN_DURATION:g} to {MAX_DURATION:g}")
    if level_db is not None and not -80 <= level_db <= 0:
        raise InputError(f"level_db = {level_db}: must be from -80 to 0 dBFS, or None")
    if seed is not None and not 0 <= seed <= MAX_SEED - len(prompts):
        raise InputError(f"seed = {seed}: must be from 0 to {MAX_SEED - len(prompts)}")
