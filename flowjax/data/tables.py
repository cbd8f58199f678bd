"""Tables: CSV and Parquet as vectors of numbers, and back.

A number column is standardised; a column of categories becomes one entry per category,
1 for the one that is there and -1 for the others. `Column` holds all that the way back
needs. Files are read and written with pyarrow, which the extra `data` brings.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from flowjax.extras import require

Missing = Literal["refuse", "mask"]

_MAX_CATEGORIES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """How one column is written as numbers.

    Attributes:
        name: its name.
        categories: what may stand in it, as text; None: numbers.
        mean: of the numbers.
        std: their standard deviation; 1 where they are all equal.
        whole: whether the numbers are whole, and come back rounded.
        gaps: whether values may be missing: a last entry is 1 where one is and -1 where
            not, and the number in its place the mean.
    """

    name: str
    categories: tuple[str, ...] | None = None
    mean: float = 0.0
    std: float = 1.0
    whole: bool = False
    gaps: bool = False

    @property
    def width(self) -> int:
        """The number of entries."""
        return len(self.categories or ("number",)) + self.gaps

    def encode(self, values: np.ndarray) -> Float32[np.ndarray, "n width"]:
        """Return values [n], None where one is missing, as numbers [n, width].

        Raises:
            ValueError: if a category is unknown, or a value missing that may not be.
        """
        absent = np.array([value is None for value in values])
        if absent.any() and not self.gaps:
            raise ValueError(
                f"column {self.name!r}, row {int(absent.argmax())}: a missing value; "
                "there are none in the column it was fitted to"
            )
        if self.categories is None:
            filled = [self.mean if value is None else value for value in values]
            parts = (np.asarray(filled, np.float64)[:, None] - self.mean) / self.std
        else:
            parts = np.full((len(values), len(self.categories)), -1.0)
            places = {category: i for i, category in enumerate(self.categories)}
            for row in np.flatnonzero(~absent):
                if (text := as_text(values[row])) not in places:
                    raise ValueError(
                        f"column {self.name!r}, row {row}: {text!r} is none of its "
                        f"{len(self.categories)} categories"
                    )
                parts[row, places[text]] = 1.0
        if self.gaps:
            parts = np.concatenate([parts, np.where(absent, 1.0, -1.0)[:, None]], 1)
        return parts.astype(np.float32)

    def decode(self, numbers: np.ndarray) -> list[Any]:
        """Return what numbers [n, width] mean: the nearest value, None if missing."""
        absent = numbers[:, -1] > 0 if self.gaps else np.zeros(len(numbers), bool)
        parts = numbers[:, : self.width - self.gaps].astype(np.float64)
        if self.categories is None:
            raw = parts[:, 0] * self.std + self.mean
            values = (np.rint(raw).astype(np.int64) if self.whole else raw).tolist()
        else:
            values = [self.categories[i] for i in parts.argmax(1)]
        return [
            None if gone else value for gone, value in zip(absent, values, strict=True)
        ]


def as_text(value: Any) -> str:
    """Return a category as it is compared and written."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_table(
    file: str | os.PathLike[str], *, columns: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the columns of a CSV or Parquet file, None where a value is missing.

    Args:
        file: ends in .csv, .tsv, .parquet or .pq; text is UTF-8.
        columns: names of those to read; None: all.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: without the extra `data`.
        ValueError: if it can't be read, or has no rows, or two columns of one name, or
            a column that is neither numbers, text nor truth values.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    arrow = require("pyarrow", extra="data")
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            csv = require("pyarrow.csv", extra="data")
            parse = csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",")
            convert = csv.ConvertOptions(strings_can_be_null=True)
            table = csv.read_csv(path, parse_options=parse, convert_options=convert)
        elif suffix in (".parquet", ".pq"):
            table = require("pyarrow.parquet", extra="data").read_table(path)
        else:
            raise ValueError("it must end in .csv, .tsv or .parquet")
    except (arrow.ArrowException, ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    names = table.column_names
    if len(set(names)) < len(names) or not names or not len(table):
        raise ValueError(
            f"{path} must have rows, and columns of different names; got {len(table)} "
            f"rows of {', '.join(names) or 'no column'}"
        )
    types = arrow.types
    read = {}
    chosen = names if columns is None else [n for n in names if n in columns]
    for name in chosen:
        kind = table.column(name).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        known = (
            types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)
        ) or (types.is_string(kind) or types.is_large_string(kind))
        if not known:
            raise ValueError(
                f"{path}: column {name!r} holds {kind}; numbers, text in UTF-8 and "
                "truth values are read. Convert it, or name the columns to learn"
            )
        values = table.column(name).to_pylist()
        if types.is_floating(kind):  # a NaN in a file is a missing value
            values = [None if v is None or v != v else v for v in values]
        read[name] = np.array([*values, None], object)[:-1]
    return read


def fit_column(
    name: str,
    values: np.ndarray,
    *,
    categorical: bool = False,
    missing: Missing = "refuse",
) -> Column:
    """Return how a column of values is to be written as numbers.

    Args:
        name: its name.
        values: its values [n], None where one is missing.
        categorical: take numbers for categories too; text always is.
        missing: refuse missing values, or give the column an entry for them.

    Raises:
        ValueError: if a value is missing, infinite, there is none at all or there are
            more than 1,000 categories.
    """
    absent = np.array([value is None for value in values])
    if absent.all():
        raise ValueError(f"column {name!r} has no value at all")
    if absent.any() and missing == "refuse":
        raise ValueError(
            f"column {name!r} lacks {absent.sum()} of {len(values)} values, the first "
            f"in row {int(absent.argmax())}; fill them in, or, where it is learned, "
            "mask them (--data.missing mask)"
        )
    gaps, there = bool(absent.any()), values[~absent]
    if categorical or any(isinstance(value, str | bool) for value in there):
        found = sorted({as_text(value) for value in there})
        # Text that hardly repeats is none of categories: a name, an id, a number with a
        # stray mark in one row, a file with another separator.
        if len(found) > min(_MAX_CATEGORIES, max(20, len(there) // 2)):
            raise ValueError(
                f"column {name!r} has {len(found)} different values in {len(there)} "
                f"rows, such as {found[0]!r} and {found[-1]!r}: no categories. If they "
                "should be numbers, or several columns, see what stands in the file; "
                "or name the columns to learn without it"
            )
        return Column(name=name, categories=tuple(found), gaps=gaps)
    numbers = there.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"column {name!r} holds an infinite value")
    return Column(
        name=name,
        mean=float(numbers.mean()),
        std=float(numbers.std()) or 1.0,
        whole=all(isinstance(value, int) for value in there),
        gaps=gaps,
    )


def encode_table(
    columns: Sequence[Column], table: Mapping[str, np.ndarray]
) -> Float32[np.ndarray, "n width"]:
    """Return a table as vectors, the entries of its columns side by side.

    Raises:
        ValueError: if it lacks a column, or a value does not fit one.
    """
    if lost := [c.name for c in columns if c.name not in table]:
        raise ValueError(
            f"the table lacks {', '.join(lost)}; it has {', '.join(table)}"
        )
    return np.concatenate([c.encode(table[c.name]) for c in columns], axis=1)


def decode_table(columns: Sequence[Column], x: np.ndarray) -> dict[str, list[Any]]:
    """Return the table that vectors [n, width] mean; inverts `encode_table`.

    Raises:
        ValueError: if the width is not that of the columns.
    """
    ends = np.cumsum([column.width for column in columns])
    if x.ndim != 2 or x.shape[1] != ends[-1]:
        raise ValueError(f"`x` must have shape [n, {ends[-1]}]; got {x.shape}")
    parts = np.split(x, ends[:-1], axis=1)
    return {c.name: c.decode(p) for c, p in zip(columns, parts, strict=True)}


def write_csv(table: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write a table as CSV; a missing value is an empty field."""
    arrow = require("pyarrow", extra="data")
    require("pyarrow.csv", extra="data").write_csv(
        arrow.table({name: list(values) for name, values in table.items()}), str(path)
    )
