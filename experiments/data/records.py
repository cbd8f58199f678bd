"""Examples of any Python object, for those who train from a program of their own."""

import dataclasses
from typing import NamedTuple

import numpy as np

from experiments.data.arrays import form_of, row_scaling
from experiments.data.base import Example, Rows
from experiments.data.conditions import Conditions
from experiments.data.images import split_rows
from flowjax.data import RecordRows, Records, RowSource, SelectedRows
from flowjax.data.rows import Convert

_LOOKED_AT = 4096
"""Records that the statistics are taken from at most."""


class _Registered(NamedTuple):
    """Objects that have been registered, and what their records look like."""

    train: RowSource
    held_out: RowSource | None
    example: Example


_REGISTERED: dict[str, _Registered] = {}


def register(
    name: str,
    records: Records,
    *,
    held_out: Records | None = None,
    num_classes: int | None = None,
) -> None:
    """Make an object with ``__len__`` and ``__getitem__`` a data set of experiments.

        register("mine", my_object)
        data = use(RecordSet, name="mine")
        experiment = configs.get("density_mean_flow").vary(data=data)
        train(experiment, Path("runs/mine"))

    A record is an array, or a mapping with ``x`` and perhaps a ``label``, an integer.
    uint8 images are scaled to [-1, 1], other numbers are standardised per channel, by
    the statistics of up to 4,096 records.

    Args:
        name: what experiments call it; registering a name again replaces the object.
        records: the object. Its items may be read in several threads.
        held_out: an object of held-out records; None: a share of the records.
        num_classes: number of labels, for records with a label.

    Raises:
        ValueError: if the object has no records, or they are not numbers of one shape.
    """
    rows = RecordRows(records)
    chosen = np.random.default_rng(0).permutation(len(rows))[:_LOOKED_AT]
    some = rows.gather(np.sort(chosen).tolist())
    if "x" not in some or ("label" in some) != (num_classes is not None):
        raise ValueError(
            "a record must be an array, or a mapping with x, and with a label exactly "
            f"if num_classes is given; got {', '.join(some)} and {num_classes}"
        )
    if not (num_classes is None or (type(num_classes) is int and num_classes > 0)):
        raise ValueError(f"num_classes must be a positive integer; got {num_classes!r}")
    form, event = form_of(some["x"], f"{name}, x", standardise=True)
    example = Example(event, Conditions(num_classes), form)
    train = _Scaled(rows, row_scaling(form, event), example)
    train.gather(np.sort(chosen).tolist())
    aside = None
    if held_out is not None:
        others = RecordRows(held_out)
        aside = _Scaled(others, row_scaling(form, event), example)
        aside.gather(list(range(min(len(others), _LOOKED_AT))))
    _REGISTERED[name] = _Registered(train, aside, example)


@dataclasses.dataclass(frozen=True, eq=False)
class _Scaled(RowSource):
    """Records as they are trained on."""

    source: RowSource
    convert: Convert
    example: Example

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, rows: list[int]) -> dict[str, np.ndarray]:  # type: ignore[override]
        read = self.source.gather(rows)
        if read["x"].shape[1:] not in (self.example.event, self.example.event[:-1]):
            raise ValueError(
                f"records must have shape {self.example.event}; record {rows[0]} has "
                f"{read['x'].shape[1:]}"
            )
        named = {"x": self.convert(read["x"])}
        classes = self.example.conditions.num_classes
        if classes is not None:
            labels = read["label"]
            if not ((labels >= 0) & (labels < classes)).all():
                raise ValueError(
                    f"labels of records must lie in 0..{classes - 1}; got values from "
                    f"{labels.min()} to {labels.max()}"
                )
            named["label"] = labels.astype(np.int32)
        return named


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSet(Rows):
    """Records of a Python object that the program has registered.

    Attributes:
        name: the name it was registered under.
        test_share: the share that is held out, if there is no object for that.
    """

    name: str
    test_share: float = 0.1

    def _registered(self) -> _Registered:
        if self.name not in _REGISTERED:
            raise ValueError(
                f"no object is registered as {self.name!r}; call "
                "experiments.data.register(name, object) in the program that trains"
            )
        return _REGISTERED[self.name]

    def example(self) -> Example:
        """Return what the records look like."""
        return self._registered().example

    def rows(self, *, held_out: bool) -> RowSource:
        """Return the training or the held-out records."""
        train, aside, _ = self._registered()
        if aside is not None:
            return aside if held_out else train
        chosen = split_rows(len(train), self.test_share, held_out=held_out)
        return SelectedRows(train, chosen)
