"""Images and points: what one example is to its user.

A form knows the way back from the numbers that are trained on, how samples are drawn
and written, and what they are measured by.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import plots
from experiments.data import classifier
from experiments.data.base import Dataset, Form, Reference, Row, distances
from flowjax import metrics
from flowjax.extras import require

_LARGEST_FIT = 2**28
"""Bytes of training images that the classifier is fitted to at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageForm(Form):
    """Images with values in [-1, 1], of so many steps.

    Attributes:
        maximum: the pixel value of full intensity; 1 stands for it and -1 for 0.
    """

    maximum: int = 255

    def check(self, event: tuple[int, ...]) -> None:
        """Raise ValueError unless an example is an image of such values."""
        if len(event) != 3 or not 0 < self.maximum < 256:
            raise ValueError(
                f"an image must have shape (height, width, channels) and values up to "
                f"255; got {event} and {self.maximum}"
            )

    @property
    def step(self) -> float:
        """The distance of neighbouring values."""
        return 2 / self.maximum

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Return pixel values 0..maximum, uint8: clipped and rounded."""
        levels = np.rint((np.asarray(x, np.float64) + 1) * (self.maximum / 2))
        return levels.clip(0, self.maximum).astype(np.uint8)

    def reference(self, data: Dataset, count: int, seed: int) -> Reference:
        """Hold samples against held-out images, by features where there are labels.

        The features are those of a small classifier of the training images, or of a
        random network of the same shape where there are no labels.
        """
        real = data.draw(count, seed, held_out=False)
        held = data.draw(count, seed, held_out=True)
        classes = data.example().conditions.num_classes
        if classes is None:
            judge = classifier.random_features(held["x"][:1])
            known: dict[str, float] = {}
        else:
            limit = max(1, _LARGEST_FIT // held["x"][0].nbytes)
            train = data.draw(limit, seed, held_out=False)
            judge = classifier.fit(train["x"], train["label"], classes, seed=seed)
            # Its accuracy on the images that it was fitted to would say nothing.
            test = data.draw(10_000, seed, held_out=True)
            known = {"agreement": _mean(judge.predict(test["x"]) == test["label"])}
        features = judge.features(held["x"])

        def measure(x: np.ndarray) -> dict[str, float]:
            fake = judge.features(x)
            pair = jnp.asarray(features), jnp.asarray(fake)
            spread, cover = (
                metrics.precision_recall(*pair),
                metrics.density_coverage(*pair),
            )
            agreement = {}
            if classes is not None:
                agreement["agreement"] = _mean(judge.predict(x) == real["label"])
            return {
                **agreement,
                "Fréchet": float(metrics.frechet_distance(fake, features)),
                **distances(x, held["x"], jax.random.key(seed)),
                "precision": float(spread.precision),
                "recall": float(spread.recall),
                "coverage": float(cover.coverage),
            }

        return Reference(real, measure, known)

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], row: Row, path: Path
    ) -> None:
        """Draw one row per class (at most ten), or rows of eight without classes."""
        labels = row.get("label")
        if labels is None:
            count = min(64, *(len(x) for x in groups.values()))
            rows = _in_rows(count, 8)
        else:
            classes = [c for c in np.unique(labels)[:10]]
            columns = min(8, *((labels == c).sum() for c in classes))
            rows = np.stack([np.flatnonzero(labels == c)[:columns] for c in classes])
        tiles = {name: self.restore(x[rows]) for name, x in groups.items()}
        plots.image_grid(tiles, path, maximum=self.maximum)

    def draw_samples(self, title: str, x: np.ndarray, path: Path) -> None:
        """Draw samples in rows of ten."""
        tiles = {title: self.restore(x[_in_rows(len(x), 10)])}
        plots.image_grid(tiles, path, maximum=self.maximum)

    def write_each(self, x: np.ndarray, out: Path) -> Path:
        """Write every image into a PNG, in a folder."""
        pil = require("PIL.Image", extra="data")
        pixels = self.restore(x)
        channels = pixels.shape[-1]
        if channels not in (1, 3, 4):
            raise ValueError(
                f"PNG has 1, 3 or 4 channels; these images have {channels}"
            )
        out.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pixels):
            # A PNG of fewer grey levels than 256 would look black.
            shown = image.astype(np.uint16) * 255 // self.maximum
            shown = shown.astype(np.uint8)
            shown = shown[..., 0] if channels == 1 else shown
            pil.fromarray(shown).save(out / f"{number:06d}.png")
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointForm(Form):
    """Points on the line or the plane, as they are."""

    def reference(self, data: Dataset, count: int, seed: int) -> Reference:
        """Hold points against others, with the exact distance as well."""
        real = data.draw(count, seed, held_out=False)
        held_out = data.draw(count, seed, held_out=True)["x"]

        def measure(x: np.ndarray) -> dict[str, float]:
            n = min(len(x), len(held_out), 1000)
            exact = metrics.wasserstein2(jnp.asarray(x[:n]), jnp.asarray(held_out[:n]))
            rest = distances(x, held_out, jax.random.key(seed))
            return rest | {"W2": float(exact)}

        return Reference(real, measure, {})

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], row: Row, path: Path
    ) -> None:
        """Draw the groups side by side."""
        plots.point_clouds(groups, path)


def _mean(hits: np.ndarray) -> float:
    return float(hits.mean())


def _in_rows(count: int, columns: int) -> np.ndarray:
    """Return the numbers 0..count-1 in full rows, as far as there are any."""
    columns = min(columns, count)
    rows = count // columns
    return np.arange(rows * columns).reshape(rows, columns)
