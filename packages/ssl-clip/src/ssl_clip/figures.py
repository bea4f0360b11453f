"""Figures that need matplotlib: a confusion matrix, and a map of images and texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_core.errors import InputError
from ssl_train.data.pictures import apart, rgb


def need_viz(*modules: str) -> None:
    """Raises InputError when one of `modules`, which the extra `viz` brings, is missing."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise InputError(f'pictures need {missing[0]}: pip install "ssl-clip[viz]"')


def save_figure(figure: Any, file: str | Path) -> None:
    """Write a matplotlib figure, and the folder that it is to lie in."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def confusion_figure(predicted: Tensor, truth: Tensor, labels: Sequence[str]) -> Any:
    """A matplotlib Figure of the confusion matrix of (n,) against (n,): a row for each class."""
    from matplotlib.figure import Figure

    n = len(labels)
    # Each pair (class, predicted) is a number, of which there are n².
    counts = torch.bincount(truth * n + predicted, minlength=n * n).view(n, n).float()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = 2.5 + 0.35 * n  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(n), labels, rotation=90)
    axes.set_yticks(range(n), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    if n > 20:  # numbers would be too small to read
        return figure
    for row, column in (shares >= 0.005).nonzero().tolist():
        share = shares[row, column].item()
        look: Any = {"ha": "center", "va": "center", "color": "white" if share > 0.5 else "black"}
        axes.text(column, row, f"{100 * share:.0f}", fontsize=7, **look)
    return figure


def grid_of(count: int) -> tuple[int, int]:
    """(columns, rows) of a 4:3 grid with about twice as many cells as `count`, 12 x 9 or more."""
    rows = max(9, math.ceil((1.5 * count) ** 0.5))
    return round(rows * 4 / 3), rows


def map_figure(images: Tensor, texts: Sequence[str], places: np.ndarray, title: str) -> Any:
    """A matplotlib Figure with images (n, c, h, w), then texts (m), near `places` (n + m, 2).

    Each stands in the nearest free cell of a grid, so that none hides another.
    """
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots()
    columns, rows = grid_of(len(places))
    cells = apart(places, columns, rows)  # n + m 2: none hides another
    axes.scatter(*cells.T, s=0)  # sets the limits of the axes
    side = min(36.0, 500 / rows)  # points, of a figure that is 648 high
    # The first places are those of the images, the others those of the texts.
    for picture, place in zip(rgb(images).permute(0, 2, 3, 1).numpy(), cells.tolist(), strict=False):
        shown = OffsetImage(picture, zoom=side / max(picture.shape[:2]))
        axes.add_artist(AnnotationBbox(shown, place, frameon=False))
    for text, (x, y) in zip(texts, cells[len(images) :].tolist(), strict=True):
        axes.text(
            x,
            y,
            fill(text, 14),
            fontsize=6,
            ha="center",
            va="center",
            bbox={"facecolor": "#ffe9a8", "edgecolor": "none", "pad": 1},
        )
    axes.set_title(title)
    axes.set_axis_off()
    return figure
