"""Logged runs side by side: one number over training steps, as a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meanaudio.errors import InputError
from meanaudio.training.log import read_log


def compare_runs(folders: Sequence[Path], key: str, picture: Path | None = None) -> str:
    """A table of `key` at every step that all runs logged it, and its line plot in `picture` (PNG).

    Raises InputError if a folder has no log or never logged `key`, naming the keys it has.
    """
    curves: dict[str, dict[int, float]] = {}
    for folder in folders:
        if not (folder / "log.jsonl").is_file():
            raise InputError(f"{folder}: no log.jsonl; is it the folder of a run?")
        rows = read_log(folder)
        found = {int(row["step"]): row[key] for row in rows if key in row}
        if not found:
            raise InputError(f"{folder}: never logged {key!r}; it has {', '.join(sorted({k for row in rows for k in row} - {'step'}))}")
        curves[folder.name] = found
    common = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    if picture is not None:
        _plot(curves, key, picture)
    lines = [f"{key}", f"{'step':>8}" + "".join(f"{name:>18}" for name in curves)]
    lines += [f"{step:>8}" + "".join(f"{curve[step]:>18.4f}" for curve in curves.values()) for step in common]
    return "\n".join(lines)


def _plot(curves: dict[str, dict[int, float]], key: str, picture: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=name)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(key)
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(picture)
