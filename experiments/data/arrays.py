"""Arrays from files: vectors, sequences, images, volumes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.data.base import Example, Form
from experiments.data.conditions import Conditions
from experiments.data.entry_forms import VectorForm
from experiments.data.files import FileRows, Opened
from experiments.data.forms import ImageForm
from flowjax.data import ArrayRows, open_arrays
from flowjax.data.rows import Convert

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
        array: an array of the examples' shape, but for the channels, to condition on;
            uint8 is scaled to [-1, 1], other numbers stay as they are.
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
        name = f"{file}, {main}"
        arrays = {**arrays, main: with_event(arrays[main])}
        form, event = form_of(arrays[main], name, standardise=self.standardise)
        if like is not None:
            if type(like.example.form) is not type(form):
                raise ValueError(
                    f"{name} must be of the kind of {self.file}, uint8 images or other "
                    f"numbers; got {arrays[main].dtype}"
                )
            form = like.example.form
        given = like.example.conditions if like else None
        parts = [
            _Part("x", arrays[main], row_scaling(form, event), {}),
            self._label_part(arrays, file, given),
            self._vector_part(arrays, file, given),
            self._array_part(arrays, file, event),
        ]
        there = [part for part in parts if part is not None]
        about = {name: fact for part in there for name, fact in part.about.items()}
        rows = ArrayRows(
            {part.name: part.array for part in there},
            convert={part.name: part.convert for part in there},
        )
        return Opened(rows, Example(event, Conditions(**about), form))

    def _main(self, arrays: Mapping[str, np.ndarray], file: str) -> str:
        if self.x is not None:
            return self.x
        if "x" in arrays or len(arrays) == 1:
            return "x" if "x" in arrays else next(iter(arrays))
        raise ValueError(
            f"{file} has {', '.join(arrays)}; say which to learn: --data.x NAME"
        )

    def _label_part(
        self, arrays: Mapping[str, np.ndarray], file: str, like: Conditions | None
    ) -> "_Part | None":
        if self.label is None:
            return None
        name = f"{file}, {self.label}"
        labels = _as_labels(arrays[self.label])
        classes = _check_labels(labels, like and like.num_classes, name)
        return _Part("label", labels, _to(np.int32), {"num_classes": classes})

    def _vector_part(
        self, arrays: Mapping[str, np.ndarray], file: str, like: Conditions | None
    ) -> "_Part | None":
        if not self.vector:
            return None
        parts = {
            name: _columns(arrays[name], f"{file}, {name}") for name in self.vector
        }
        entries = [
            name if part.shape[1] == 1 else f"{name}[{i}]"
            for name, part in parts.items()
            for i in range(part.shape[1])
        ]
        whole = np.concatenate(list(parts.values()), 1)
        mean, std = _moments(whole, f"{file}, {', '.join(self.vector)}")
        if like is not None:
            mean, std = np.array(like.means), np.array(like.stds)
        about = {
            "names": tuple(entries),
            "means": tuple(mean.tolist()),
            "stds": tuple(std.tolist()),
        }
        return _Part("vector", (whole - mean) / std, _to(np.float32), about)

    def _array_part(
        self, arrays: Mapping[str, np.ndarray], file: str, event: tuple[int, ...]
    ) -> "_Part | None":
        if self.array is None:
            return None
        name, beside = f"{file}, {self.array}", arrays[self.array]
        if beside.ndim == len(event):  # one channel, without its axis
            beside = beside[..., None]
        form = _plain_form(beside, name)
        shape = _event(beside, form)
        if len(event) < 2 or shape[:-1] != event[:-1]:
            raise ValueError(
                f"{name} must have shape [n, {', '.join(map(str, event[:-1]))}, "
                f"channels], as the examples but for the channels; got {beside.shape}"
            )
        return _Part("array", beside, row_scaling(form, shape), {"channels": shape[-1]})


class _Part(NamedTuple):
    """What is read of one kind.

    Attributes:
        name: what the rows are called.
        array: all of them.
        convert: what is done to those that are read: the array may be mapped and large.
        about: what `Conditions` is to know.
    """

    name: str
    array: np.ndarray
    convert: Convert
    about: dict[str, Any]


def _to(dtype: Any) -> Convert:
    return lambda rows: rows.astype(dtype)


def form_of(
    x: np.ndarray, name: str, *, standardise: bool
) -> tuple[Form, tuple[int, ...]]:
    """Return the form of an array's examples, and their shape.

    Raises:
        ValueError: if they are not numbers, or not finite.
    """
    if x.ndim < 2:
        raise ValueError(f"{name} must have shape [n, ...]; got {x.shape}")
    form = _plain_form(x, name)
    if standardise and not isinstance(form, ImageForm):
        mean, std = _moments(x, name)
        assert isinstance(form, VectorForm)
        form = dataclasses.replace(
            form, mean=tuple(mean.tolist()), std=tuple(std.tolist())
        )
    return form, _event(x, form)


def with_event(x: np.ndarray) -> np.ndarray:
    """Return numbers [n] as vectors [n, 1], other arrays as they are."""
    return x[:, None] if x.ndim == 1 else x


def _plain_form(x: np.ndarray, name: str) -> Form:
    """Return the form of numbers that stay as they are, or of images of uint8."""
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return ImageForm()
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers; got {x.dtype}")
    channels = x.shape[-1]
    if not x.size:
        raise ValueError(f"{name} must not be empty; got shape {x.shape}")
    # A number of Python has no longer double.
    kept = x.dtype if x.dtype.itemsize <= 8 else np.dtype(np.float64)
    return VectorForm(mean=(0.0,) * channels, std=(1.0,) * channels, dtype=kept.name)


def _event(x: np.ndarray, form: Form) -> tuple[int, ...]:
    """Return the shape of an example; images without channels have one."""
    event = x.shape[1:]
    return (*event, 1) if isinstance(form, ImageForm) and len(event) == 2 else event


def row_scaling(form: Form, event: tuple[int, ...]) -> Convert:
    """Return what turns stored rows into what is trained on, float32."""
    if isinstance(form, ImageForm):
        half = np.float32(form.maximum / 2)
        return lambda rows: (rows.astype(np.float32) / half - 1).reshape(-1, *event)
    assert isinstance(form, VectorForm)
    mean, std = np.array(form.mean), np.array(form.std)

    def standardise(rows: np.ndarray) -> np.ndarray:
        scaled = ((rows - mean) / std).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise ValueError("the data hold a number that is not finite")
        return scaled

    return standardise


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


def _as_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels [n] of whole numbers, which may be written otherwise."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "b":
        return labels.astype(np.int32)
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        return labels.astype(np.int64)
    return labels


def _check_labels(labels: np.ndarray, classes: int | None, name: str) -> int:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be integer labels of shape [n]; got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    highest = int(labels.max()) + 1 if classes is None else classes
    if labels.min() < 0 or labels.max() >= highest:
        raise ValueError(
            f"{name} must be labels 0, 1, ... of {classes or 'all'} classes; got "
            f"values from {labels.min()} to {labels.max()}"
        )
    if classes is None and highest > max(1000, len(labels)):
        raise ValueError(
            f"{name} must be labels 0, 1, ...; got values up to {highest - 1} in "
            f"{len(labels)} rows: number the classes one after the other"
        )
    return highest
