"""Pictures of sounds, for looking at. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def save_spectrogram(path: Path, audio: Tensor, sample_rate: int, title: str = "") -> None:
    """Draw audio [N] as a spectrogram in dB."""
    save_spectrograms(path, [(title, audio)], sample_rate)


def save_spectrograms(path: Path, sounds: Sequence[tuple[str, Tensor]], sample_rate: int) -> None:
    """Draw several (title, audio [N]) side by side, on one colour scale from -80 to +20 dB."""
    pictures = []
    for title, audio in sounds:
        window = torch.hann_window(512)
        spectrum = torch.stft(audio.detach().float().cpu(), 512, 128, window=window, return_complex=True).abs()
        pictures.append((title, 20 * torch.log10(spectrum.clamp_min(1e-5)), len(audio) / sample_rate, sample_rate / 2000))
    _draw(path, pictures, ("seconds", "kHz"), (-80, 20))


def save_mels(path: Path, mels: Sequence[tuple[str, Tensor]], frame_rate: float) -> None:
    """Draw several (title, log10 mel [M, F]) side by side."""
    pictures = [(title, mel.detach().float().cpu(), mel.shape[1] / frame_rate, mel.shape[0]) for title, mel in mels]
    _draw(path, pictures, ("seconds", "mel band"), (-5, 1))


def _draw(path: Path, pictures: Sequence[tuple[str, Tensor, float, float]], labels: tuple[str, str], limits: tuple[float, float]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window system, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(pictures), 3.2), layout="constrained")
    for i, (title, values, right, top) in enumerate(pictures):
        axes = figure.add_subplot(1, len(pictures), i + 1)
        axes.imshow(values.numpy(), origin="lower", aspect="auto", extent=(0, right, 0, top), vmin=limits[0], vmax=limits[1], cmap="magma")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
