"""What samplers accept: states and times, checked and brought to one dtype."""

from collections.abc import Sequence

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from flowjax.checks import check_grid
from flowjax.dtypes import at_least_float32
from flowjax.typing import State


def start_state(x0: State) -> State:
    """Return ``x0`` in at least float32."""
    return x0.astype(at_least_float32(x0.dtype))


def grid_in(
    dtype: DTypeLike, grid: Sequence[float] | np.ndarray | Array, name: str = "grid"
) -> np.ndarray:
    """Return the checked ``grid`` in ``dtype``.

    Raises:
        ValueError: if `check_grid` does, or if two times coincide in ``dtype``.
    """
    times = check_grid(grid, name).astype(dtype)
    if not np.diff(times).all():
        raise ValueError(f"`{name}` has times that coincide in {times.dtype}: {grid}")
    return times


def interval_in(dtype: DTypeLike, t0: float, t1: float) -> np.ndarray:
    """Return the ends of a solve in ``dtype``.

    Raises:
        ValueError: unless they differ and lie in [0, 1].
    """
    ends = np.asarray([t0, t1], dtype)
    if not (ends.min() >= 0 and ends.max() <= 1 and ends[0] != ends[1]):
        raise ValueError(
            f"`t0` and `t1` must differ and lie in [0, 1]; got {ends.tolist()}"
        )
    return ends


def times_within(
    steps: np.ndarray, times: Sequence[float] | np.ndarray | Array
) -> np.ndarray:
    """Return ``times`` in the dtype of ``steps``.

    Raises:
        ValueError: unless they run strictly from ``steps[0]`` towards ``steps[-1]``.
    """
    values = np.asarray(times, steps.dtype)
    start, end = steps[0], steps[-1]
    progress = (values - start) * np.sign(end - start)
    if not (
        values.ndim == 1
        and values.size > 0
        and progress.min() >= 0
        and progress.max() <= abs(end - start)
        and (np.diff(progress) > 0).all()
    ):
        raise ValueError(
            f"`times` must be a list that runs strictly from {start} towards {end}; "
            f"got {times}"
        )
    return values
