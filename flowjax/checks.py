"""Trace-time checks of the arguments of public functions.

Shapes and dtypes are static, so these checks cost nothing in a compiled program. Values
(a time outside [0, 1], a grid that is not monotone) are checked wherever they are known
before tracing.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


def check_state(name: str, x: Array, *, like: Array | None = None) -> None:
    """Raise ValueError unless ``x`` is floating, batched and shaped as ``like``."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`{name}` must have a floating dtype; got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"`{name}` must have shape [batch, *event]; got {x.shape}")
    if like is not None and x.shape != like.shape:
        raise ValueError(f"`{name}` must have shape {like.shape}; got {x.shape}")


def check_time(name: str, t: Array, batch: int) -> None:
    """Raise ValueError unless ``t`` is floating [batch] and, where known, in [0, 1]."""
    if not jnp.issubdtype(t.dtype, jnp.floating):
        raise ValueError(f"`{name}` must have a floating dtype; got {t.dtype}")
    if t.shape != (batch,):
        raise ValueError(f"`{name}` must have shape [batch]=({batch},); got {t.shape}")
    if isinstance(t, Tracer):
        return
    values = np.asarray(t)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"`{name}` must lie in [0, 1] (0 is noise, 1 is data); "
            f"got values from {values.min()} to {values.max()}"
        )


def check_condition(cond: Any, batch: int) -> None:
    """Raise ValueError unless every leaf of ``cond`` has the leading axis ``batch``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != batch:
            name = "cond" + jax.tree_util.keystr(path)
            raise ValueError(
                f"`{name}` must have the leading axis batch={batch}; got shape {shape}"
            )


def check_grid(
    grid: Sequence[float] | np.ndarray | Array, name: str = "grid"
) -> np.ndarray:
    """Return ``grid`` as float64 [n + 1], n >= 1, strictly monotone inside [0, 1].

    Raises:
        ValueError: otherwise. Both directions are accepted.
    """
    times = np.asarray(grid, dtype=np.float64)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"`{name}` must be a list of at least two times; got {grid}")
    if not (np.isfinite(times).all() and times.min() >= 0 and times.max() <= 1):
        raise ValueError(f"`{name}` must lie in [0, 1]; got {times.tolist()}")
    steps = np.diff(times)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"`{name}` must be strictly monotone; got {times.tolist()}")
    return times
