"""Text to audio: the one place where text, network, codec and sampler meet."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanaudio import DEFAULT_MODEL
from meanaudio.audio import limit_peak, match_level, save_audio
from meanaudio.checkpoint import check_sizes, read_json
from meanaudio.codec.codec import Codec, load_codec
from meanaudio.config import CheckpointConfig, TextConfig, parse
from meanaudio.convert.hub import find_checkpoint
from meanaudio.data.shards import NULL_TEXT_FILE, read_null_text
from meanaudio.errors import InputError
from meanaudio.guidance import guided
from meanaudio.models.transformer import Transformer, load_network
from meanaudio.precision import DTYPES, computing_in
from meanaudio.sampling import integrate, per_sample_noise, uniform_times
from meanaudio.text import TextEncoder, make_encoder
from meanaudio.types import TextFeatures

MIN_DURATION, MAX_DURATION = 0.01, 120.0  # seconds
MAX_PROMPT = 1000  # characters
MAX_SEED = 2**63 - 1
FAST = "fast"  # a vocoder's name: the default checkpoint's, which is a small fraction of BigVGAN's work
REMEMBERED_TEXTS = 64
SAME_LATENTS = 0.01  # of a standard deviation: how far two networks' normalisations may be apart to work together


def read_checkpoint_config(folder: Path) -> CheckpointConfig:
    return parse(CheckpointConfig, read_json(folder / "config.json"), str(folder / "config.json"))


def check_same_latents(
    folder: Path, found: CheckpointConfig, *, codec_hash: str, text: TextConfig, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raises InputError if the network in `folder` works on other latents or hears another text encoder than the one it shall join."""
    if found.codec_hash != codec_hash:
        raise InputError(f"{folder}: trained on latents of codec {found.codec_hash[:12]}, this network on those of {codec_hash[:12]}")
    if found.text.encoder != text.encoder:
        raise InputError(f"{folder}: trained with text encoder {found.text.encoder!r}, this network with {text.encoder!r}")
    moved = max(abs(a - b) / s for a, b, s in zip(found.latent_mean, mean, std, strict=True))
    scaled = max(abs(a / b - 1) for a, b in zip(found.latent_std, std, strict=True))
    if max(moved, scaled) > SAME_LATENTS:
        raise InputError(
            f"{folder}: its latents are normalised otherwise (by {max(moved, scaled):.1%} of a deviation); train on the same shards"
        )


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
    """Generated sound. samples: [B, N] float32 on the CPU, peaks within 0.98. parameters: one dict a clip that makes it again."""

    samples: Tensor
    sample_rate: int
    parameters: list[dict[str, Any]]

    def save(self, path: str | Path, index: int = 0) -> Path:
        """Write clip `index` as wav, flac or ogg with its parameters in the file's comment."""
        return save_audio(path, self.samples[index], self.sample_rate, self.parameters[index])


class MeanAudio:
    """A loaded checkpoint. Build it with `from_pretrained`.

    dtype: precision of matrix products in text encoder, network and codec; norms, sums along the networks and the sampler's state stay
    float32. The features of the last 64 different texts are remembered.
    """

    def __init__(
        self, config: CheckpointConfig, network: Transformer, codec: Codec, encoder: TextEncoder, *, name: str, dtype: torch.dtype,
        null_text: TextFeatures | None = None,
    ) -> None:  # fmt: skip
        self.config, self.network, self.codec, self.encoder = config, network, codec, encoder
        self.name, self.dtype = name, dtype
        self.device = next(network.parameters()).device
        self.mean = torch.tensor(config.latent_mean, device=self.device)
        self.std = torch.tensor(config.latent_std, device=self.device)
        self.null_text = None if null_text is None else null_text.to(self.device)
        self._features: dict[str, TextFeatures] = {}

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
        vocoder: str | Path | None = None,
        compile: bool = False,
    ) -> MeanAudio:
        """Load a checkpoint: a folder, a name under checkpoints/, a published model's name (fetched and converted once), or a hub id.

        vocoder: "fast", or another checkpoint whose vocoder reads the same mels, in place of this one's own.
        compile: let torch.compile make kernels for network and codec; the first clip of each length then takes minutes.
        Raises InputError if a checkpoint is unknown, incomplete, damaged, or holds weights of another network.
        """
        folder = find_checkpoint(name_or_path)
        where = resolve_device(device)
        precision = resolve_dtype(dtype, where)
        config = read_checkpoint_config(folder)
        finite = not check_sizes(folder)  # a converted checkpoint's weights were looked through when it was made
        encoder = make_encoder(config.text.encoder, max_tokens=config.text.max_tokens, device=str(where), folder=folder, dtype=precision)
        network = load_network(folder, config.network, dtype=precision, finite=finite)
        vocoder_from = None if vocoder is None else find_checkpoint(DEFAULT_MODEL if vocoder == FAST else vocoder)
        codec = load_codec(folder, vocoder_from=vocoder_from, dtype=precision, finite=finite)
        network, codec = network.to(where), codec.to(where)
        if compile:
            torch._dynamo.config.suppress_errors = True  # where no kernel can be made, the ordinary ones are used
            for part in (network, codec.vae.decoder, codec.vocoder):
                part.compile()
        null_text = read_null_text(folder) if (folder / NULL_TEXT_FILE).exists() else None
        return MeanAudio(config, network, codec, encoder, name=folder.name, dtype=precision, null_text=null_text)

    # The three stages; `generate` is their composition, and a benchmark may time each.

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of each text, from memory where it was encoded before (see `forget_text`)."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._features]:
            features = self.encoder(new).to(self.device)
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

    def forget_text(self) -> None:
        """Encode every text anew from now on; for measurements."""
        self._features.clear()

    @torch.inference_mode()
    def sample_latents(
        self, text: TextFeatures, seeds: Sequence[int], num_latents: int, *, steps: int = 1, guidance_scale: float = 1.0,
        reference: TextFeatures | None = None,
    ) -> Tensor:  # fmt: skip
        """Latents [B, num_latents, C] for B texts. reference: text features to move away from, one row or B, where the scale is not 1."""
        noise = per_sample_noise((num_latents, self.config.network.latent_dim), seeds, self.device)
        with self.precision():
            field = self.network.field(self.network.condition(text))
            if guidance_scale != 1:
                if reference is None:
                    raise InputError(f"guidance_scale = {guidance_scale} needs the features of a reference text")
                away = self.network.field(self.network.condition(reference.expand(len(text))))
                field = guided(field, away, guidance_scale)
            normalised = integrate(field, noise, uniform_times(steps), mean=self.config.network.interval != "none")
        return normalised.float() * self.std + self.mean

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
        seed: int | None = None,
        level_db: float | None = -18.0,
    ) -> Audio:
        """One clip a prompt, exactly `duration` seconds (default: the length the checkpoint was trained at).

        steps: network evaluations (twice as many with guidance). guidance_scale: 1 is none; a checkpoint whose training folded guidance
        in needs none. negative_prompt: what to move away from, with a guidance_scale above 1.
        seed: clip k is drawn from seed + k, and is the same alone or in a batch; drawn at random if None (see Audio.parameters).
        level_db: each clip's loudest 400 ms is brought to this level in dBFS, peaks permitting; None leaves levels as they come.
        Raises InputError for an empty or overlong prompt and for numbers out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        duration = self.config.seconds if duration is None else duration
        _check(prompts, duration, guidance_scale, negative_prompt, seed, level_db)
        if duration > 1.5 * self.config.seconds:
            warnings.warn(f"{self.name} was trained on {self.config.seconds:g} s; {duration:g} s may drift or repeat", stacklevel=2)
        first = secrets.randbelow(2**31) if seed is None else seed
        seeds = [first + k for k in range(len(prompts))]
        guiding = guidance_scale != 1
        away = [negative_prompt or ""] if guiding and (negative_prompt or self.null_text is None) else []
        features = self.encode_text([*prompts, *away])
        reference = features[len(prompts) :] if away else self.null_text
        latents = self.sample_latents(
            features[: len(prompts)], seeds, self.codec.spec.covering_latents(duration), steps=steps,
            guidance_scale=guidance_scale, reference=reference if guiding else None,
        )  # fmt: skip
        samples = self.decode(latents, self.codec.spec.num_samples(duration)).cpu()
        if level_db is not None:
            samples = match_level(samples, level_db, self.sample_rate)
        samples = limit_peak(samples)
        shared = {"model": self.name, "duration": duration, "steps": steps, "guidance_scale": guidance_scale, "level_db": level_db}
        shared |= {"negative_prompt": negative_prompt} if negative_prompt else {}
        return Audio(samples, self.sample_rate, [{"prompt": p, "seed": s, **shared} for p, s in zip(prompts, seeds, strict=True)])

    def precision(self) -> torch.autocast:
        """The context that `dtype` asks for: the two inner stages need it where they are called by hand."""
        return computing_in(self.dtype, self.device)


def _check(
    prompts: list[str], duration: float, guidance_scale: float, negative_prompt: str | None, seed: int | None, level_db: float | None
) -> None:
    if not prompts:
        raise InputError("no prompt given")
    for prompt in [*prompts, *([negative_prompt] if negative_prompt is not None else [])]:
        if not prompt.strip():
            raise InputError(f"empty prompt {prompt!r}: describe a sound, as in 'rain on a tin roof'")
        if len(prompt) > MAX_PROMPT:
            raise InputError(f"prompt of {len(prompt)} characters ({prompt[:30]!r}...): at most {MAX_PROMPT}")
    if not MIN_DURATION <= duration <= MAX_DURATION:
        raise InputError(f"duration = {duration} s: must be from {MIN_DURATION:g} to {MAX_DURATION:g}")
    if not 1 <= guidance_scale <= 100:
        raise InputError(f"guidance_scale = {guidance_scale}: must be from 1 (none) to 100")
    if negative_prompt is not None and guidance_scale == 1:
        raise InputError(f"negative_prompt {negative_prompt!r} has no effect at guidance_scale 1; ask for more, such as 2")
    if level_db is not None and not -80 <= level_db <= 0:
        raise InputError(f"level_db = {level_db}: must be from -80 to 0 dBFS, or None")
    if seed is not None and not 0 <= seed <= MAX_SEED - len(prompts):
        raise InputError(f"seed = {seed}: must be from 0 to {MAX_SEED - len(prompts)}")
