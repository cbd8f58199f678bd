"""Tables from files: numbers and categories, and conditions taken from columns."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.data.base import Example
from experiments.data.conditions import Conditions
from experiments.data.entry_forms import TableForm
from experiments.data.files import FileRows, Opened
from flowjax.data import ArrayRows, tables
from flowjax.data.tables import Column


class _Fit(NamedTuple):
    """How the columns of a table are read.

    Attributes:
        learned: those that are learned.
        label: the one that is a class label, or None.
        vector: those that are a vector to condition on.
    """

    learned: tuple[Column, ...]
    label: Column | None
    vector: tuple[Column, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(FileRows):
    """Rows of a CSV or Parquet file.

    Columns of numbers are standardised, those of text or truth values become one entry
    per category. Samples are written as such a table again.

    Attributes:
        columns: the columns to learn; none: all that are not conditions.
        categorical: columns of numbers that are categories.
        label: a column of categories to condition on, as a class label; None: none.
        vector: columns to condition on, as a vector.
        missing: refuse a missing value, or give its column an entry that says so, which
            samples can have as well.
    """

    columns: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    label: str | None = None
    vector: tuple[str, ...] = ()
    missing: Literal["refuse", "mask"] = "refuse"

    def open(self, file: str, like: Opened | None) -> Opened:
        """Read the table.

        Raises:
            ValueError: if a column is missing, or a value that must be there.
        """
        beside = (*filter(None, [self.label]), *self.vector)
        wanted = (*self.columns, *beside) if self.columns else None
        read = tables.read_table(file, columns=wanted)
        learned = self._learned(read, file)
        try:
            fit = self._fit(read, learned) if like is None else like.fit
            return _encode(read, fit)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def _learned(self, read: Mapping[str, Any], file: str) -> tuple[str, ...]:
        """Return the names of the columns to learn, all names checked."""
        beside = (*filter(None, [self.label]), *self.vector)
        learned = self.columns or tuple(name for name in read if name not in beside)
        for name in (*learned, *beside, *self.categorical):
            if name not in read:
                raise ValueError(
                    f"{file} has no column {name!r}; it has {', '.join(read)}"
                )
        if not learned or set(learned) & set(beside):
            raise ValueError(
                "a column is either learned or conditioned on, and one at least is "
                f"learned; got data.columns {', '.join(learned)} beside "
                f"{', '.join(beside)}"
            )
        return learned

    def _fit(self, read: Mapping[str, np.ndarray], learned: Sequence[str]) -> _Fit:
        def fit(name: str, **options: Any) -> Column:
            chosen = {"categorical": name in self.categorical, **options}
            return tables.fit_column(name, read[name], **chosen)

        return _Fit(
            tuple(fit(name, missing=self.missing) for name in learned),
            None if self.label is None else fit(self.label, categorical=True),
            tuple(map(fit, self.vector)),
        )


def _encode(read: Mapping[str, np.ndarray], fit: _Fit) -> Opened:
    named: dict[str, np.ndarray] = {"x": tables.encode_table(fit.learned, read)}
    classes, names, means, stds = None, [], [], []
    if fit.label is not None:
        named["label"] = (
            fit.label.encode(read[fit.label.name]).argmax(1).astype(np.int32)
        )
        classes = fit.label.width
    if fit.vector:
        named["vector"] = tables.encode_table(fit.vector, read)
    for column in fit.vector:
        values = column.categories
        names += [f"{column.name}={v}" for v in values] if values else [column.name]
        means += [column.mean] * column.width
        stds += [column.std] * column.width
    called = () if fit.label is None else fit.label.categories or ()
    conditions = Conditions(classes, called, tuple(names), tuple(means), tuple(stds))
    event = named["x"].shape[1:]
    form = TableForm(columns=fit.learned, label=fit.label, vector=fit.vector)
    return Opened(ArrayRows(named), Example(event, conditions, form), fit)
