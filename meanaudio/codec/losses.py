"""Distances between sounds, and the discriminator that judges a vocoder. Everything spectral is float32, also under autocast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from meanaudio.codec.mel import FLOOR, LogMel, mel_filters
from meanaudio.config import MelConfig

RESOLUTIONS = (512, 1024, 2048)


def spectrum(audio: Tensor, n_fft: int) -> Tensor:
    """audio [B, N] -> complex STFT [B, K, F]: Hann window of n_fft, a hop of a quarter, centred frames."""
    with torch.autocast(audio.device.type, enabled=False):
        window = torch.hann_window(n_fft, device=audio.device)
        return torch.stft(audio.float(), n_fft, n_fft // 4, window=window, return_complex=True)


def magnitudes(audio: Tensor, n_fft: int) -> Tensor:
    """audio [B, N] -> STFT magnitude [B, K, F], floored at 3e-4, about the noise of 16-bit rounding."""
    return torch.view_as_real(spectrum(audio, n_fft)).square().sum(-1).clamp_min(1e-7).sqrt()


def spectral_distance(a: Tensor, b: Tensor) -> Tensor:
    """Spectral convergence ||a - b|| / ||b|| plus mean |ln a - ln b| of magnitudes [B, K, F] -> [B].

    The denominator is held above 0.1, so that a silent row stays finite.
    """
    convergence = (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1).clamp_min(0.1)
    return convergence + (a.log() - b.log()).abs().mean((1, 2))


def stft_distance(audio: Tensor, reference: Tensor, resolutions: Sequence[int] = RESOLUTIONS) -> Tensor:
    """audio, reference [B, N] -> `spectral_distance` [B], the mean over resolutions."""
    return torch.stack([spectral_distance(magnitudes(audio, n), magnitudes(reference, n)) for n in resolutions]).mean(0)


class ReconstructionLoss(nn.Module):
    """(audio, reference) [B, N] -> (stft, mel), two scalars.

    stft: `stft_distance`. mel: L1 of natural-log mel, the mean over the codec's own log-mel and one mel at each STFT resolution.
    """

    def __init__(self, config: MelConfig, resolutions: Sequence[int] = RESOLUTIONS) -> None:
        super().__init__()
        self.resolutions = tuple(resolutions)
        self.log_mel = LogMel(config)
        for n_fft in self.resolutions:
            self.register_buffer(f"filters_{n_fft}", mel_filters(config.model_copy(update={"n_fft": n_fft})).T, persistent=False)

    def forward(self, audio: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(audio.device.type, enabled=False):
            ln10 = 2.302585
            mels = [ln10 * (self.log_mel(audio) - self.log_mel(reference)).abs().mean()]
            stfts = []
            for n_fft in self.resolutions:
                a, b = magnitudes(audio, n_fft), magnitudes(reference, n_fft)
                filters = getattr(self, f"filters_{n_fft}")
                stfts.append(spectral_distance(a, b).mean())
                mels.append(((filters @ a).clamp_min(FLOOR).log() - (filters @ b).clamp_min(FLOOR).log()).abs().mean())
            return torch.stack(stfts).mean(), torch.stack(mels).mean()


class StatisticsLoss(nn.Module):
    """(audio, reference) [B, N] -> scalar: how differently they vary within short blocks. By such statistics listeners tell textures apart
    (McDermott and Simoncelli, Neuron 71, 2011); here they are of natural-log mels.

    What a noise is at one moment cannot be foretold from its mel, so a distance of single values is least for what is too smooth. Of every
    BLOCK samples of mels with windows of WINDOWS samples the L1 of four numbers a band counts: the mean, the deviation, and the root mean
    squares of the differences along time and along frequency.
    """

    WINDOWS, BLOCK = (128, 256, 512, 1024), 1024
    MELS, LEAST = 48, 3 * FLOOR

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        for n_fft in self.WINDOWS:
            few = config.model_copy(update={"n_fft": n_fft, "n_mels": min(self.MELS, n_fft // 8)})
            self.register_buffer(f"filters_{n_fft}", mel_filters(few).T, persistent=False)

    def forward(self, audio: Tensor, reference: Tensor) -> Tensor:
        differences = [
            (ours - theirs).abs().mean()
            for n_fft in self.WINDOWS
            for ours, theirs in zip(self._statistics(audio, n_fft), self._statistics(reference, n_fft), strict=True)
        ]
        return torch.stack(differences).mean()

    def _statistics(self, audio: Tensor, n_fft: int) -> tuple[Tensor, ...]:
        """Each [B, M, blocks], the last of one band fewer; blocks overlap by half."""
        with torch.autocast(audio.device.type, enabled=False):
            mel = (getattr(self, f"filters_{n_fft}") @ magnitudes(audio, n_fft)).clamp_min(self.LEAST).log()
            frames = 4 * self.BLOCK // n_fft
            mean, square, along_time, along_frequency = (
                nn.functional.avg_pool1d(x, frames, frames // 2) for x in (mel, mel**2, mel.diff(dim=2) ** 2, mel.diff(dim=1) ** 2)
            )
            return mean, *(x.clamp_min(1e-4).sqrt() for x in (square - mean**2, along_time, along_frequency))


class ImageJudge(nn.Module):
    """Convolutions over an image of sound, [B, channels, frames, frequencies]; the frequency axis is halved four times.

    frames: how many a convolution sees at once, an odd number.
    """

    def __init__(self, channels: int, width: int, frames: int) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, (frames, 5), stride=(1, 2), padding=(frames // 2, 2)) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 1, (3, 3), padding=1)

    def judge(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores [B, ...] and the features of each layer."""
        x = image.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.head(x), features


class SpectrumJudge(ImageJudge):
    """Of one complex spectrogram."""

    def __init__(self, n_fft: int, width: int) -> None:
        super().__init__(2, width, frames=3)
        self.n_fft = n_fft

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """audio [B, N] -> scores [B, ...] and the features of each layer."""
        z = spectrum(audio, self.n_fft)
        # |z|^0.3 with the phase kept: quiet parts count, and the phases between frames can be judged.
        z = torch.view_as_real(z * (z.real.square() + z.imag.square() + 1e-6) ** -0.35)
        return self.judge(z.permute(0, 3, 2, 1))


class Discriminator(nn.Module):
    """One `SpectrumJudge` a resolution."""

    def __init__(self, width: int, resolutions: Sequence[int] = RESOLUTIONS) -> None:
        super().__init__()
        self.judges = nn.ModuleList(SpectrumJudge(n_fft, width) for n_fft in resolutions)

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        return [judge(audio) for judge in self.judges]


class MelDiscriminator(ImageJudge):
    """Judges normalised log-mels. What a band is called matters, so each has a number of its own added first."""

    def __init__(self, n_mels: int, width: int) -> None:
        super().__init__(1, width, frames=5)
        self.band = nn.Parameter(torch.zeros(n_mels))

    def forward(self, frames: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """frames [B, F, M] -> scores and features, of one judge."""
        return [self.judge((frames + self.band)[:, None])]


def discriminator_loss(discriminator: Discriminator | MelDiscriminator, made: Tensor, real: Tensor) -> Tensor:
    """Hinge loss: real above 1, made below -1."""
    reals, mades = discriminator(real), discriminator(made)
    terms = [(1 - r).float().relu().mean() + (1 + m).float().relu().mean() for (r, _), (m, _) in zip(reals, mades, strict=True)]
    return torch.stack(terms).mean()


def generator_losses(discriminator: Discriminator | MelDiscriminator, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """(adversarial, feature matching) scalars; features are compared relative to their own size."""
    with torch.no_grad():
        reals = discriminator(real)
    mades = discriminator(made)
    adversarial = torch.stack([-score.float().mean() for score, _ in mades]).mean()
    distances = [
        (m.float() - r.float()).abs().mean() / r.float().abs().mean().clamp_min(1e-3)
        for (_, fs), (_, rs) in zip(mades, reals, strict=True)
        for m, r in zip(fs, rs, strict=True)
    ]
    return adversarial, torch.stack(distances).mean()
