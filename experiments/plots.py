"""The pictures of a run: loss curves, samples beside real data."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a run needs no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter


def loss_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Draw everything that was logged against the step, a panel each.

    Args:
        rows: the lines of a metrics file; not every one must have every metric.
        path: where to write the PNG; nothing is written without metrics.
    """
    logged = {name for row in rows for name in row} - {"step"}
    if not logged:
        return
    first = [name for name in ("loss", "grad_norm") if name in logged]
    names = [*first, *sorted(logged - {*first})]
    width = min(len(names), 3)
    height = math.ceil(len(names) / width)
    figure, axes = plt.subplots(
        height,
        width,
        figsize=(4.2 * width, 2.8 * height),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        steps, values = zip(
            *[(r["step"], r[name]) for r in rows if name in r], strict=True
        )
        axis.plot(steps, values, lw=1)
        axis.set(title=name.replace("_", " "), xlabel="step")
        if all(value > 0 for value in values):
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    _save(figure, path)


def image_grid(
    groups: Mapping[str, np.ndarray], path: Path, *, maximum: int = 255
) -> None:
    """Draw groups of images side by side, one row per class.

    Args:
        groups: title -> images with values 0..maximum [rows, columns, h, w, c].
        path: where to write the PNG.
        maximum: the value of full intensity.
    """
    tiles = {name: _mosaic(images / maximum) for name, images in groups.items()}
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
    """Draw groups of points side by side: clouds in the plane, histograms on a line.

    Args:
        groups: title -> points [n, 1 or 2].
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
    line = next(iter(groups.values())).shape[1] == 1
    for axis, (name, points) in zip(axes[0], groups.items(), strict=True):
        axis.set_title(name, fontsize=10)
        if line:
            axis.hist(points[:, 0], bins=60, density=True)
            continue
        axis.scatter(points[:, 0], points[:, 1], s=1, alpha=0.4, lw=0)
        axis.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), aspect="equal")
    _save(figure, path)


def pairs(groups: Mapping[str, np.ndarray], names: Sequence[str], path: Path) -> None:
    """Draw every entry's histogram, and every two entries against each other.

    Args:
        groups: title -> vectors [n, dim], over each other in different colours.
        names: of the entries; the first five are drawn.
        path: where to write the PNG.
    """
    names = names[:5]
    size = len(names)
    figure, axes = plt.subplots(
        size,
        size,
        figsize=(2.1 * size + 1.2, 2.1 * size),
        layout="constrained",
        squeeze=False,
    )
    colors = {title: f"C{i}" for i, title in enumerate(groups)}
    edges = [_edges([x[:, i] for x in groups.values()]) for i in range(size)]
    for row, below in enumerate(names):
        for column, left in enumerate(names):
            axis = axes[row, column]
            if column > row:
                axis.axis("off")
                continue
            for title, x in groups.items():
                if row == column:
                    values = np.asarray(x[:, row], np.float64)
                    style = {"histtype": "step", "density": True, "bins": edges[row]}
                    axis.hist(values, color=colors[title], label=title, **style)
                else:
                    x_, y_ = x[:, column], x[:, row]
                    axis.scatter(x_, y_, s=2, alpha=0.3, lw=0, color=colors[title])
            axis.tick_params(labelsize=7)
            if row == size - 1:
                axis.set_xlabel(left, fontsize=9)
            if column == 0 and row:
                axis.set_ylabel(below, fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right")
    _save(figure, path)


def _edges(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return the ends of 40 bins, also of numbers that are all but equal."""
    low = min(float(column.min()) for column in columns)
    high = max(float(column.max()) for column in columns)
    # Closer than this floats could not tell the bins apart.
    least = 1e-9 * max(abs(low), abs(high), 1e-6)
    return np.linspace(low, max(high, low + least), 41)


def curves(groups: Mapping[str, np.ndarray], path: Path, *, count: int = 12) -> None:
    """Draw sequences as curves, groups side by side, a row per channel.

    Args:
        groups: title -> sequences [n, length, channels].
        path: where to write the PNG.
        count: how many of each group; of the channels the first four.
    """
    channels = min(next(iter(groups.values())).shape[-1], 4)
    figure, axes = plt.subplots(
        channels,
        len(groups),
        figsize=(2.9 * len(groups), 1.9 * channels + 0.4),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey="row",
    )
    for column, (title, x) in enumerate(groups.items()):
        axes[0, column].set_title(title, fontsize=10)
        for channel in range(channels):
            axes[channel, column].plot(x[:count, :, channel].T, lw=0.8)
    _save(figure, path)


def slices(groups: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw the middle slice of images or volumes of floats, in eight columns.

    Args:
        groups: title -> [n, *sizes, channels] with two or more axes of sizes.
        path: where to write the PNG.
    """
    low, high = (f(next(iter(groups.values()))) for f in (np.min, np.max))
    tiles = {}
    for title, x in groups.items():
        while x.ndim > 4:
            x = x[:, x.shape[1] // 2]
        count = min(len(x), 64)
        columns = min(count, 8)
        shown = x[: count // columns * columns]
        shown = shown.reshape(-1, columns, *shown.shape[1:])
        tiles[title] = (shown - low) / max(high - low, 1e-12)
    image_grid(tiles, path, maximum=1)


def few_step_quality(
    series: Mapping[str, Mapping[str, Mapping[str, list[float]]]], path: Path
) -> None:
    """Draw one panel per figure: a row per member, a mark per sampler.

    Args:
        series: ``figure -> member -> sampler -> values over the seeds``; the sampler
            ``"real"`` is drawn as a line.
        path: where to write the PNG.
    """
    members = sorted({name for panel in series.values() for name in panel})
    figure, axes = plt.subplots(
        1,
        max(len(series), 1),
        figsize=(3.4 * max(len(series), 1), 0.3 * len(members) + 1.4),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axis, (title, panel) in zip(axes[0], series.items(), strict=False):
        # Not every member has every sampler.
        samplers = list(dict.fromkeys(n for row in panel.values() for n in row))
        samplers.remove("real")
        for color, sampler in enumerate(samplers):
            rows = [
                (i, panel[m][sampler])
                for i, m in enumerate(members)
                if sampler in panel.get(m, {})
            ]
            places = [i for i, _ in rows]
            means = np.array([np.mean(values) for _, values in rows])
            low = means - [min(values) for _, values in rows]
            high = np.array([max(values) for _, values in rows]) - means
            shift = 0.16 * (color - (len(samplers) - 1) / 2)
            axis.errorbar(
                means,
                np.array(places) + shift,
                xerr=[low, high],
                fmt="o",
                ms=4,
                label=sampler,
                color=f"C{color}",
            )
        real = np.mean([np.mean(rows["real"]) for rows in panel.values()])
        axis.axvline(real, color="0.6", lw=1, zorder=0)
        if title in ("Fréchet", "sliced W2", "W2"):
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(title=title, yticks=range(len(members)))
        axis.set_yticklabels([name.replace("_", " ") for name in members])
        axis.grid(alpha=0.3)
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend(fontsize=8)
    _save(figure, path)


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Join [rows, columns, h, w, c] in [0, 1] to one picture.

    One, three and four channels are grey, colour and colour with transparency; others
    are drawn in grey beside each other.
    """
    if images.shape[-1] not in (1, 3, 4):
        images = np.concatenate(np.split(images, images.shape[-1], axis=-1), axis=3)
    rows, columns, height, width, channels = images.shape
    framed = np.pad(
        np.clip(images, 0, 1),
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
