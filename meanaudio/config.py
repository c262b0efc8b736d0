"""Every setting of the project as frozen models, read from YAML.

A config file may state `extends: other.yaml` and then only its difference. `a.b=value` overrides come last.
An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from meanaudio.audio import AudioSpec
from meanaudio.errors import InputError


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# ---------------------------------------------------------------- networks


class MelConfig(Config):
    """Log-mel definition. The defaults are the 16 kHz release's: see codec/mel.py."""

    sample_rate: int = Field(16000, gt=0)
    n_fft: int = Field(1024, gt=0)
    hop_length: int = Field(256, gt=0)
    win_length: int = Field(1024, gt=0)
    n_mels: int = Field(80, gt=0)
    f_min: float = Field(0.0, ge=0)
    f_max: float = Field(8000.0, gt=0)


class VAEConfig(Config):
    """1-D VAE over log-mel frames. strides: one temporal stride a level; their product is the mel frames a latent.

    kind: "linear_conv" has a linear map beside the convolutions, started at the data's principal components.
    """

    kind: Literal["conv", "linear_conv"] = "conv"
    latent_dim: int = Field(32, gt=0)
    width: int = Field(256, gt=0)
    blocks: int = Field(2, gt=0)
    strides: tuple[int, ...] = (2, 2)

    @property
    def frames_per_latent(self) -> int:
        return math.prod(self.strides)


class ReleaseVAEConfig(Config):
    """The release's 1-D mel VAE; see codec/release_vae.py. width times each multiplier: channels of a level."""

    kind: Literal["release"] = "release"
    latent_dim: int = Field(20, gt=0)
    width: int = Field(384, gt=0)
    multipliers: tuple[int, ...] = Field((1, 2, 4), min_length=2)
    blocks: int = Field(2, gt=0)

    @property
    def frames_per_latent(self) -> int:
        return 2


class VocoderConfig(Config):
    """Vocos-style vocoder: ConvNeXt blocks and an inverse STFT. corrections: how often its output is brought nearer to the mel."""

    kind: Literal["vocos"] = "vocos"
    width: int = Field(384, gt=0)
    intermediate: int = Field(1152, gt=0)
    blocks: int = Field(8, gt=0)
    n_fft: int = Field(1024, gt=0)
    corrections: int = Field(0, ge=0, le=16)


class BigVGANConfig(Config):
    """BigVGAN; see codec/bigvgan.py. The defaults are the release's; the product of `rates` is the mel's hop_length."""

    kind: Literal["bigvgan"] = "bigvgan"
    width: int = Field(1536, gt=0)
    rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    kernels: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    block_kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)

    @model_validator(mode="after")
    def _rates_fit(self):
        if len(self.rates) != len(self.kernels) or any(k < r or (k - r) % 2 for r, k in zip(self.rates, self.kernels, strict=False)):
            raise ValueError(f"kernels {self.kernels} must be the rates {self.rates} plus an even number each")
        if self.width % 2 ** len(self.rates):
            raise ValueError(f"width {self.width} must be a multiple of {2 ** len(self.rates)}: it is halved at each rate")
        return self


class CodecConfig(Config):
    """`kind` says which VAE and which vocoder; a section without it is of the first kind.

    texture: deviation, in log10 units, of the noise that decoded mels get before the vocoder; see codec/texture.py.
    """

    mel: MelConfig = MelConfig()
    vae: VAEConfig | ReleaseVAEConfig = Field(VAEConfig(), discriminator="kind")
    vocoder: VocoderConfig | BigVGANConfig = Field(VocoderConfig(), discriminator="kind")
    texture: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _first_kinds(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kinds = {"vae": "conv", "vocoder": "vocos"}
        return {k: {"kind": kinds[k], **v} if k in kinds and isinstance(v, dict) else v for k, v in values.items()}

    @model_validator(mode="after")
    def _vocoder_fits(self):
        if isinstance(self.vocoder, BigVGANConfig) and math.prod(self.vocoder.rates) != self.mel.hop_length:
            raise ValueError(f"the vocoder's rates {self.vocoder.rates} must multiply to the mel's hop_length {self.mel.hop_length}")
        return self

    def audio_spec(self) -> AudioSpec:
        return AudioSpec(self.mel.sample_rate, self.mel.hop_length, self.vae.frames_per_latent)


class TextConfig(Config):
    """Text encoder by name; see text/__init__.py for the table."""

    encoder: str = "minilm"
    max_tokens: int = Field(64, gt=2)


# Sizes of the transformer by name. s and l are the paper's.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"width": 32, "num_heads": 2, "joint_depth": 1, "single_depth": 1},
    "mini": {"width": 128, "num_heads": 2, "joint_depth": 2, "single_depth": 4},
    "small": {"width": 256, "num_heads": 4, "joint_depth": 2, "single_depth": 6},
    "s": {"width": 448, "num_heads": 7, "joint_depth": 4, "single_depth": 8},
    "l": {"width": 896, "num_heads": 14, "joint_depth": 4, "single_depth": 8},
}


class NetworkConfig(Config):
    """The transformer. A `preset` (see PRESETS) states width, heads and depths; what is stated beside it wins.

    preconditioned: only what a normal distribution of the latents does not explain is learned (docs/training.md).
    """

    latent_dim: int = Field(32, gt=0)
    sequence_dim: int = Field(384, gt=0)
    pooled_dim: int = Field(384, gt=0)
    width: int = Field(256, gt=0)
    num_heads: int = Field(4, gt=0)
    joint_depth: int = Field(2, ge=1)
    single_depth: int = Field(4, ge=0)
    interval: Literal["none", "absolute", "relative", "decoupled"] = "relative"
    guidance_embedding: bool = False
    guidance_limits: bool = False
    mask_text: bool = True
    preconditioned: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "preset" not in values:
            return values
        values = dict(values)
        preset = values.pop("preset")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"preset {preset!r} must be one of {', '.join(PRESETS)}")
        return {**PRESETS[preset], **values}

    @model_validator(mode="after")
    def _heads_divide_width(self):
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of num_heads {self.num_heads}")
        if self.guidance_limits and not self.guidance_embedding:
            raise ValueError("guidance_limits needs guidance_embedding")
        return self


# ---------------------------------------------------------------- objectives


class ScheduleConfig(Config):
    """A value over training progress in [0, 1]: `start` until `begin`, then a ramp to `stop` at `end`. A plain number stays what it is.

    shape: the ramp is half a cosine, or AlphaFlow's sigmoid, which is flat at both ends (arXiv 2510.20771).
    """

    start: float
    stop: float
    begin: float = Field(0.0, ge=0, le=1)
    end: float = Field(1.0, ge=0, le=1)
    shape: Literal["cosine", "sigmoid"] = "cosine"

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"start": value, "stop": value} if number else value

    @model_validator(mode="after")
    def _ordered(self):
        if self.end < self.begin:
            raise ValueError(f"end {self.end} lies before begin {self.begin}")
        return self


def constant(value: float) -> ScheduleConfig:
    return ScheduleConfig(start=value, stop=value)


def _share(schedule: ScheduleConfig) -> ScheduleConfig:
    if not (0 <= schedule.start <= 1 and 0 <= schedule.stop <= 1):
        raise ValueError(f"start {schedule.start} and stop {schedule.stop} must lie in [0, 1]")
    return schedule


Share = Annotated[ScheduleConfig, AfterValidator(_share)]


class TimeConfig(Config):
    """How (t, r) are drawn: logit-normal, with a scheduled share of the interval rows at (1, 0), the jump of one-step sampling."""

    mean: float = -0.4
    std: float = Field(1.0, gt=0)
    endpoint_fraction: Share = constant(0.0)


class ScaleConfig(Config):
    """Guidance scales [low, high] that a network with `guidance_embedding` is trained for, and how they are drawn; 1 is no guidance.

    limits: the times between which guidance acts are drawn too, for a network with `guidance_limits`.
    shown: the scale of the held-out numbers and samples.
    """

    low: float = Field(1.0, ge=1)
    high: float = Field(8.0, le=100)
    draw: Literal["uniform", "log_uniform"] = "log_uniform"
    limits: bool = False
    shown: float = 3.0

    @model_validator(mode="after")
    def _ordered(self):
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if not self.low <= self.shown <= self.high:
            raise ValueError(f"shown {self.shown} must be from low {self.low} to high {self.high}")
        return self


class HalvingConfig(Config):
    """One round of progressive distillation: the student takes `steps` equal steps, the teacher two for each of them.

    first: the student's steps in the first round, whose teacher takes Euler steps; in later rounds it jumps by mean velocities.
    rehearsal: share of the rows that keep what earlier rounds taught, so that more steps remain possible.
    """

    steps: int = Field(16, ge=1, le=512)
    first: int = Field(16, ge=1, le=512)
    rehearsal: float = Field(0.25, ge=0, lt=1)

    @model_validator(mode="after")
    def _halves(self):
        if not math.log2(self.first).is_integer():
            raise ValueError(f"first {self.first} must be a power of two, which can be halved down to one step")
        rounds = math.log2(self.first / self.steps)
        if rounds < 0 or not rounds.is_integer():
            raise ValueError(f"steps {self.steps} must be first {self.first}, or that halved once or more")
        return self


class MatchingConfig(Config):
    """critic_steps: the critic's updates for one of the student's.

    rehearsal: share of the rows that keep what the student knew of more steps.
    """

    critic_steps: int = Field(2, ge=1, le=16)
    rehearsal: float = Field(0.2, ge=0, lt=1)


ObjectiveKind = Literal[
    "flow_matching",
    "mean_flow",
    "improved_mean_flow",
    "alpha_flow",
    "interval_splitting",
    "finite_difference",
    "guidance_distillation",
    "mean_flow_distillation",
    "progressive_distillation",
    "distribution_matching",
    "reward",
    "implicit_maximum_likelihood",
]
# objectives whose network does not take the guidance scale
UNSCALED = {"flow_matching", "mean_flow", "mean_flow_distillation", "distribution_matching", "reward", "implicit_maximum_likelihood"}
INSTANT = {"flow_matching", "guidance_distillation"}  # objectives that only look at r = t
# objectives with a teacher
DISTILLED = {"guidance_distillation", "mean_flow_distillation", "progressive_distillation", "distribution_matching"}
WITH_CRITIC = {"distribution_matching"}  # objectives that train a critic beside the network
REWARDED = {"reward"}  # objectives that please a judge
REHEARSING = {"implicit_maximum_likelihood"}  # objectives that can hold what the network made of known prompts
ONE_STEP = REWARDED | REHEARSING  # objectives that look at the jump from noise to sound only


class ObjectiveConfig(Config):
    """See objectives/ for each kind.

    interval_fraction: share of the rows with r < t. guidance: how much of the guided target is mixed in, 0 none, 1 all of it.
    omega, kappa: the mix of the guided target; its effective scale is omega / (1 - kappa).
    scale: for a network that takes the guidance scale as an input; it is then drawn for each row, and omega and kappa are not used.
    alpha: alpha_flow's way from flow matching (1) to mean flow (0). difference: the time step of finite_difference.
    teacher: folder of the checkpoint that a distillation learns from. halving: the round of a progressive distillation.
    matching: the critic of distribution_matching, and what it keeps. judge: folder of the judge that a reward comes from. anchor: how much
    the network is held to what it made before. noises: of a row of implicit_maximum_likelihood, of which the nearest output is trained.
    rehearsal: share of its rows beside which a known prompt is made as before. rehearsed: a file of these prompts (data/prompts.py);
    without, they are composed of the captions that init_from's scorer knows.
    dropped_rows: rows that lose their text regress the plain velocity ("plain") or, in mean_flow, a guided one ("release").
    """

    kind: ObjectiveKind = "mean_flow"
    time: TimeConfig = TimeConfig()
    interval_fraction: Share = constant(0.25)
    guidance: Share = constant(1.0)
    omega: float = Field(0.3, gt=0)
    kappa: float = Field(0.9, ge=0, lt=1)
    scale: ScaleConfig | None = None
    alpha: Share = ScheduleConfig(start=1.0, stop=0.0, shape="sigmoid")
    difference: float = Field(0.005, gt=0, le=0.1)
    teacher: str | None = None
    halving: HalvingConfig = HalvingConfig()
    matching: MatchingConfig = MatchingConfig()
    judge: str | None = None
    anchor: float = Field(0.5, ge=0)
    noises: int = Field(4, ge=1, le=64)
    rehearsal: float = Field(0.0, ge=0, le=1)
    rehearsed: str | None = None
    text_dropout: float = Field(0.1, ge=0, lt=1)
    dropped_rows: Literal["plain", "release"] = "plain"
    adaptive_epsilon: float = Field(1e-3, gt=0)
    adaptive_power: float = Field(1.0, ge=0)

    @property
    def looks_back(self) -> bool:
        """Whether the loss asks what the network made when the run began."""
        return self.kind in WITH_CRITIC | REWARDED or self.rehearsal > 0

    @property
    def guidance_scale(self) -> float:
        """The scale that omega and kappa amount to, once guidance is mixed in whole."""
        return self.omega / (1 - self.kappa)

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self):
        if self.kind in DISTILLED and self.teacher is None:
            raise ValueError(f"{self.kind} needs teacher, the folder of a checkpoint")
        if self.kind in REWARDED and self.judge is None:
            raise ValueError(f"{self.kind} needs judge, the folder of a trained one (task judge)")
        if self.kind == "guidance_distillation" and self.scale is None:
            raise ValueError("guidance_distillation needs scale, such as {low: 1, high: 8}")
        if self.kind in UNSCALED and self.scale is not None:
            others = [kind for kind in get_args(ObjectiveKind) if kind not in UNSCALED]
            raise ValueError(f"{self.kind} draws no guidance scale; kinds that do: {', '.join(others)}")
        if self.rehearsal > 0 and self.kind not in REHEARSING:
            raise ValueError(f"rehearsal is for {', '.join(REHEARSING)}, not {self.kind}")
        if self.rehearsed is not None and not self.rehearsal:
            raise ValueError(f"rehearsed = {self.rehearsed!r} names prompts, but rehearsal is 0: none of them would be asked for")
        if self.kind != "mean_flow" and self.dropped_rows == "release":
            raise ValueError(f"dropped_rows 'release' is for mean_flow, not {self.kind}")
        return self


# ---------------------------------------------------------------- training


class SceneConfig(Config):
    """Weights of the ways short clips are composed into one training window.

    max_lead: seconds of silence at most before the first sound. paraphrase: share of captions that are said in another way.
    speed: a scene is played up to 1 + speed times faster or slower. tone: deviation in dB of gains drawn for each octave. room: share of
    scenes with an echo. A network that has many more weights than there are seconds of sound learns recordings by heart without them.
    """

    single: float = Field(0.4, ge=0)
    repeat: float = Field(0.2, ge=0)
    sequence: float = Field(0.2, ge=0)
    overlay: float = Field(0.2, ge=0)
    max_lead: float = Field(0.5, ge=0)
    paraphrase: float = Field(0.0, ge=0, le=1)
    speed: float = Field(0.0, ge=0, le=0.5)
    tone: float = Field(0.0, ge=0, le=12)
    room: float = Field(0.0, ge=0, le=1)

    @property
    def weights(self) -> dict[str, float]:
        return {kind: getattr(self, kind) for kind in ("single", "repeat", "sequence", "overlay")}

    @model_validator(mode="after")
    def _something_is_composed(self):
        if not 0 < sum(self.weights.values()) < float("inf"):
            raise ValueError(f"the weights {self.weights} must be finite, and one above 0")
        return self


class WindowConfig(Config):
    """How recordings become training windows; see data/items.py.

    per_clip: windows of a long clip at most; the paper took 5. peak: what each window is scaled to; the paper took 0.95, None: as it is.
    """

    per_clip: int | None = Field(None, gt=0)
    peak: float | None = Field(None, gt=0, le=1)


class MixedDataConfig(Config):
    """A data set beside the main one. share: of the rows of a batch; in proportion to the sets' sizes if no share is given at all."""

    data: str
    share: float | None = Field(None, gt=0, lt=1)


class LoadingConfig(Config):
    """How batches are brought in; nothing here changes what is computed.

    ahead: batches made ready while others are trained on. readers: threads that make them ready, each a batch of its own; a GPU may need
    several. threads: files read at once, where the generator's training reads sound. cache: folder for copies of shards behind a URL.
    resident: keep all items of the shards on the device that trains, where they fit: a small network on a GPU outruns any reader.
    """

    ahead: int = Field(2, ge=0)
    readers: int = Field(1, gt=0)
    threads: int = Field(4, gt=0)
    cache: str = "~/.cache/meanaudio/shards"
    resident: bool = False


class OptimConfig(Config):
    """AdamW. The rate rises linearly over `warmup` steps, then follows `decay` to `final` times its peak."""

    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(1e-6, ge=0)
    clip: float = Field(1.0, gt=0)
    warmup: int = Field(100, ge=0)
    decay: Literal["constant", "cosine", "steps"] = "cosine"
    final: float = Field(0.01, ge=0, le=1)
    ema: tuple[float, ...] = Field(
        (0.05, 0.10), description="relative widths sigma_rel of the averages; the first is evaluated and exported; 0: no average"
    )
    ema_snapshots: int = Field(16, ge=0, description="how often in a run the averages are stored, so that others can be made of them")

    @field_validator("ema", mode="before")
    @classmethod
    def _widths(cls, value: Any) -> Any:
        widths = value if isinstance(value, list | tuple) else (value,)
        if not widths or len(set(widths)) < len(widths) or not all(isinstance(w, int | float) and 0 <= w < 0.28 for w in widths):
            raise ValueError("must be one or more different numbers, each from 0 to below 0.28")
        return tuple(widths)


class LoopConfig(Config):
    """batch_size: rows of an optimiser step, over all processes and accumulated parts together.

    parallel: what several processes (torchrun) do: each keeps the whole network ("ddp") or a shard of it ("fsdp").
    accumulate: in how many parts a process works off its rows, to save memory.
    checkpoint_activations: keep each block's inputs only and compute the rest again for the gradient: far less memory, a third more work.
    best: the held-out number whose lowest value marks the network in best/; the task's own choice if left out.
    keep_bytes: the most that states, exports and snapshots of a run may take on the disk; fewer snapshots are kept if need be.
    rank_timeout: seconds without a sign of life after which a process counts as dead.
    """

    steps: int = Field(1000, gt=0)
    batch_size: int = Field(16, gt=0)
    seed: int = Field(0, ge=0)
    precision: Literal["float32", "bf16"] = "float32"
    parallel: Literal["none", "ddp", "fsdp"] = "none"
    accumulate: int = Field(1, gt=0)
    checkpoint_activations: bool = False
    compile: bool = False
    log_every: int = Field(20, gt=0)
    sample_every: int = Field(500, gt=0)
    save_every: int = Field(500, gt=0)
    best: str | None = None
    keep_bytes: float | None = Field(None, gt=0)
    rank_timeout: float = Field(30.0, gt=0)

    def seed_of(self, step: int) -> int:
        """Of what is drawn at that step: the same whatever was drawn before, so that a run resumes exactly."""
        return self.seed * 1_000_003 + step


class VAETrainConfig(Config):
    window: float = Field(2.048, gt=0, description="seconds of audio a row")
    kl_weight: float = Field(1e-4, ge=0)
    gradient_weight: float = Field(0.5, ge=0, description="weight of the time and frequency differences of the mel")


class VocoderTrainConfig(Config):
    window: float = Field(1.024, gt=0, description="seconds of audio a row")
    mel_weight: float = Field(1.0, ge=0)
    stft_weight: float = Field(1.0, ge=0)
    statistics_weight: float = Field(0.0, ge=0, description="of how values vary within short blocks (codec/losses.py)")
    adversarial_weight: float = Field(0.1, ge=0)
    feature_weight: float = Field(0.2, ge=0)
    adversarial_from: float = Field(0.5, ge=0, le=1, description="progress at which the discriminator starts")
    discriminator_width: int = Field(16, gt=0)
    discriminator_windows: tuple[int, ...] = Field((512, 1024, 2048), min_length=1, description="samples of its spectrograms' windows")
    reconstructed_share: float = Field(0.0, ge=0, le=1, description="share of rows whose mel went through the VAE first")


class DecoderTrainConfig(Config):
    """A VAE's decoder goes on, on what a network makes (docs/training.md, 'A decoder for what the network makes').

    window: seconds of a row that the discriminator sees. clean: share of rows with latents as the encoder
    has them; the network makes those of the others from recordings with noise up to a time that is drawn evenly from 0 to `until`.
    """

    window: float = Field(2.56, gt=0)
    clean: float = Field(0.2, ge=0, lt=1)
    until: float = Field(0.9, gt=0, le=1)
    adversarial_weight: float = Field(0.1, ge=0)
    feature_weight: float = Field(0.5, ge=0)
    discriminator_width: int = Field(16, gt=0)


class TaggerConfig(Config):
    """The tagger that guides (docs/methods.md). words: its classes; the `count` most frequent of the training captions if there are none.

    noise: training latents get normal noise of up to this many standard deviations, because estimates during sampling are rough.
    """

    words: tuple[str, ...] = ()
    count: int = Field(48, ge=2)
    width: int = Field(64, gt=0)
    blocks: int = Field(2, gt=0)
    noise: float = Field(0.5, ge=0)


class ScorerConfig(Config):
    """The scorer that ranks candidates and knows what was taught (docs/scorer.md). dim: of the space that clips and captions share.

    noise: as the tagger's. near: captions whose sentence vectors have this cosine or more are no counterexamples of each other.
    known: how many captions, the most frequent first, the checkpoint keeps. outside: a prompt whose cosine to all of them is below this
    counts as unknown; it belongs to the text encoder.
    """

    width: int = Field(64, gt=0)
    blocks: int = Field(3, gt=0)
    dim: int = Field(128, gt=0)
    noise: float = Field(0.5, ge=0)
    near: float = Field(0.9, gt=0, le=1)
    known: int = Field(2000, gt=0)
    outside: float = Field(0.5, ge=-1, le=1)


class JudgeConfig(Config):
    """The judge whose opinion the objective `reward` follows (docs/training.md, 'A judge, and its reward'). dim: of the space that sounds
    and captions share, for each of its heads.

    items: how many scenes of the training clips it hears. noise: on what it hears, in standard deviations. near: as the scorer's.
    """

    items: int = Field(12288, gt=0)
    width: int = Field(512, gt=0)
    dim: int = Field(256, gt=0)
    heads: int = Field(4, gt=0)
    dropout: float = Field(0.3, ge=0, lt=1)
    noise: float = Field(0.1, ge=0)
    near: float = Field(0.85, gt=0, le=1)


class EvaluationConfig(Config):
    """What is asked of a generator at every evaluation besides its loss and distances of latents.

    extractor: NAME or NAME=weights of who listens to decoded outputs and held-out recordings (docs/extractors.md). clips: to how many.
    """

    extractor: str | None = None
    clips: int = Field(64, ge=2)


class LoRAConfig(Config):
    """Low-rank adapters on the matrices of the transformer's blocks, scaled by alpha / rank; see models/lora.py."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[Literal["attention", "mlp"], ...] = Field(("attention", "mlp"), min_length=1)


CONTINUED = ("vae", "vocoder", "decoder", "generator")  # tasks that can begin with the weights of init_from


class TrainConfig(Config):
    """One training run. `task` says which network is trained and which of the sections matter."""

    task: Literal["vae", "vocoder", "decoder", "generator", "tagger", "scorer", "judge"] = "generator"
    data: str = Field(
        "data/sounds",
        description="vae, vocoder, decoder, judge: a manifest; tagger, scorer: shards; "
        "generator: folder or URL with shards train/ and val/, or a manifest",
    )
    mixture: tuple[MixedDataConfig, ...] = Field((), description="generator: further data sets; `data` has what their shares leave")
    codec_from: str | None = Field(None, description="folder of an earlier codec training whose parts are used")
    text_from: str | None = Field(None, description="folder of a checkpoint with the text encoder's files; codec_from if left out")
    encode_text: bool = Field(False, description="encode captions while training, in place of stored text features")
    init_from: str | None = Field(
        None, description="folder of a checkpoint (VAE, vocoder: of a codec) whose weights are continued; the decoder needs one"
    )
    init_add: tuple[str, str] | None = Field(
        None, description="generator: two checkpoints; what the first has learned since the second is added to the weights of init_from"
    )
    seconds: float = Field(5.12, gt=0, description="length of a generator's training window")
    latent_gain: float | None = Field(
        None,
        ge=0,
        le=1,
        description="all but codecs: power of a latent channel's effect on the mel that the network sees as its deviation; "
        "if left out, as init_from has it, or 1 for every channel (the paper)",
    )
    codec: CodecConfig = CodecConfig()
    windows: WindowConfig = WindowConfig()
    scenes: SceneConfig = SceneConfig()
    text: TextConfig = TextConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    vae: VAETrainConfig = VAETrainConfig()
    vocoder: VocoderTrainConfig = VocoderTrainConfig()
    decoder: DecoderTrainConfig = DecoderTrainConfig()
    tagger: TaggerConfig = TaggerConfig()
    scorer: ScorerConfig = ScorerConfig()
    judge: JudgeConfig = JudgeConfig()
    lora: LoRAConfig | None = Field(None, description="generator: train low-rank adapters of init_from's network in place of its weights")
    optim: OptimConfig = OptimConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    loop: LoopConfig = LoopConfig()
    loading: LoadingConfig = LoadingConfig()

    @model_validator(mode="after")
    def _shares_leave_some(self):
        shares = [other.share for other in self.mixture]
        if any(share is None for share in shares) and any(share is not None for share in shares):
            raise ValueError("either every set of the mixture has a share, or none")
        if sum(share or 0 for share in shares) >= 1:
            raise ValueError(f"the mixture's shares {shares} must leave something for `data`: together they must be below 1")
        return self

    @model_validator(mode="after")
    def _has_what_is_continued(self):
        if self.init_from is not None and self.task not in CONTINUED:
            raise ValueError(f"init_from continues the weights of {', '.join(CONTINUED)}: task {self.task} begins anew")
        if self.init_add is not None and (self.task != "generator" or self.init_from is None or self.lora is not None):
            raise ValueError("init_add adds to the weights of a generator's init_from, all of which are trained: no lora")
        return self

    @model_validator(mode="after")
    def _gains_have_a_codec(self):
        if self.latent_gain and (self.codec_from is None or self.task in ("vae", "vocoder", "decoder")):
            raise ValueError("latent_gain is for networks that see latents, and needs codec_from, a folder with the VAE they come from")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self):
        if self.lora is not None and (self.task != "generator" or self.init_from is None):
            raise ValueError("lora adapts the network of a checkpoint: it needs task generator and init_from, the checkpoint's folder")
        if self.lora is not None and self.latent_gain is not None:
            raise ValueError("lora adapts a network as it is, with its normalisation of latents: latent_gain must be left out")
        return self

    @model_validator(mode="after")
    def _one_step_is_there_to_go_on_with(self):
        kind = self.objective.kind
        if not self.objective.looks_back or self.task != "generator":
            return self
        if self.init_from is None:
            what = "objective.rehearsal" if self.objective.rehearsal else f"objective {kind}"
            raise ValueError(f"{what} goes on with a network that makes a step already: it needs init_from")
        if self.objective.rehearsal and self.codec_from is None:
            raise ValueError("objective.rehearsal encodes prompts: it needs codec_from, a folder with the text encoder")
        if kind in REWARDED and self.codec_from is None:
            raise ValueError(f"objective {kind} decodes what the network makes: it needs codec_from, a folder with a VAE")
        if kind in WITH_CRITIC and self.loop.parallel == "fsdp":
            raise ValueError(
                f"objective {self.objective.kind} trains two networks, each whole on every process: parallel must be none or ddp"
            )
        return self

    @model_validator(mode="after")
    def _network_has_the_objectives_inputs(self):
        network, objective = self.network, self.objective
        if network.interval == "none" and objective.kind not in INSTANT:
            raise ValueError(
                f"objective {objective.kind} needs a network that sees r: network.interval relative, absolute or decoupled; "
                f"with none, the objective must be one of {', '.join(sorted(INSTANT))}"
            )
        has = (network.guidance_embedding, network.guidance_limits)
        wanted = (objective.scale is not None, objective.scale is not None and objective.scale.limits)
        if has != wanted:
            raise ValueError(
                f"the objective's guidance inputs (scale, scale.limits) are {wanted}, the network's (guidance_embedding, guidance_limits) "
                f"are {has}: they must be the same"
            )
        return self


# ---------------------------------------------------------------- studies


class StageConfig(Config):
    """One training run of a study's method; the stages after the first continue the network before them, a distillation learns from it.

    config: a training config, beside the study's file. changes: its sections as this study has them. name: of the run's folder; the
    config's own without "generator_" if left out. share: of the method's steps or cost. guidance: scales at which the network is measured,
    1 is none; of the last stage 1 if left out, of those before it none.
    """

    config: str
    changes: dict[str, Any] = {}
    name: str | None = None
    share: float = Field(1.0, gt=0, le=1)
    guidance: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        return self.name or Path(self.config).stem.removeprefix("generator_")


class BudgetConfig(Config):
    """What the methods are given alike: `times` the study's training steps, or `times` what those steps of its reference cost.

    methods: all of them if left out. repeated: those of them that are run with every seed and not the first alone; all if left out.
    """

    equal: Literal["steps", "cost"]
    times: float = Field(1.0, gt=0)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    methods: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()


class StudyConfig(Config):
    """Methods of few steps beside each other (docs/methods.md).

    settings: sections of the training configs that all runs have in common. manifest: the sounds that the shards were made of.
    evaluations: of the network, a clip, at which outputs are measured; repeated_evaluations: with a budget's second seed and those after.
    clips: held-out scenes whose outputs are compared as latents;
    heard: of those, how many `extractor` listens to. captions, outputs: of the text agreement, see evaluate-text.
    """

    settings: dict[str, Any] = {}
    manifest: str
    steps: int = Field(1000, gt=0)
    reference: str
    methods: dict[str, tuple[StageConfig, ...]] = Field(min_length=1)
    budgets: dict[str, BudgetConfig] = Field(min_length=1)
    evaluations: tuple[int, ...] = (1, 2, 4, 8, 25)
    repeated_evaluations: tuple[int, ...] = (1, 4)
    clips: int = Field(256, ge=2)
    heard: int = Field(96, ge=2)
    extractor: str = "yamnet"
    captions: int = Field(40, ge=2)
    outputs: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _methods_are_there(self):
        named = [(f"budgets.{name}", method) for name, given in self.budgets.items() for method in (*given.methods, *given.repeated)]
        for source, name in [("reference", self.reference), *named]:
            if name not in self.methods:
                raise ValueError(f"{source}: no method {name!r}; there are {', '.join(self.methods)}")
        for name, stages in self.methods.items():
            if not stages or abs(sum(stage.share for stage in stages) - 1) > 1e-6:
                raise ValueError(f"methods.{name}: the shares of its stages must sum to 1, not {sum(stage.share for stage in stages):g}")
        if len(self.methods[self.reference]) > 1:
            raise ValueError(f"reference {self.reference!r} has several stages; it must be one run")
        return self


# ---------------------------------------------------------------- checkpoints


class ScorerCheckpointConfig(Config):
    """config.json of a scorer's folder, and the section of a checkpoint that has one.

    codec_hash: the name of the latents it listens to (codec/codec.py). text, pooled_dim: the text encoder whose sentence vectors it reads.
    """

    format: Literal[1] = 1
    codec_hash: str
    text: TextConfig
    latent_dim: int = Field(gt=0)
    pooled_dim: int = Field(gt=0)
    width: int = Field(gt=0)
    blocks: int = Field(gt=0)
    dim: int = Field(gt=0)
    outside: float = Field(ge=-1, le=1)


class CheckpointConfig(Config):
    """config.json of a complete checkpoint: everything inference needs to know.

    seconds: length of the training windows. codec_hash: the name of the network's latents, the sha256 of a VAE file.
    guidance_range: the guidance scales [low, high] that a network which takes one was trained for. scorer: of a checkpoint that has one.
    latent_mean, latent_std: per channel; the network works on (latents - mean) / std.
    by_event: sounds that a prompt puts one after another are generated one by one, unless told otherwise.
    known_captions: with so many of the scorer's known captions a prompt is read, unless told otherwise.
    """

    format: Literal[1] = 1
    seconds: float = Field(gt=0)
    codec: CodecConfig
    codec_hash: str
    text: TextConfig
    network: NetworkConfig
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    guidance_range: tuple[float, float] | None = None
    scorer: ScorerCheckpointConfig | None = None
    by_event: bool = False
    known_captions: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _range_is_known(self):
        if self.network.guidance_embedding != (self.guidance_range is not None):
            raise ValueError(f"network.guidance_embedding is {self.network.guidance_embedding}, guidance_range {self.guidance_range}")
        return self

    @model_validator(mode="after")
    def _widths_agree(self):
        widths = {self.codec.vae.latent_dim, self.network.latent_dim, len(self.latent_mean), len(self.latent_std)}
        if len(widths) != 1:
            raise ValueError(f"codec, network and latent statistics disagree on the number of latent channels: {sorted(widths)}")
        return self


class TaggerCheckpointConfig(Config):
    """config.json of a tagger's folder. codec_hash: the name of the latents it hears (codec/codec.py)."""

    format: Literal[1] = 1
    codec_hash: str
    classes: tuple[str, ...] = Field(min_length=2)
    latent_dim: int = Field(gt=0)
    width: int = Field(gt=0)
    blocks: int = Field(gt=0)


class JudgeCheckpointConfig(Config):
    """config.json of a judge's folder. codec_hash: the name of the latents whose mels it was taught with (codec/codec.py).

    captions: what it knows, lasting: numbers of those whose sounds can be a background.
    """

    format: Literal[3] = 3
    codec_hash: str
    text: TextConfig
    mel: MelConfig
    pooled_dim: int = Field(gt=0)
    width: int = Field(gt=0)
    dim: int = Field(gt=0)
    heads: int = Field(gt=0)
    near: float = Field(gt=0, le=1)
    dropout: float = Field(ge=0, lt=1)
    captions: tuple[str, ...] = Field(min_length=1)
    lasting: tuple[int, ...] = Field(min_length=1)


class LoRAFileConfig(Config):
    """lora.json beside an adapter's weights. base: the checkpoint's name; base_hash: sha256 of its network.safetensors."""

    format: Literal[1] = 1
    base: str
    base_hash: str
    lora: LoRAConfig


# ---------------------------------------------------------------- reading

T = TypeVar("T", bound=Config)


def parse(cls: type[T], values: dict[str, Any], source: str = "config") -> T:
    """Validate `values` as `cls`. Raises InputError that lists every fault, with the nearest known key for an unknown one."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: " + "; ".join(_explain(cls, e) for e in error.errors())) from None


def load_config(cls: type[T], path: str | Path, overrides: Iterable[str] = (), changes: Mapping[str, Any] | None = None) -> T:
    """Read a YAML file (and what it extends), apply `changes` (sections of values) and `a.b=value` overrides, validate."""
    values = _merge(_read(Path(path), seen=()), dict(changes or {}))
    for override in overrides:
        key, value = parse_assignment(override)
        _set(values, key.split("."), value, override)
    return parse(cls, values, str(path))


def parse_assignment(text: str) -> tuple[str, Any]:
    """The name and the value, read as YAML, of "name=value"."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"override {text!r} must look like section.key=value")
    return name, _yaml(value, f"override {text!r}")


def _read(path: Path, seen: Sequence[Path]) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no such config file: {path}")
    if path.resolve() in seen:
        raise InputError(f"{path}: extends itself")
    try:
        values = _yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys and values, got {type(values).__name__}")
    base = values.pop("extends", None)
    if base is None:
        return values
    return _merge(_read(path.parent / str(base), (*seen, path.resolve())), values)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from None


def _merge(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in difference.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {key!r} is a value, not a section")
    values[keys[-1]] = value


def _explain(cls: type[BaseModel], error: Any) -> str:
    section: Any = cls
    path = []
    for part in error["loc"]:
        if get_origin(section) in (Union, UnionType) and type(None) in get_args(section):
            section = next(c for c in get_args(section) if c is not type(None))
        if get_origin(section) in (Union, UnionType):  # this part of the location is the member's kind, not a key
            section = next(c for c in get_args(section) if part in get_args(c.model_fields["kind"].annotation))
            continue
        path.append(str(part))
        if get_origin(section) is tuple:  # a place in a list of sections
            section = get_args(section)[0]
            continue
        above, field = section, getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field else None
    where = ".".join(path) or "config"
    if error["type"] != "extra_forbidden":
        # a section's parts disagree, and the message names them; or a key is missing, and the input is what surrounds it
        whole = error["type"] == "missing" or (isinstance(error["input"], dict) and error["type"] == "value_error")
        return f"{where}: {error['msg']}" if whole else f"{where} = {error['input']!r}: {error['msg']}"
    known = list(above.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f"unknown key {where!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")
