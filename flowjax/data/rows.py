"""Rows with random access: what batches are made of, whatever holds the data.

Anything with a length and a `gather` of rows by number is a source of rows: arrays in
memory or on disk, records of a Python object, a part of another source.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool


@runtime_checkable
class RowSource(Protocol):
    """Rows of named arrays, read by number; reading may happen in several threads."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def gather(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Return ``name -> [len(rows), ...]``, the rows in the order asked for."""
        ...


@runtime_checkable
class Records(Protocol):
    """Any object with a length whose items are read by number."""

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return one record."""
        ...


Convert = Callable[[np.ndarray], np.ndarray]
"""``rows [n, ...] -> rows [n, ...]``, each on its own."""


class ArrayRows:
    """The rows of arrays of one length, in memory or mapped from a file."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        convert: Mapping[str, Convert] | None = None,
    ):
        """Take the arrays.

        Args:
            arrays: ``name -> [n, ...]``, of the same length n.
            convert: what is done to the rows of an array when they have been read.

        Raises:
            ValueError: if they are empty or differ in length.
        """
        lengths = {name: len(array) for name, array in arrays.items()}
        self._length = next(iter(lengths.values()), 0)
        if self._length == 0 or set(lengths.values()) != {self._length}:
            raise ValueError(
                f"`arrays` must have one length of at least 1; got {lengths}"
            )
        self._arrays, self._convert = dict(arrays), dict(convert or {})

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def gather(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the rows of every array; of a mapped file only these are read."""
        read = {name: np.asarray(array[rows]) for name, array in self._arrays.items()}
        return read | {name: to(read[name]) for name, to in self._convert.items()}


class RecordRows:
    """The rows of any object with ``__len__`` and ``__getitem__``.

    A record is a mapping of names to arrays or numbers, or one array, named ``"x"``.
    ``__getitems__(rows)``, where there is one, is taken to read many at a time.
    """

    def __init__(self, records: Records):
        """Take the object.

        Raises:
            ValueError: if it is empty, or lacks one of the two methods.
        """
        for method in ("__len__", "__getitem__"):
            if not hasattr(records, method):
                raise ValueError(
                    f"`records` must have {method}; got {type(records).__name__}"
                )
        if len(records) == 0:
            raise ValueError("`records` must hold at least one record; got none")
        self._records = records

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    def gather(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the records, stacked.

        Raises:
            ValueError: if they differ in names or shapes; the message has their number.
        """
        read_many = getattr(self._records, "__getitems__", None)
        read = (
            [self._records[i] for i in rows] if read_many is None else read_many(rows)
        )
        if isinstance(read[0], tuple):
            raise ValueError(
                "a record must be an array, or a mapping of names such as x and label; "
                f"got a tuple of {len(read[0])}"
            )
        named = [r if isinstance(r, Mapping) else {"x": r} for r in read]
        arrays = [{k: np.asarray(v) for k, v in row.items()} for row in named]
        first = {name: array.shape for name, array in arrays[0].items()}
        for number, row in zip(rows, arrays, strict=True):
            shapes = {name: array.shape for name, array in row.items()}
            if shapes != first:
                raise ValueError(
                    f"records must have the same names and shapes; record {number} has "
                    f"{shapes}, record {rows[0]} {first}"
                )
        return {name: np.stack([row[name] for row in arrays]) for name in first}


@dataclasses.dataclass(frozen=True, eq=False)
class SelectedRows:
    """Some rows of a source, numbered anew.

    Attributes:
        source: the whole.
        chosen: the numbers of the rows in it [n].
    """

    source: RowSource
    chosen: np.ndarray

    def __len__(self) -> int:
        """Return the number of chosen rows."""
        return len(self.chosen)

    def gather(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Return rows by their new numbers."""
        return self.source.gather(self.chosen[np.asarray(rows, int)].tolist())


def held_out_rows(
    size: int, *, share: float, seed: int = 0
) -> Bool[np.ndarray, "size"]:
    """Say which of ``size`` rows are set aside, by a hash of their number.

    Whether row i is set aside depends on i and the seed alone: rows that are added
    later move none from one side to the other. Close to ``share`` of many rows are.

    Args:
        size: number of rows.
        share: chance of a row, in [0, 1).
        seed: chooses another set of rows; non-negative.

    Raises:
        ValueError: if an argument is out of range.
    """
    if size < 0 or seed < 0:
        raise ValueError(
            f"`size` and `seed` must not be negative; got {size} and {seed}"
        )
    if not 0 <= share < 1:
        raise ValueError(f"`share` must lie in [0, 1); got {share}")
    # The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the number
    # moves about half of the bits of the hash. Products wrap around at 2^64.
    stream = np.random.default_rng(seed).integers(2**63, dtype=np.uint64)
    z = (np.arange(size, dtype=np.uint64) ^ stream) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * 2.0**-53 < share
