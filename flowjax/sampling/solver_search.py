"""Solvers that are learned for one field: what they share, and solver search.

A learned solver is a `MultistepSolver` that is a differentiable function of free
parameters; a hundred numbers, whatever the size of the network. The losses compare it
with a fine solution of the same field, given as a function of time
(`flowjax.sampling.ode_dense` makes one), and are minimised over the parameters with any
optimiser; the field stays as it is.

References:
    Wang et al. 2025, Differentiable Solver Search for Fast Diffusion Sampling,
    arXiv:2505.21114.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.checks import check_grid
from flowjax.contracts import checked
from flowjax.sampling.multistep import MultistepSolver, multistep_path
from flowjax.typing import (
    Condition,
    Natural,
    PerExample,
    Positive,
    State,
    VelocityField,
)

Reference: TypeAlias = Callable[[Float[Array, ""]], State]
"""A fine solution: from a time in [0, 1] to the states [batch, *event]."""


class Search(NamedTuple):
    """The free parameters of a searched solver of n steps with a memory of w + 1.

    Attributes:
        step_logits: the steps are their softmax [n].
        coefficients: of the earlier evaluations, newest first: column k of row i
            weighs the evaluation i - 1 - k [n, w]. Entries before the first evaluation
            do nothing. ``w = n - 1`` is a strictly lower triangular matrix.
    """

    step_logits: Float[Array, "n"]
    coefficients: Float[Array, "n w"]


@checked
def search_start(
    grid: Sequence[float] | np.ndarray | Array,
    *,
    memory: Natural | None = None,
    order: Literal[1, 2] = 1,
) -> Search:
    """Return the parameters of Euler (order 1) or Adams-Bashforth steps (order 2).

    Args:
        grid: n + 1 times from 0 to 1.
        memory: w, at least 1 for order 2; by default all, n - 1.
        order: 2 starts with one Euler step and weighs the last evaluation by
            ``-h_i / (2 h_{i-1})``.

    Raises:
        ValueError: if an option does not fit.
    """
    times = check_grid(grid)
    if (times[0], times[-1]) != (0, 1):
        raise ValueError(f"`grid` must run from 0 to 1; got {times.tolist()}")
    h = np.diff(times)
    width = len(h) - 1 if memory is None else memory
    if width < order - 1:
        raise ValueError(f"order {order} needs memory {order - 1}; got {width}")
    coefficients = np.zeros((len(h), width))
    if order == 2:
        coefficients[1:, 0] = -h[1:] / (2 * h[:-1])
    return Search(jnp.asarray(np.log(h), float), jnp.asarray(coefficients, float))


@checked
def searched_solver(params: Search) -> MultistepSolver:
    """Return ``x_{i+1} = x_i + h_i [(1 - sum_j c_ij) v_i + sum_{j < i} c_ij v_j]``.

    Every row of weights sums to the step: exact where the velocity is constant.

    Raises:
        ValueError: if the parameters are not [n] and [n, w].
    """
    logits, c = params
    if logits.ndim != 1 or c.ndim != 2 or len(logits) != len(c):
        raise ValueError(
            "a search needs step_logits [n] and coefficients [n, w]; got "
            f"{logits.shape} and {c.shape}"
        )
    n, width = c.shape
    past = jnp.where(np.arange(n)[:, None] > np.arange(width)[None], c, 0)
    now = 1 - past.sum(1, keepdims=True)
    steps = jax.nn.softmax(logits)
    return MultistepSolver(
        times=softmax_times(logits)[:-1],
        state=jnp.zeros_like(steps),
        slope=jnp.ones_like(steps),
        scale=jnp.ones_like(steps),
        weights=steps[:, None] * jnp.concatenate([now, past], axis=1),
    )


@checked
def search_loss(
    params: Search,
    field: VelocityField,
    reference: Reference,
    *,
    cond: Condition = None,
    end_weight: float = 1000.0,
    end_scale: Positive = 1e-3,
) -> PerExample:
    """Return the distance of the whole solution to the reference at its own times.

    ``sum_{0 < i < n} mean|x_i - x(t_i)|^2 + end_weight mean H(x_n - x(1))`` with the
    Huber function ``H(e) = e^2 / 2`` up to ``end_scale``, linear beyond.

    Args:
        params: to be learned.
        field: as in `bespoke_loss`.
        reference: the solution through the batch's noise.
        cond: of the field.
        end_weight: of the end against the points on the way.
        end_scale: where the Huber function becomes linear.

    Returns:
        The loss [batch].

    Raises:
        ValueError: as `searched_solver`.

    References:
        arXiv:2505.21114; the weights are those of the authors' code, whose reference is
        the nearest point of a fine trajectory, without a gradient in the times.
    """
    solver = searched_solver(params)
    times = softmax_times(params.step_logits)
    points = reference_points(field, reference, times, cond)
    error = multistep_path(field, points[0], solver, cond=cond) - points
    error = error.reshape((*error.shape[:2], -1))
    size = jnp.abs(error[-1])
    linear = end_scale * (size - end_scale / 2)
    huber = jnp.where(size <= end_scale, size**2 / 2, linear).mean(-1)
    return (error[1:-1] ** 2).mean(-1).sum(0) + end_weight * huber


@checked
def reference_points(
    field: VelocityField,
    reference: Reference,
    times: Float[Array, "points"],
    cond: Condition,
) -> Float[Array, "points batch *event"]:
    """Return the reference at ``times``, with ``dx/dt = v`` as its derivative in them.

    Values come from ``reference`` alone; the first and the last time do not move.

    References:
        Shaul et al. 2023, arXiv:2310.19075.
    """
    fixed = jax.lax.stop_gradient(times)
    x = jax.lax.stop_gradient(jax.vmap(reference)(fixed))

    def velocity(x: State, t: Float[Array, ""]) -> State:
        return field(x, jnp.broadcast_to(t.astype(x.dtype), (len(x),)), cond)

    inner = slice(1, -1)
    v = jax.lax.stop_gradient(jax.vmap(velocity)(x[inner], fixed[inner]))
    ahead = (times - fixed)[inner].reshape((-1,) + (1,) * (x.ndim - 1))
    return x.at[inner].add(ahead.astype(x.dtype) * v.astype(x.dtype))


@checked
def softmax_times(logits: Float[Array, "n"]) -> Float[Array, "n+1"]:
    """Return the increasing times from exactly 0 to exactly 1."""
    inner = jnp.minimum(jnp.cumsum(jax.nn.softmax(logits))[:-1], 1)
    end = jnp.ones_like(logits[:1])
    return jnp.concatenate([0 * end, inner, end])
