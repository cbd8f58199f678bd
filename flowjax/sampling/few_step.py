"""Few-step sampling with an average velocity: one evaluation per jump."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax._typing import AverageVelocityField, Condition, State
from flowjax.sampling._inputs import check_slope, grid_in, start_state


def few_step(
    u: AverageVelocityField,
    x0: State,
    *,
    cond: Condition = None,
    grid: Sequence[float] | np.ndarray | Array = (0.0, 1.0),
) -> State:
    """Jump along ``grid`` with the flow map: ``x <- x + (s - t) u(x, t, s, cond)``.

    The default is one-step generation, ``x1 = x0 + u(x0, 0, 1)``. A perfect average
    velocity gives the same sample on every grid, and the inverse map on the reversed
    one.

    Args:
        u: the average-velocity field; ``t`` and ``s`` reach it as [batch].
        x0: states at ``grid[0]`` [batch, *event]: noise where the grid starts at 0.
        cond: a pytree with leading axis batch, handed on to ``u``, or None.
        grid: n + 1 strictly monotone times in [0, 1], in either direction, known
            before tracing.

    Returns:
        States at ``grid[-1]`` [batch, *event] after n evaluations of ``u``, in the
        dtype of ``x0`` but at least float32.

    Raises:
        ValueError: if ``x0``, ``cond``, ``grid`` or the shape of ``u``'s result do not
            fit.

    References:
        Geng et al. 2025, Mean Flows for One-step Generative Modeling, arXiv:2505.13447,
        Eq. 12, on the clock ``1 - t``.
    """
    x0 = start_state(x0, cond)
    times = jnp.asarray(grid_in(x0.dtype, grid))

    def jump(
        x: State, interval: tuple[Float[Array, ""], Float[Array, ""]]
    ) -> tuple[State, None]:
        t, s = interval
        start, end = (jnp.broadcast_to(time, (len(x),)) for time in interval)
        return x + (s - t) * check_slope("u", u(x, start, end, cond), x), None

    return jax.lax.scan(jump, x0, (times[:-1], times[1:]))[0]
