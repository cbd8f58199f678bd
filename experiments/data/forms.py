"""What one example is to its user: images, points, vectors, tables, sequences.

A form knows the way back from the numbers that are trained on, how samples are drawn
and written, and what they are measured by.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from experiments import plots
from experiments.data import classifier
from experiments.data.base import (
    Dataset,
    Example,
    Form,
    Reference,
    Row,
    distances,
    try_to_draw,
)
from experiments.data.conditions import Conditions
from experiments.language.sentence import label, table
from flowjax import metrics
from flowjax.data.tables import Column, decode_table, encode_table, write_csv
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entries(Form):
    """Arrays of numbers, each of which has a meaning of its own."""

    def reference(self, data: Dataset, count: int, seed: int) -> Reference:
        """Hold samples against held-out rows, as a whole and entry by entry.

        Distances are those of the numbers that are trained on; "column W1" is the mean
        over the entries, "correlation" the root mean square error of the correlations,
        and "C2ST" how often a classifier tells samples from held-out rows: 0.5 is best.
        """
        real = data.draw(count, seed, held_out=False)
        held_out = data.draw(count, seed, held_out=True)["x"]

        def measure(x: np.ndarray) -> dict[str, float]:
            x = self.as_written(x)
            figures = distances(x, held_out, jax.random.key(seed))
            return figures | _by_entry(_flat(x), _flat(held_out), seed)

        return Reference(real, measure, {})

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], row: Row, path: Path
    ) -> None:
        """Draw points, pairs of entries, curves, or slices, by the number of axes."""
        shown = {name: self.restore(x[:1000]) for name, x in groups.items()}
        event = next(iter(groups.values())).shape[1:]
        if len(event) == 1:
            plots.pairs(shown, self._entry_names(event[0]), path)
        elif len(event) == 2:
            plots.curves(shown, path)
        else:
            plots.slices(shown, path)

    def as_written(self, x: np.ndarray) -> np.ndarray:
        """Return samples as they are after having been written and read."""
        return x

    def _entry_names(self, count: int) -> list[str]:
        return [f"x[{i}]" for i in range(count)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorForm(_Entries):
    """Standardised arrays: vectors, sequences, volumes or images of floats.

    Attributes:
        mean: what was subtracted, one number per entry of the last axis.
        std: what was divided by.
        dtype: of the file; whole numbers and truth values come back rounded.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "float32"

    def check(self, event: tuple[int, ...]) -> None:
        """Raise ValueError unless there is a scale for every entry."""
        if not event or {len(self.mean), len(self.std)} != {event[-1]}:
            raise ValueError(f"examples of shape {event} need {event[-1:]} scales")
        if np.dtype(self.dtype).kind not in "fiub":
            raise ValueError(f"arrays hold numbers; got {self.dtype}")

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Return samples in the units and the dtype of the file."""
        values, dtype = x * np.array(self.std) + self.mean, np.dtype(self.dtype)
        if dtype.kind == "b":
            return values > 0.5
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.rint(values).clip(limits.min, limits.max)
        return values.astype(dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableForm(_Entries):
    """Rows of a table.

    Attributes:
        columns: how each column is written as numbers.
        label: the column that is the class label, or None.
        vector: the columns that are the vector to condition on.
    """

    columns: tuple[Column, ...]
    label: Column | None = None
    vector: tuple[Column, ...] = ()

    def check(self, event: tuple[int, ...]) -> None:
        """Raise ValueError unless the columns have as many entries."""
        width = sum(column.width for column in self.columns)
        if event != (width,):
            raise ValueError(f"columns of {width} entries do not make shape {event}")

    def as_written(self, x: np.ndarray) -> np.ndarray:
        """Return samples with one category in each place, and whole numbers whole."""
        written = decode_table(self.columns, x)
        columns = {n: np.array(values, object) for n, values in written.items()}
        return encode_table(self.columns, columns)

    def write(
        self, x: np.ndarray, conditions: Row, out: Path, title: str
    ) -> list[Path]:
        """Write a CSV with the columns of the table, and a picture."""
        file, picture = (out.with_name(out.name + end) for end in (".csv", ".png"))
        write_csv(decode_table(self.columns, x) | self._given(conditions), file)
        drawn = try_to_draw(lambda: self.draw_samples(title, x, picture))
        return [file, picture] if drawn else [file]

    def _given(self, conditions: Row) -> dict[str, list[Any]]:
        """Return conditions in the user's units as the columns that they came from."""
        columns: dict[str, list[Any]] = {}
        if self.label is not None and self.label.categories is not None:
            names = self.label.categories
            columns[self.label.name] = [names[i] for i in conditions["label"]]
        start = 0
        for column in self.vector:
            part = conditions["vector"][:, start : start + column.width]
            units = dataclasses.replace(column, mean=0.0, std=1.0)
            columns[column.name] = units.decode(part)
            start += column.width
        return columns

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], row: Row, path: Path
    ) -> None:
        """Draw the number columns in pairs, or shares of the categories without any."""
        ends = np.cumsum([column.width for column in self.columns])
        first = [(c, e - c.width) for c, e in zip(self.columns, ends, strict=True)]
        numbers = [(c, i) for c, i in first if c.categories is None]
        chosen = numbers or first
        written = {name: self.as_written(x[:1000]) for name, x in groups.items()}
        shown = {
            name: np.stack([x[:, i] * c.std + c.mean for c, i in chosen], axis=1)
            for name, x in written.items()
        }
        plots.pairs(shown, [c.name for c, _ in chosen], path)


# Larger than any that a network here comes near to; nothing would ever end.
_Positive = Annotated[int, msgspec.Meta(gt=0, le=2**20)]
_Names, _Numbers = tuple[str, ...], tuple[float, ...]
_ENTRIES = {
    "num_classes": _Positive | None,  # pyright: ignore[reportOperatorIssue]
    "classes": _Names,
    "names": _Names,
    "means": _Numbers,
    "stds": _Numbers,
    "channels": Annotated[int, msgspec.Meta(ge=0)],
}

FORMS = table(ImageForm, PointForm, VectorForm, TableForm)


def encode_example(example: Example) -> dict[str, Any]:
    """Return an example as JSON has it."""
    form = example.form
    return {
        "event": example.event,
        "conditions": example.conditions._asdict(),
        "form": {"is": label(type(form)), **dataclasses.asdict(form)},
    }


def decode_example(stored: Any) -> Example:
    """Return the example that `encode_example` was given.

    Raises:
        KeyError: if an entry is missing.
        ValueError: if one is not of its type, or they do not fit each other.
    """
    sizes = Annotated[tuple[_Positive, ...], msgspec.Meta(min_length=1)]
    event = msgspec.convert(stored["event"], sizes)
    given = msgspec.convert(stored["conditions"], dict[str, Any])
    conditions = Conditions(
        **{name: msgspec.convert(given[name], kind) for name, kind in _ENTRIES.items()}
    )
    options = msgspec.convert(stored["form"], dict[str, Any])
    if options.get("is") not in FORMS:
        raise ValueError(f"the form of an example must be one of {', '.join(FORMS)}")
    form = msgspec.convert(options, FORMS[options.pop("is")])
    if len({len(conditions.names), len(conditions.means), len(conditions.stds)}) > 1:
        raise ValueError("the entries of the vector, means and stds differ in number")
    if conditions.classes and len(conditions.classes) != conditions.num_classes:
        raise ValueError("the names of the classes differ in number from the labels")
    form.check(event)
    return Example(event, conditions, form)


def _mean(hits: np.ndarray) -> float:
    return float(hits.mean())


def _in_rows(count: int, columns: int) -> np.ndarray:
    """Return the numbers 0..count-1 in full rows, as far as there are any."""
    columns = min(columns, count)
    rows = count // columns
    return np.arange(rows * columns).reshape(rows, columns)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _by_entry(x: np.ndarray, held_out: np.ndarray, seed: int) -> dict[str, float]:
    """Return distances of the entries' laws, their correlations and the joint law."""
    dim = x.shape[1]
    chosen = np.random.default_rng(seed).permutation(dim)[:64]
    x, held_out = x[:, chosen], held_out[:, chosen]
    figures = {
        "column W1": float(
            np.mean(
                [
                    metrics.wasserstein_1d(jnp.asarray(a), jnp.asarray(b))
                    for a, b in zip(x.T, held_out.T, strict=True)
                ]
            )
        )
    }
    if len(chosen) > 1:
        with np.errstate(invalid="ignore", divide="ignore"):  # a constant entry
            error = np.corrcoef(x.T) - np.corrcoef(held_out.T)
        off = error[np.triu_indices(len(chosen), 1)]
        figures["correlation"] = math.sqrt(np.mean(np.square(np.nan_to_num(off))))
    return figures | {"C2ST": _two_sample_accuracy(x, held_out, seed)}


def _two_sample_accuracy(x: np.ndarray, other: np.ndarray, seed: int) -> float:
    """Return how often a classifier, fitted to one half, tells the other half apart.

    References:
        Lopez-Paz and Oquab 2017, Revisiting Classifier Two-Sample Tests,
        arXiv:1610.06545.
    """
    ensemble = require("sklearn.ensemble", extra="data")
    selection = require("sklearn.model_selection", extra="data")
    n = min(len(x), len(other), 2000)
    rows = np.concatenate([x[:n], other[:n]])
    sides = np.repeat([0, 1], n)
    if n < 10:
        return math.nan
    judge = ensemble.RandomForestClassifier(
        100, min_samples_leaf=5, random_state=seed, n_jobs=1
    )
    folds = selection.StratifiedKFold(2, shuffle=True, random_state=seed)
    return float(selection.cross_val_score(judge, rows, sides, cv=folds).mean())
