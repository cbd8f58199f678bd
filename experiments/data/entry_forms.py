"""Vectors, sequences, volumes and tables: what one example is to its user."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import plots
from experiments.data.base import (
    Dataset,
    Form,
    Reference,
    Row,
    distances,
    try_to_draw,
)
from experiments.data.entry_measures import by_entry
from flowjax.data.tables import Column, decode_table, encode_table, write_csv


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
            return figures | by_entry(_flat(x), _flat(held_out), seed)

        return Reference(real, measure, {})

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], row: Row, path: Path
    ) -> None:
        """Draw points, pairs of entries, curves, or slices, by the number of axes."""
        shown = {name: self.restore(x[:1000]) for name, x in groups.items()}
        event = next(iter(groups.values())).shape[1:]
        if len(event) == 1:
            plots.pairs(shown, [f"x[{i}]" for i in range(event[0])], path)
        elif len(event) == 2:
            plots.curves(shown, path)
        else:
            plots.slices(shown, path)

    def as_written(self, x: np.ndarray) -> np.ndarray:
        """Return samples as they are after having been written and read."""
        return x


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


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
