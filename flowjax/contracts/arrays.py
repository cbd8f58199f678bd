"""The contract of arrays: dtype, axes and values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.contracts.basic import (
    DTYPES,
    SHARED,
    Axes,
    Axis,
    Contract,
    check_range,
)
from flowjax.typing import Range


@dataclasses.dataclass(frozen=True)
class ArrayOf(Contract):
    """An array as jaxtyping's annotations describe it, with limits of its values.

    Attributes:
        hint: the annotation, ``Float[Array, "batch *event"]`` for instance.
        limits: where the values must lie.
        least: how many axes there are at least.
    """

    hint: Any
    limits: tuple[Range, ...] = ()
    least: int = 0

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes, as they are written."""
        return tuple(self.hint.dim_str.split())

    @property
    def expects(self) -> str:
        """The axes by name, or that it is a key."""
        if DTYPES.get(self.hint.dtype, (None,))[0] is jax.dtypes.prng_key:
            return "a typed key, as of jax.random.key(0)"
        return f"an array of shape [{', '.join(self.axes)}]"

    def fits(self, value: Any) -> bool:
        """Say whether it is an array, or something that JAX takes for one."""
        kinds = (jax.Array, np.ndarray, np.generic)
        return isinstance(value, kinds) or hasattr(value, "__jax_array__")

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Check dtype, shape and values; what is no array of the kind becomes one."""
        if not isinstance(value, self.hint.array_type):
            value = jnp.asarray(value)
        self.check_dtype(f"`{name}` must have", value)
        self.check_shape(name, value, axes)
        check_range(name, value, self.limits)
        return value

    def check_dtype(self, sentence: str, value: Any) -> None:
        """Raise ValueError if the dtype is of another kind."""
        wanted = DTYPES.get(self.hint.dtype)
        if wanted is not None and not jnp.issubdtype(value.dtype, wanted[0]):
            raise ValueError(f"{sentence} {wanted[1]}; got {value.dtype}")

    def check_shape(self, name: str, value: Any, axes: Axes) -> None:
        """Raise ValueError if the shape is another; learn the axes that are new."""
        shape = value.shape
        found = bind(self.axes, shape)
        fixed = found and [n == int(a) for a, n in found.items() if a.isdigit()]
        if found is None or len(shape) < self.least or (fixed and not all(fixed)):
            raise ValueError(
                f"`{name}` must have shape {stated(self.axes, axes)}; got {shape}"
            )
        for axis, length in found.items():
            if axis in axes and axes[axis].length != length:
                raise ValueError(
                    f"`{name}` must have shape {stated(self.axes, axes)}; got {shape}, "
                    f"and {axis.lstrip('*')} is that of `{axes[axis].source}`"
                )
        if any(0 in np.atleast_1d(found.get(axis, 1)) for axis in SHARED):
            raise ValueError(f"`{name}` must not be empty; got shape {shape}")
        for axis, length in found.items():
            axes.setdefault(axis, Axis(length, name))


def bind(axes: tuple[str, ...], shape: tuple[int, ...]) -> dict[str, Any] | None:
    """Return how long each named axis is, or None if the number of axes differs."""
    several = [i for i, axis in enumerate(axes) if axis[0] in "*."]
    if not several:
        return dict(zip(axes, shape, strict=True)) if len(axes) == len(shape) else None
    first, after = several[0], len(axes) - several[0] - 1
    if len(shape) < first + after:
        return None
    last = len(shape) - after
    found: dict[str, Any] = dict(zip(axes[:first], shape[:first], strict=True))
    found |= dict(zip(axes[first + 1 :], shape[last:], strict=True))
    if axes[first] != "...":
        found[axes[first]] = shape[first:last]
    return found


def stated(axes: tuple[str, ...], lengths: Axes) -> str:
    """Return the axes by name, and by length where all are known."""
    names = f"[{', '.join(axes)}]"
    sizes: list[int] = []
    for axis in axes:
        if axis not in lengths:
            return names
        length = lengths[axis].length
        sizes += length if isinstance(length, tuple) else [length]
    return f"{names}={tuple(sizes)}" if axes else names
