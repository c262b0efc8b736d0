"""Training the codec's two networks: the mel VAE, then the vocoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from meanaudio.audio import limit_peak, save_audio
from meanaudio.checkpoint import load_into, load_weights, save_weights, write_json
from meanaudio.codec.codec import VAE, VAE_FILE, VOCODER_FILE, latents_name, load_vae, make_vae, make_vocoder, read_codec_config
from meanaudio.codec.griffin_lim import griffin_lim
from meanaudio.codec.losses import (
    Discriminator,
    MelDiscriminator,
    ReconstructionLoss,
    StatisticsLoss,
    discriminator_loss,
    generator_losses,
    stft_distance,
)
from meanaudio.codec.mel import LogMel
from meanaudio.codec.texture import add_texture
from meanaudio.codec.vae import MelVAE
from meanaudio.config import CodecConfig, DecoderTrainConfig, TrainConfig, VocoderTrainConfig
from meanaudio.data.prefetch import Prefetcher
from meanaudio.errors import InputError
from meanaudio.plots import save_mels, save_spectrograms
from meanaudio.precision import DTYPES, computing_in
from meanaudio.training.loop import Update
from meanaudio.training.windows import WindowSampler, load_sounds
from meanaudio.types import send

HELD_OUT_ROWS = 48
HELD_OUT_SEED = 20_000
SHOWN = 4


def _num_samples(seconds: float, config: CodecConfig) -> int:
    """Samples of a window: whole latents."""
    spec = config.audio_spec()
    return max(1, spec.window_latents(seconds)) * spec.samples_per_latent


def _continue_from(network: nn.Module, folder: Path, part: Literal["vae", "vocoder"], codec: CodecConfig) -> None:
    """Load that part of the codec in `folder`, which must be of the config's shape and of its mels."""
    found = read_codec_config(folder)
    for name in ("mel", part):
        if (theirs := getattr(found, name)) != (ours := getattr(codec, name)):
            raise InputError(f"init_from {folder}: its codec.{name} is {theirs}, the config's is {ours}")
    file = folder / {"vae": VAE_FILE, "vocoder": VOCODER_FILE}[part]
    load_into(network, load_weights(file), file)


class _CodecTask:
    """What both tasks share: windows of the training clips, and one fixed batch of held-out windows. They run on one process."""

    networks: dict[str, nn.Module]
    averaged: str

    def __init__(self, config: TrainConfig, codec: CodecConfig, device: torch.device, seconds: float) -> None:
        self.config, self.codec, self.device = config, codec, torch.device(device)
        self.mel = LogMel(codec.mel).to(self.device)
        num_samples, rate = _num_samples(seconds, codec), codec.mel.sample_rate
        self.sampler = WindowSampler(load_sounds(Path(config.data), ["train"], rate), num_samples, config.loop.seed)
        held_out = WindowSampler(load_sounds(Path(config.data), ["val", "test"], rate), num_samples, HELD_OUT_SEED, augment=False)
        self.held_out, _ = held_out.batch(0, HELD_OUT_ROWS)
        loading, loop = config.loading, config.loop
        draw = partial(self.sampler.batch, rows=loop.batch_size)
        self.batches = Prefetcher(draw, ahead=loading.ahead, threads=loading.readers, stop=loop.steps)

    def batch(self, step: int) -> tuple[Tensor, list[str]]:
        """Windows [B, N] of batch number `step` and their ids."""
        audio, ids = self.batches(step)
        return send(audio, self.device), ids

    def generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.loop.seed_of(step))

    def autocast(self) -> torch.autocast:
        return computing_in(DTYPES[self.config.loop.precision], self.device)

    def blank(self) -> nn.Module:
        return copy.deepcopy(self.networks[self.averaged])

    def write_config(self, folder: Path, **facts: str) -> None:
        write_json(folder / "config.json", {"codec": self.codec.model_dump(mode="json"), **facts})


def train_and_ask(
    discriminator: Discriminator | MelDiscriminator, settings: VocoderTrainConfig | DecoderTrainConfig, output: Tensor, target: Tensor,
    ids: list[str], update: Update, autocast: Callable[[], torch.autocast],
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Train the discriminator on `output` against `target`, then ask it: the loss of `output` by the weights in `settings`, and logs."""
    with autocast():
        judged = discriminator_loss(discriminator, output.detach(), target)
    update("discriminator", [(judged, ids)])
    discriminator.requires_grad_(False)
    with autocast():
        adversarial, features = generator_losses(discriminator, output, target)
    discriminator.requires_grad_(True)
    loss = settings.adversarial_weight * adversarial + settings.feature_weight * features
    return loss, {"discriminator": judged.item(), "adversarial": adversarial.item(), "features": features.item()}


class VAETask(_CodecTask):
    """L1 of the normalised mel and of its differences along time and frequency, plus a light KL term."""

    averaged = "vae"
    best = "mel_l1"

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, config.codec, device, config.vae.window)
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global stream
            torch.manual_seed(config.loop.seed)
            vae = make_vae(config.codec).to(self.device)
        if not isinstance(vae, MelVAE):
            raise InputError(f"codec.vae.kind {config.codec.vae.kind!r} is for converted checkpoints; conv and linear_conv can be trained")
        if config.init_from is None:
            self._measure(vae)
        else:
            _continue_from(vae, Path(config.init_from), "vae", config.codec)
        self.networks = {"vae": vae}

    @torch.no_grad()
    def _measure(self, vae: MelVAE) -> None:
        """Set the mel's mean and deviation per band, and the linear maps' start, from 256 training windows."""
        audio, _ = WindowSampler([s for group in self.sampler.groups for s in group], self.held_out.shape[1], HELD_OUT_SEED + 1).batch(
            0, 256
        )
        mel = self.mel(audio.to(self.device))
        vae.mel_mean.copy_(mel.mean((0, 2)))
        vae.mel_std.copy_(mel.std((0, 2)).clamp_min(0.3))
        vae.start_linear(mel)

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        audio, ids = self.batch(step)
        vae: MelVAE = self.networks["vae"]  # type: ignore[assignment]
        mel = self.mel(audio)
        with self.autocast():
            posterior = vae.encode(mel)
            output = vae.decode_normalized(posterior.sample(self.generator(step)))
        output, target = output.float(), vae.normalize(mel)
        l1 = (output - target).abs().mean()
        error = output - target
        gradient = error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.std.square() - 1 - 2 * posterior.std.log()).mean()
        update("vae", [(l1 + self.config.vae.gradient_weight * gradient + self.config.vae.kl_weight * kl, ids)])
        return {"l1": l1.item(), "gradient": gradient.item(), "kl": kl.item()}

    @torch.no_grad()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Log10-mel L1 through the posterior's mean and through a draw; the root mean square of what the mean leaves out (codec.texture
        is there to replace it); statistics of the latents; pictures and Griffin-Lim sounds."""
        mel = self.mel(self.held_out.to(self.device))
        posterior = network.encode(mel)  # type: ignore[operator]
        rebuilt = network.decode(posterior.mean)  # type: ignore[operator]
        drawn = network.decode(posterior.sample(self.generator(0)))  # type: ignore[operator]
        m = self.codec.mel
        for i in range(SHOWN):
            save_mels(folder / f"{i}.png", [("reference", mel[i]), ("reconstructed", rebuilt[i])], m.sample_rate / m.hop_length)
        save_audio(folder / "0_reference.wav", self.held_out[0], m.sample_rate)
        save_audio(folder / "0.wav", limit_peak(griffin_lim(rebuilt[0].cpu(), m, seed=0)), m.sample_rate)
        deviation = posterior.mean.std((0, 1))
        return {
            "mel_l1": (rebuilt - mel).abs().mean().item(),
            "mel_l1_drawn": (drawn - mel).abs().mean().item(),
            "mel_left_out": (rebuilt - mel).square().mean().sqrt().item(),
            "mean_std": deviation.mean().item(),
            "mean_std_min": deviation.min().item(),
            "mean_std_max": deviation.max().item(),
            "posterior_std": posterior.std.mean().item(),
            "posterior_std_max": posterior.std.mean((0, 1)).max().item(),
        }

    def export(self, network: nn.Module, folder: Path) -> None:
        save_weights(folder / VAE_FILE, network.state_dict())
        self.write_config(folder)


class VocoderTask(_CodecTask):
    """Multi-resolution STFT and mel losses, and statistics of short blocks; late in the run a discriminator and its features join."""

    averaged = "vocoder"
    best = "vocoder_mel_l1"

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.vae: VAE | None = None
        codec = config.codec
        if config.codec_from is not None:
            self.vae, found = load_vae(Path(config.codec_from))
            if found.mel != codec.mel:
                raise InputError(f"codec_from {config.codec_from}: its mel {found.mel} differs from this config's {codec.mel}")
            codec = codec.model_copy(update={"vae": found.vae, "texture": found.texture})
            self.vae.to(device)
        elif config.vocoder.reconstructed_share > 0:
            raise InputError(f"vocoder.reconstructed_share {config.vocoder.reconstructed_share} needs codec_from, a folder with a VAE")
        super().__init__(config, codec, device, config.vocoder.window)
        self.reconstruction = ReconstructionLoss(codec.mel).to(self.device)
        self.statistics = StatisticsLoss(codec.mel).to(self.device) if config.vocoder.statistics_weight > 0 else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.loop.seed)
            vocoder = make_vocoder(codec).to(self.device)
            discriminator = Discriminator(config.vocoder.discriminator_width, config.vocoder.discriminator_windows).to(self.device)
        if config.init_from is not None:
            _continue_from(vocoder, Path(config.init_from), "vocoder", codec)
        self.networks = {"vocoder": vocoder, "discriminator": discriminator}

    @torch.no_grad()
    def mels(self, audio: Tensor, generator: torch.Generator) -> Tensor:
        """Input mels [B, M, F]: the last `reconstructed_share` of the rows went through the VAE with a drawn latent. They get no
        texture, whose pattern is always the same and would be learned."""
        mel = self.mel(audio)
        rows = round(len(audio) * self.config.vocoder.reconstructed_share)
        if self.vae is None or rows == 0:
            return mel
        with self.autocast():
            rebuilt = self.vae.decode(self.vae.encode(mel[-rows:]).sample(generator))
        return torch.cat([mel[:-rows], rebuilt.float()])

    def step(self, step: int, progress: float, update: Update) -> dict[str, float]:
        settings = self.config.vocoder
        audio, ids = self.batch(step)
        mel = self.mels(audio, self.generator(step))
        with self.autocast():
            output = self.networks["vocoder"](mel)
        stft, mel_loss = self.reconstruction(output, audio)
        loss = settings.stft_weight * stft + settings.mel_weight * mel_loss
        logs = {"stft": stft.item(), "mel": mel_loss.item()}
        if self.statistics is not None:
            statistics = self.statistics(output, audio)
            loss, logs = loss + settings.statistics_weight * statistics, logs | {"statistics": statistics.item()}
        if progress >= settings.adversarial_from and (settings.adversarial_weight > 0 or settings.feature_weight > 0):
            extra, more = self._judge(output, audio, ids, update)
            loss, logs = loss + extra, logs | more
        update("vocoder", [(loss, ids)])
        return logs

    def _judge(self, output: Tensor, audio: Tensor, ids: list[str], update: Update) -> tuple[Tensor, dict[str, float]]:
        """What the discriminator says. Every other row only: it costs as much as the vocoder."""
        discriminator: Discriminator = self.networks["discriminator"]  # type: ignore[assignment]
        return train_and_ask(discriminator, self.config.vocoder, output[::2], audio[::2], ids[::2], update, self.autocast)

    @torch.no_grad()
    def evaluate(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Distances on held-out windows from true mels and, with a VAE, from reconstructed ones; wavs and spectrograms."""
        audio = self.held_out.to(self.device)
        mel = self.mel(audio)
        outputs = {"vocoder": network(mel)}
        if self.vae is not None:
            outputs["codec"] = network(add_texture(self.vae.decode(self.vae.encode(mel).mean), self.codec.texture))
        rate = self.codec.mel.sample_rate
        for i in range(SHOWN):
            save_audio(folder / f"{i}_reference.wav", audio[i], rate)
            for name, output in outputs.items():
                save_audio(folder / f"{i}_{name}.wav", limit_peak(output[i]), rate)
            save_spectrograms(folder / f"{i}.png", [("reference", audio[i]), *((n, o[i]) for n, o in outputs.items())], rate)
        numbers = {}
        for name, output in outputs.items():
            numbers[f"{name}_mel_l1"] = (self.mel(output) - mel).abs().mean().item()
            numbers[f"{name}_stft"] = stft_distance(output, audio).mean().item()
        silence = network(self.mel(torch.zeros_like(audio[:1])))
        return numbers | {"silence_peak": silence.abs().max().item()}

    def export(self, network: nn.Module, folder: Path) -> None:
        """The vocoder, and beside it the VAE it was trained with, so that the folder is a whole codec."""
        save_weights(folder / VOCODER_FILE, network.state_dict())
        if self.vae is None:
            self.write_config(folder)
        else:
            save_weights(folder / VAE_FILE, self.vae.state_dict())
            self.write_config(folder, codec_hash=latents_name(Path(self.config.codec_from or "")))
