"""The pictures of a run: loss curves, samples beside real data."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a run needs no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def loss_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Draw loss and gradient norm against the step.

    Args:
        rows: the lines of a metrics file.
        path: where to write the PNG.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    steps = [row["step"] for row in rows]
    for axis, name in zip(axes, ("loss", "grad_norm"), strict=True):
        axis.plot(steps, [row[name] for row in rows], lw=1)
        axis.set(title=name.replace("_", " "), xlabel="step")
        if all(row[name] > 0 for row in rows):
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    _save(figure, path)


def image_grid(
    groups: Mapping[str, np.ndarray], path: Path, *, columns: int | None = None
) -> None:
    """Draw groups of images side by side, one row per class.

    Args:
        groups: title -> images in [-1, 1] [rows, columns, h, w, c].
        path: where to write the PNG.
        columns: how many images of each row to show; None: all.
    """
    tiles = {name: _mosaic(images[:, :columns]) for name, images in groups.items()}
    height, width = next(iter(tiles.values())).shape[:2]
    size = 2.6
    figure, axes = plt.subplots(
        1,
        len(tiles),
        figsize=(size * len(tiles), (size - 0.15) * height / width + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for axis, (name, tile) in zip(axes[0], tiles.items(), strict=True):
        axis.imshow(tile, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    _save(figure, path)


def point_clouds(groups: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw groups of points in the plane side by side.

    Args:
        groups: title -> points [n, 2].
        path: where to write the PNG.
    """
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(2.6 * len(groups), 2.9),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for axis, (name, points) in zip(axes[0], groups.items(), strict=True):
        axis.scatter(points[:, 0], points[:, 1], s=1, alpha=0.4, lw=0)
        axis.set_title(name, fontsize=10)
        axis.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), aspect="equal")
    _save(figure, path)


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Join [rows, columns, h, w, c] in [-1, 1] to one picture in [0, 1]."""
    rows, columns, height, width, channels = images.shape
    framed = np.pad(
        np.clip((images + 1) / 2, 0, 1),
        ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)),
        constant_values=0.5,
    )
    joined = framed.transpose(0, 2, 1, 3, 4).reshape(
        rows * (height + 1), columns * (width + 1), channels
    )
    return joined[..., 0] if channels == 1 else joined


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
