"""What the metrics share: checks of sample sets and loops over rows in bounded memory.

A metric of broken samples must never look good. So a sample set that holds NaN or
infinity raises where its values are known, and turns the metric into NaN under a trace.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Shaped

Samples: TypeAlias = Shaped[Array | np.ndarray, "..."]
"""A floating sample set [n, *event] of JAX or NumPy.

Its shape is checked by value, so that the error can say what was expected.
"""

Scalar: TypeAlias = Float[Array, ""]


def check_samples(name: str, x: Samples, *, minimum: int = 1) -> None:
    """Raise ValueError unless ``x`` is floating [n >= minimum, *event] and finite."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`{name}` must have a floating dtype; got {x.dtype}")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"`{name}` must be a non-empty set of shape [n, *event]; got {x.shape}"
        )
    if len(x) < minimum:
        raise ValueError(f"`{name}` must have at least {minimum} rows; got {len(x)}")
    check_finite(name, x)


def check_finite(name: str, x: Samples) -> None:
    """Raise ValueError if the values of ``x`` are known and one is not finite."""
    if isinstance(x, Tracer):
        return
    finite = np.isfinite(np.asarray(x))
    if not finite.all():
        broken = finite.size - int(finite.sum())
        raise ValueError(
            f"`{name}` must be finite; got {broken} of {finite.size} values NaN or inf"
        )


def check_pair(
    x: Samples, y: Samples, *, names: tuple[str, str], minimum: int = 1
) -> None:
    """Raise ValueError unless both sample sets are sound and share an event shape."""
    for name, samples in zip(names, (x, y), strict=True):
        check_samples(name, samples, minimum=minimum)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have the same event shape; "
            f"got {x.shape[1:]} and {y.shape[1:]}"
        )


def device_pair(
    x: Samples, y: Samples
) -> tuple[Float[Array, "n dim"], Float[Array, "m dim"]]:
    """Return both sets as matrices of one JAX dtype, at least float32."""
    x, y = (jnp.asarray(s).reshape(len(s), -1) for s in (x, y))
    dtype = np.promote_types(np.promote_types(x.dtype, y.dtype), np.float32)
    return x.astype(dtype), y.astype(dtype)


def host_pair(x: Samples, y: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Return both sets as float64 matrices in host memory."""
    x, y = (np.asarray(s).astype(np.float64).reshape(len(s), -1) for s in (x, y))
    return x, y


def nan_unless_finite(value: Any, *inputs: Array) -> Any:
    """Return the pytree ``value``, turned to NaN if any input is not finite."""
    sound = jnp.array(True)
    for x in inputs:
        sound &= jnp.isfinite(x).all()
    return jax.tree.map(lambda v: jnp.where(sound, v, jnp.nan), value)


def map_in_chunks(f: Callable[..., Any], rows: Any, chunk_size: int) -> Any:
    """Map ``f`` over the leading axis of the pytree ``rows``, ``chunk_size`` at once.

    Against m columns the peak memory is a few [chunk_size, m] matrices.
    """
    return jax.lax.map(f, rows, batch_size=chunk_size)


def squared_distances_from(
    row: Float[Array, "dim"], points: Float[Array, "m dim"]
) -> Float[Array, "m"]:
    """Return ``||row - points||^2``; a matrix product once it is mapped over rows.

    Centre the data first: the expanded square loses digits far from the origin.
    """
    product = jnp.matmul(points, row, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(points**2, axis=-1) + jnp.sum(row**2) - 2 * product
    return jnp.maximum(squared, 0)
