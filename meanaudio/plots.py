"""Pictures of sounds, for looking at. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        spectrum = torch.stft(audio.detach().float().cpu(), 512, 128, window=window, pad_mode="constant", return_complex=True).abs()
        pictures.append((title, 20 * torch.log10(spectrum.clamp_min(1e-5)), len(audio) / sample_rate, sample_rate / 2000))
    _draw(path, pictures, ("seconds", "kHz"), (-80, 20))


def save_mels(path: Path, mels: Sequence[tuple[str, Tensor]], frame_rate: float) -> None:
    """Draw several (title, log10 mel [M, F]) side by side."""
    pictures = [(title, mel.detach().float().cpu(), mel.shape[1] / frame_rate, mel.shape[0]) for title, mel in mels]
    _draw(path, pictures, ("seconds", "mel band"), (-5, 1))


def save_shares(path: Path, rows: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> None:
    """Draw each (label, part -> amount) as a stacked bar: left in `unit`, right as shares of its whole. All rows have the same parts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.6 + 0.4 * len(rows)), layout="constrained")
    labels = [label for label, _ in rows]
    for i, (title, whole) in enumerate(((unit, False), ("share", True))):
        axes = figure.add_subplot(1, 2, i + 1)
        left = [0.0] * len(rows)
        for part in rows[0][1]:
            widths = [parts[part] / (sum(parts.values()) if whole else 1) for _, parts in rows]
            axes.barh(range(len(rows)), widths, left=left, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(rows)), labels if i == 0 else [""] * len(rows), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(title)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(rows[0][1]), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def _draw(path: Path, pictures: Sequence[tuple[str, Tensor, float, float]], labels: tuple[str, str], limits: tuple[float, float]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window system, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(pictures), 3.2), layout="constrained")
    for i, (title, values, right, top) in enumerate(pictures):
        axes = figure.add_subplot(1, len(pictures), i + 1)
        axes.imshow(values.numpy(), origin="lower", aspect="auto", extent=(0, right, 0, top), vmin=limits[0], vmax=limits[1], cmap="magma")
        axes.set_title(title, fontsize=9, parse_math=False)  # captions hold dollars too
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
