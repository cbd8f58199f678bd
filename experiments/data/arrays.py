"""Arrays from files: vectors, sequences, images, volumes."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data.base import Example, Form
from experiments.data.conditions import Conditions
from experiments.data.files import FileRows, Opened
from experiments.data.forms import ImageForm, VectorForm
from flowjax.data import ArrayRows, open_arrays

_LOOKED_AT = 2**28
"""Bytes of a mapped array that its statistics are taken from at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays(FileRows):
    """Arrays of a .npz or .npy file, or of a folder of .npy files.

    Whatever an example is: a vector, a sequence [length, channels], an image [height,
    width, channels], a volume. Images of uint8 are scaled to [-1, 1], other numbers are
    standardised per channel.

    Attributes:
        x: the array to learn, examples first; None: the one called x, or the only one.
        label: an array of class labels 0, 1, ...; None: no labels.
        vector: arrays of numbers to condition on, joined to one vector per example.
        array: an array of the examples' shape, but for the channels, to condition on.
        standardise: scale numbers to mean 0 and deviation 1; without, they stay.
    """

    x: str | None = None
    label: str | None = None
    vector: tuple[str, ...] = ()
    array: str | None = None
    standardise: bool = True

    def open(self, file: str, like: Opened | None) -> Opened:
        """Open the arrays.

        Raises:
            ValueError: if an array is missing, of another length, kind or shape than it
                must have, or holds a number that is not finite.
        """
        arrays = open_arrays(file)
        main = self._main(arrays, file)
        for name in (main, *filter(None, [self.label, self.array]), *self.vector):
            if name not in arrays:
                raise ValueError(
                    f"{file} has no array {name}; it has {', '.join(arrays)}"
                )
        form = like.example.form if like else self._form(arrays[main], f"{file}, {main}")
        x = _scaled(arrays[main], form)
        given = like.example.conditions if like else None
        parts = [
            self._read_label(arrays, file, given),
            self._read_vector(arrays, file, given),
            self._read_array(arrays, file, x.shape[1:]),
        ]
        named, about = {"x": x}, {}
        for rows, facts in filter(None, parts):
            named |= rows
            about |= facts
        example = Example(x.shape[1:], Conditions(**about), form)
        return Opened(ArrayRows(named), example)

    def _main(self, arrays: Mapping[str, np.ndarray], file: str) -> str:
        if self.x is not None:
            return self.x
        if "x" in arrays or len(arrays) == 1:
            return "x" if "x" in arrays else next(iter(arrays))
        raise ValueError(
            f"{file} has {', '.join(arrays)}; say which to learn: --data.x NAME"
        )

    def _form(self, x: np.ndarray, name: str) -> Form:
        if x.ndim < 2:
            raise ValueError(f"{name} must have shape [n, ...]; got {x.shape}")
        form = _plain_form(x, name)
        if isinstance(form, ImageForm) or not self.standardise:
            return form
        mean, std = _moments(x, name)
        return VectorForm(mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def _read_label(
        self, arrays: Mapping[str, np.ndarray], file: str, like: Conditions | None
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the labels by name, and what is to be known of them."""
        if self.label is None:
            return None
        labels = arrays[self.label]
        classes = _check_labels(
            labels, like and like.num_classes, f"{file}, {self.label}"
        )
        lazy = _Lazy(labels, lambda rows: rows.astype(np.int32))
        return {"label": lazy}, {"num_classes": classes}

    def _read_vector(
        self, arrays: Mapping[str, np.ndarray], file: str, like: Conditions | None
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the standardised vectors, and what is to be known of them."""
        if not self.vector:
            return None
        parts = {name: _columns(arrays[name], f"{file}, {name}") for name in self.vector}
        entries = [
            name if part.shape[1] == 1 else f"{name}[{i}]"
            for name, part in parts.items()
            for i in range(part.shape[1])
        ]
        whole = np.concatenate(list(parts.values()), 1)
        mean, std = _moments(whole, f"{file}, {', '.join(self.vector)}")
        if like is not None:
            mean, std = np.array(like.means), np.array(like.stds)
        facts = {"names": tuple(entries), "means": tuple(mean.tolist())}
        facts["stds"] = tuple(std.tolist())
        return {"vector": ((whole - mean) / std).astype(np.float32)}, facts

    def _read_array(
        self, arrays: Mapping[str, np.ndarray], file: str, event: tuple[int, ...]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the arrays beside the examples, and how many channels they have."""
        if self.array is None:
            return None
        name, beside = f"{file}, {self.array}", arrays[self.array]
        scaled = _scaled(beside, _plain_form(beside, name))
        if len(event) < 2 or scaled.shape[1:-1] != event[:-1]:
            raise ValueError(
                f"{name} must have shape [n, {', '.join(map(str, event[:-1]))}, "
                f"channels], as the examples but for the channels; got {beside.shape}"
            )
        return {"array": scaled}, {"channels": scaled.shape[-1]}


class _Lazy:
    """An array that is converted as its rows are read: it may be mapped and large."""

    def __init__(
        self,
        array: np.ndarray,
        convert: Callable[[np.ndarray], np.ndarray],
        event: tuple[int, ...] = (),
    ):
        self._array, self._convert = array, convert
        self.shape = (len(array), *event)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._convert(np.asarray(self._array[rows]))


def _plain_form(x: np.ndarray, name: str) -> Form:
    """Return the form of numbers that stay as they are, or of images of uint8."""
    if x.dtype == np.uint8 and x.ndim >= 3:
        return ImageForm()
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)):
        raise ValueError(f"{name} must hold numbers; got {x.dtype}")
    channels = x.shape[-1]
    return VectorForm(mean=(0.0,) * channels, std=(1.0,) * channels)


def _scaled(x: np.ndarray, form: Form) -> Any:
    """Return an array whose rows come as they are trained on, float32."""
    event = x.shape[1:]
    if isinstance(form, ImageForm):
        event = event if len(event) == 3 else (*event, 1)

        def convert(rows: np.ndarray) -> np.ndarray:
            scaled = rows.astype(np.float32) / np.float32(form.maximum / 2) - 1
            return scaled.reshape(len(rows), *event)

    else:
        assert isinstance(form, VectorForm)
        mean, std = np.array(form.mean), np.array(form.std)

        def convert(rows: np.ndarray) -> np.ndarray:
            scaled = ((rows - mean) / std).astype(np.float32)
            if not np.isfinite(scaled).all():
                raise ValueError("the data hold a number that is not finite")
            return scaled

    return _Lazy(x, convert, event)


def _moments(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of the last axis, over all the others.

    Of a large array evenly spread rows are looked at.

    Raises:
        ValueError: if a number is not finite.
    """
    bytes_per_row = 8 * math.prod(x.shape[1:])
    stride = max(1, len(x) * bytes_per_row // _LOOKED_AT)
    part = np.asarray(x[::stride], np.float64)
    if not np.isfinite(part).all():
        row = stride * int(np.argmin(np.isfinite(part.reshape(len(part), -1)).all(1)))
        raise ValueError(f"{name}, row {row}, holds a number that is not finite")
    flat = part.reshape(-1, part.shape[-1])
    std = flat.std(0)
    # A constant entry has no scale of its own.
    return flat.mean(0), np.where(std > 0, std, 1.0)


def _columns(x: np.ndarray, name: str) -> np.ndarray:
    if x.ndim not in (1, 2) or x.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must be numbers of shape [n] or [n, features]; got {x.dtype} of "
            f"shape {x.shape}"
        )
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _check_labels(labels: np.ndarray, classes: int | None, name: str) -> int:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be integer labels of shape [n]; got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    highest = int(labels.max()) + 1 if classes is None else classes
    if labels.min() < 0 or labels.max() >= highest:
        raise ValueError(
            f"{name} must lie in 0..{highest - 1}; got values from {labels.min()} to "
            f"{labels.max()}"
        )
    return highest
