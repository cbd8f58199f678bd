"""Sampling by integrating the probability-flow ODE ``dx/dt = v(x, t, cond)``.

From noise at t=0 to data at t=1, or back; on a fixed grid or with adaptive steps; to
the end, to given times, or as a function of time. Call these under `jax.jit`: outside
it every call traces and compiles the solve anew.

All three functions share one solve and three promises: a row's accuracy does not depend
on its neighbours, ``nfe`` counts what was spent, and a failure shows as NaN and in the
statistics.

References:
    Kidger 2022, On Neural Differential Equations, arXiv:2202.02435 (diffrax).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowjax.contracts import checked
from flowjax.events import expand_like
from flowjax.sampling.inputs import start_state, times_within
from flowjax.sampling.steps import (
    Adaptive,
    AdaptiveOrGrid,
    Cost,
    cold_starts,
    lost_rows,
    plan_steps,
    solver_cost,
)
from flowjax.typing import Condition, State, VelocityField


class OdeStats(NamedTuple):
    """What a solve cost and how it ended.

    Attributes:
        nfe: evaluations of the field, each of the whole batch. A field that calls its
            network twice (guidance) counts once.
        num_steps: attempted steps, the rejected ones included.
        num_rejected: steps rejected by the error control; 0 on a fixed grid.
        success: scalar; True where the end was reached and every row is finite. Where
            it is False the rows concerned are NaN: all of them if the end was not
            reached.
        result: the reason, a `diffrax.RESULTS` (``successful``, ``max_steps_reached``,
            ``dt_min_reached`` where the shortest adaptive step is too long for the
            error norm, or ``nonfinite`` where a field or a solution is not finite).
    """

    nfe: Int[Array, ""]
    num_steps: Int[Array, ""]
    num_rejected: Int[Array, ""]
    success: Bool[Array, ""]
    result: diffrax.RESULTS


@checked
def ode(
    field: VelocityField,
    x0: State,
    *,
    cond: Condition = None,
    steps: AdaptiveOrGrid = Adaptive(),
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> tuple[State, OdeStats]:
    """Integrate ``dx/dt = field(x, t, cond)`` and return the state at the end.

    Args:
        field: the velocity field; ``t`` reaches it as [batch], in the state's dtype.
        x0: states at the start [batch, *event]. They are kept in at least float32:
            bfloat16 or float16 comes back as float32.
        cond: a pytree with leading axis batch, handed on to ``field``, or None.
        steps: `Adaptive`, or a grid: strictly monotone times in [0, 1], in either
            direction, known before tracing, with a fixed step from each to the next.
        solver: an explicit diffrax solver; Tsit5 by default.
        adjoint: how to differentiate; by default diffrax's checkpointed reverse mode,
            which has no forward mode (`diffrax.ForwardMode()` has only that).
            `diffrax.BacksolveAdjoint` cannot see parameters bound to ``field``.

    Returns:
        The states at the end [batch, *event], NaN where the solve failed, and the
        statistics.

    Raises:
        ValueError: if shapes, times or options do not fit; for an implicit, stochastic
            or unknown solver; for a solver without an error estimate (Euler,
            LeapfrogMidpoint) without a grid.
    """
    solution, finite, stats = _solve(field, x0, cond, steps, solver, adjoint)
    return nan_unless(finite, _saved(solution)[-1]), stats


@checked
def ode_at(
    field: VelocityField,
    x0: State,
    times: Sequence[float] | np.ndarray | Array,
    *,
    cond: Condition = None,
    steps: AdaptiveOrGrid = Adaptive(),
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> tuple[Float[Array, "time batch *event"], OdeStats]:
    """Integrate as `ode` does and return the states at ``times`` on the way.

    Steps are not shortened to hit the times: between steps the solver's interpolant is
    used (a line for Euler, LeapfrogMidpoint and ReversibleHeun).

    Args:
        field: the velocity field.
        x0: states at the start [batch, *event].
        times: strictly monotone in the direction of the solve, within it, and known
            before tracing [time].
        cond: a pytree with leading axis batch, or None.
        steps: as in `ode`.
        solver: as in `ode`.
        adjoint: as in `ode`.

    Returns:
        The states [time, batch, *event], NaN in every row that failed, and the
        statistics.

    Raises:
        ValueError: as `ode`, and if ``times`` does not fit.
    """
    solution, finite, stats = _solve(
        field, x0, cond, steps, solver, adjoint, times=times
    )
    blank = jax.vmap(nan_unless, in_axes=(None, 0))
    return blank(finite, _saved(solution)[:-1]), stats


@checked
def ode_dense(
    field: VelocityField,
    x0: State,
    *,
    cond: Condition = None,
    steps: AdaptiveOrGrid = Adaptive(),
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> tuple[Callable[[float | Float[Array, ""]], State], OdeStats]:
    """Integrate as `ode` does and return the state as a function of time.

    Memory is set aside for the ``max_steps`` of adaptive steps with all their stages:
    make it small.

    Args:
        field: the velocity field.
        x0: states at the start [batch, *event].
        cond: a pytree with leading axis batch, or None.
        steps: as in `ode`.
        solver: as in `ode`.
        adjoint: as in `ode`.

    Returns:
        The path, which maps a time to states [batch, *event] (NaN outside the solve
        and in every row that failed) and may leave `jax.jit` as a pytree, and the
        statistics.

    Raises:
        ValueError: as `ode`.
    """
    solution, finite, stats = _solve(
        field, x0, cond, steps, solver, adjoint, dense=True
    )
    return jax.tree_util.Partial(_evaluate, solution.interpolation, finite), stats


def _solve(
    field: VelocityField,
    x0: State,
    cond: Condition,
    steps: AdaptiveOrGrid,
    solver: diffrax.AbstractSolver | None,
    adjoint: diffrax.AbstractAdjoint | None,
    *,
    times: Sequence[float] | np.ndarray | Array | None = None,
    dense: bool = False,
) -> tuple[diffrax.Solution, Bool[Array, "batch"], OdeStats]:
    """Return diffrax's solution, which rows of it are valid, and the statistics."""
    x0 = start_state(x0)
    solver = diffrax.Tsit5() if solver is None else solver
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    if isinstance(adjoint, diffrax.BacksolveAdjoint | diffrax.ImplicitAdjoint):
        raise ValueError(f"`adjoint` must differentiate the steps; got {adjoint}")
    cost = solver_cost(solver)
    plan = plan_steps(x0.dtype, solver, steps)
    saved = None if times is None else jnp.asarray(times_within(plan.times, times))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(functools.partial(_slope, field)),
        solver,
        t0=plan.start,
        t1=plan.end,
        dt0=plan.first,
        y0=x0,
        args=cond,
        stepsize_controller=plan.controller,
        saveat=diffrax.SaveAt(t1=True, ts=saved, dense=dense, controller_state=True),
        adjoint=adjoint,
        max_steps=plan.max_steps,
        throw=False,
    )
    return solution, *_judge(solution, cost)


def _slope(field: VelocityField, t: Any, x: State, cond: Condition) -> State:
    """Evaluate ``field`` in diffrax's order of arguments, at one time for all rows."""
    return field(x, jnp.broadcast_to(t, (len(x),)), cond).astype(x.dtype)


def _judge(
    solution: diffrax.Solution, cost: Cost
) -> tuple[Bool[Array, "batch"], OdeStats]:
    """Say which rows of a solution are valid, what it cost and how it ended."""
    finite = finite_rows(_saved(solution)[-1])
    finite &= diffrax.is_successful(solution.result)
    finite &= ~jnp.asarray(lost_rows(solution.controller_state))
    num_steps = solution.stats["num_steps"]
    rejected = solution.stats["num_rejected_steps"]
    nfe = cost.once + cost.per_step * num_steps
    nfe = nfe + cost.per_cold_start * cold_starts(solution.controller_state)
    return finite, how_it_ended(finite, solution.result, nfe, num_steps, rejected)


def how_it_ended(
    finite: Bool[Array, "batch"],
    result: diffrax.RESULTS,
    nfe: Int[Array, ""],
    num_steps: Int[Array, ""],
    num_rejected: Int[Array, ""],
) -> OdeStats:
    """Return the statistics of a solve whose ``finite`` rows are valid."""
    success = finite.all()
    # A fixed grid marches on through NaN and calls that successful.
    result = diffrax.RESULTS.where(
        diffrax.is_successful(result) & ~success,
        diffrax.RESULTS.nonfinite,  # pyright: ignore[reportArgumentType]  # inherited
        result,
    )
    return OdeStats(nfe, num_steps, num_rejected, success, result)


def finite_rows(x: State) -> Bool[Array, "batch"]:
    """Say which rows are finite in every entry."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def _saved(solution: diffrax.Solution) -> Float[Array, "time batch *event"]:
    """Return the saved states; the last one is that at the end of the solve."""
    assert solution.ys is not None
    return solution.ys


def nan_unless(finite: Bool[Array, "batch"], x: State) -> State:
    """Return ``x`` with the rows that are not ``finite`` replaced by NaN."""
    return jnp.where(expand_like(finite, x), x, jnp.nan)


def _evaluate(
    interpolation: diffrax.DenseInterpolation,
    finite: Bool[Array, "batch"],
    time: float | Float[Array, ""],
) -> State:
    """Return the state at ``time`` on a solved path."""
    x = interpolation.evaluate(jnp.asarray(time, interpolation.ts.dtype))
    return nan_unless(finite, x)
