"""Sampling with a solver that is data: a table of numbers, fixed, searched or learned.

Every explicit method that only forms linear combinations of states and slopes
(Runge-Kutta, Adams-Bashforth, exponential integrators in the log-SNR, the learned ones)
is a list of evaluations, each at a point that is a combination of the last point and
the last few evaluations. `MultistepSolver` holds these combinations, `multistep` runs
them; the solvers are in `flowjax.sampling.solvers`.

References:
    Shaul et al. 2024, Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and
    Flow Models, arXiv:2403.01329 (that this one form holds them all).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.sampling.inputs import start_state
from flowjax.typing import Condition, State, VelocityField


class MultistepSolver(NamedTuple):
    """The numbers of a linear solver with n evaluations and a memory of w.

    With the points ``z_0 = x0, ..., z_n = x1`` and i = 0..n-1,

        e_i     = state_i z_i + slope_i v(z_i, t_i)
        z_{i+1} = scale_i z_i + sum_{j < w} weights_ij e_{i - j}

    What is kept is the velocity itself (``state = 0``, ``slope = 1``) or another
    prediction, such as that of the data, ``(1, 1 - t)`` on the linear path. The points
    between the grid's times of a method with stages are points like the others.

    A pytree of arrays, NumPy's or JAX's: saved, differentiated and trained like one.

    Attributes:
        times: where the field is evaluated, ``t`` [n].
        state: [n].
        slope: [n].
        scale: [n].
        weights: newest evaluation first [n, w]; what lies before the first evaluation
            has weight 0.
    """

    times: Float[Array | np.ndarray, "n"]
    state: Float[Array | np.ndarray, "n"]
    slope: Float[Array | np.ndarray, "n"]
    scale: Float[Array | np.ndarray, "n"]
    weights: Float[Array | np.ndarray, "n w"]


@checked
def multistep(
    field: VelocityField,
    x0: State,
    solver: MultistepSolver,
    *,
    cond: Condition = None,
) -> State:
    """Return the state at the end of ``solver``, after one evaluation per row of it.

    Its derivative keeps the activations of every evaluation; ``jax.checkpoint(field)``
    keeps the states alone and evaluates twice.

    Args:
        field: the velocity field; ``t`` reaches it as [batch], in the state's dtype.
        x0: states at the start of the solver's grid [batch, *event].
        solver: from `flowjax.sampling.solvers`, or learned.
        cond: a pytree with leading axis batch, handed on to ``field``, or None.

    Returns:
        States [batch, *event], in the dtype of ``x0`` but at least float32.

    Raises:
        ValueError: if ``x0``, ``cond``, the shapes in ``solver`` or of the field's
            result do not fit.
    """
    x0 = start_state(x0)
    return _points(field, x0, solver, cond, every=False)[0]


@checked
def multistep_path(
    field: VelocityField,
    x0: State,
    solver: MultistepSolver,
    *,
    cond: Condition = None,
) -> Float[Array, "points batch *event"]:
    """Return all points of `multistep`, ``z_0 ... z_n`` [n+1, batch, *event].

    Args:
        field: as in `multistep`.
        x0: as in `multistep`.
        solver: as in `multistep`.
        cond: as in `multistep`.

    Raises:
        ValueError: as `multistep`.
    """
    x0 = start_state(x0)
    points = _points(field, x0, solver, cond, every=True)[1]
    return jnp.concatenate([x0[None], points])


def _points(
    field: VelocityField,
    x0: State,
    solver: MultistepSolver,
    cond: Condition,
    *,
    every: bool,
) -> tuple[State, Any]:
    """Return the last point, and ``z_1 ... z_n`` or None: they take memory."""
    solver = check_solver(solver, x0)

    def step(
        carry: tuple[State, Array], row: MultistepSolver
    ) -> tuple[tuple[State, Array], State | None]:
        z, memory = advance(field, *carry, row, cond)
        return (z, memory), z if every else None

    (z, _), points = jax.lax.scan(step, (x0, empty_memory(solver, x0)), solver)
    return z, points


def advance(
    field: VelocityField,
    z: State,
    memory: Float[Array, "w batch *event"],
    row: MultistepSolver,
    cond: Condition,
) -> tuple[State, Float[Array, "w batch *event"]]:
    """Return the next point and memory after one evaluation.

    Args:
        field: the velocity field.
        z: the point [batch, *event].
        memory: the last evaluations, newest first.
        row: one row of a solver. Its leaves are numbers, or [batch] (the weights
            [w, batch]) where every example stands at another row.
        cond: of the field.
    """

    def column(a: Array | np.ndarray) -> Array:
        return jnp.reshape(a, a.shape + (1,) * (z.ndim - 1) * a.ndim)

    t = jnp.broadcast_to(row.times, (len(z),))
    v = field(z, t, cond).astype(z.dtype)
    kept = column(row.state) * z + column(row.slope) * v
    memory = jnp.concatenate([kept[None], memory[:-1]])
    weights = jnp.expand_dims(row.weights, tuple(range(row.weights.ndim, memory.ndim)))
    return column(row.scale) * z + (weights * memory).sum(0), memory


def empty_memory(solver: MultistepSolver, x0: State) -> Float[Array, "w batch *event"]:
    """Return the memory before the first evaluation."""
    return jnp.zeros((solver.weights.shape[1], *x0.shape), x0.dtype)


def check_solver(solver: MultistepSolver, x0: State) -> MultistepSolver:
    """Return ``solver`` as arrays in the dtype of ``x0``.

    Raises:
        ValueError: if it has no evaluation or no memory.
    """
    cast = jax.tree.map(lambda a: jnp.asarray(a, x0.dtype), solver)
    if 0 in cast.weights.shape:
        raise ValueError(
            "`solver` must have weights [n, w] of an evaluation and a memory or more; "
            f"got {cast.weights.shape}"
        )
    return cast
