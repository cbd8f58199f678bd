"""Which steps a solver takes and what they cost.

diffrax reports steps, not evaluations of the field. The number of evaluations follows
from the solver's tableau and from how often a step was attempted before the first one
was accepted, which the controller below counts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flowjax.events import expand_like
from flowjax.sampling.inputs import grid_in, interval_in
from flowjax.typing import PerExample, State


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Steps as long as the tolerances allow, from ``t0`` to ``t1``.

    Attributes:
        rtol: error allowed per step relative to the state.
        atol: absolute error allowed per step.
        t0: start of the solve, in [0, 1].
        t1: its end, in [0, 1], on either side of ``t0``.
        first_step: length of the first attempted step.
        max_steps: attempted steps after which the solve has failed.
        error_norm: maps the scaled error [batch, *event] to the number that must stay
            below 1. None: the largest root mean square of a row.
    """

    # A dataclass and no tuple: a tuple of numbers is a grid.
    rtol: float = 1e-5
    atol: float = 1e-5
    t0: float = 0.0
    t1: float = 1.0
    first_step: float = 0.05
    max_steps: int = 4096
    error_norm: Callable[[State], Float[Array, ""]] | None = None


AdaptiveOrGrid: TypeAlias = Adaptive | Sequence[float] | np.ndarray | Array
"""How the steps of a solve are chosen.

`Adaptive`, or a grid: strictly monotone times in [0, 1], in either direction, known
before tracing, with a fixed step from each to the next.
"""


class Cost(NamedTuple):
    """Evaluations of the field: once per solve, per attempted step, per cold start.

    A first-same-as-last (FSAL) solver takes the first slope of a step from the step
    before. Until one step has been accepted there is none: every attempt is then a
    cold start and evaluates it anew.
    """

    once: int
    per_step: int
    per_cold_start: int


_OTHER_EXPLICIT: dict[type, Cost] = {
    diffrax.Euler: Cost(0, 1, 0),
    diffrax.LeapfrogMidpoint: Cost(0, 1, 0),
    diffrax.ReversibleHeun: Cost(1, 1, 0),
}


def solver_cost(solver: diffrax.AbstractSolver) -> Cost:
    """Return what ``solver`` spends on a batch, in evaluations of the field.

    Raises:
        ValueError: for solvers whose cost is not known beforehand: the implicit ones,
            those for stochastic equations, and unknown ones.
    """
    # diffrax's wrappers answer `isinstance` for what they wrap; their type does not.
    kind = type(solver)
    if issubclass(kind, diffrax.HalfSolver):
        # Two half steps and one whole step, which starts as cold as the first half.
        once, per_step, per_cold_start = solver_cost(getattr(solver, "solver"))  # noqa: B009
        return Cost(once, 3 * per_step, 2 * per_cold_start)
    tableau = getattr(kind, "tableau", None)
    if issubclass(kind, diffrax.AbstractERK) and tableau is not None:
        reused = int(tableau.fsal)
        return Cost(0, tableau.num_stages - reused, reused)
    if kind in _OTHER_EXPLICIT:
        return _OTHER_EXPLICIT[kind]
    raise ValueError(
        "`solver` must be an explicit diffrax solver of ordinary differential "
        "equations (a Runge-Kutta method, Euler, LeapfrogMidpoint, ReversibleHeun, or "
        f"HalfSolver of one of these); got {solver}"
    )


class Control(NamedTuple):
    """The state of `StepController`.

    Attributes:
        pid: diffrax's state.
        started: whether a step has been accepted.
        cold: attempted steps up to the first accepted one.
        lost: rows that are given up [batch].
    """

    pid: Any
    started: Bool[Array, ""]
    cold: Int[Array, ""]
    lost: Bool[Array, "batch"]


class StepController(diffrax.PIDController):
    """PID control that counts cold starts and gives up the rows that cannot go on.

    Times lie in [0, 1]. A row that even a step of a rounding error's length does not
    bring within the tolerance is not finite there, or has no solution; so is one that
    is not finite at the start of a step. Such a row no longer has a say in the error,
    and the others go on without it.
    """

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: State,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> tuple[Any, Control]:
        """Return the end of the first step and the first state."""
        end, state = super().init(terms, t0, t1, y0, dt0, args, func, error_order)
        none_lost = jnp.zeros(len(y0), bool)
        return end, Control(
            state, jnp.asarray(False), jnp.zeros((), jnp.int32), none_lost
        )

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: State,
        y1_candidate: State,
        args: Any,
        y_error: State | None,
        error_order: Any,
        controller_state: Control,
    ) -> tuple[Any, ...]:
        """Accept or reject a step as PID control does, and keep count."""
        assert y_error is not None
        pid, started, cold, lost = controller_state
        # Shrinking four units in the last place by 0.9 rounds back to four.
        shortest = 4 * jnp.finfo(jnp.result_type(t0)).eps
        last_resort = t1 - t0 < 1.5 * shortest  # but for rounding
        y0, y1_candidate, y_error = jax.lax.stop_gradient((y0, y1_candidate, y_error))
        size = self.atol + self.rtol * jnp.maximum(jnp.abs(y0), jnp.abs(y1_candidate))
        solved = row_errors(y_error / size) < 1  # NaN is not
        begun = jnp.isfinite(y0).all(axis=tuple(range(1, y0.ndim)))
        lost = lost | ~begun | (last_resort & ~solved)

        def of_the_others(x: State) -> State:
            return jnp.where(expand_like(lost, x), 0, x)

        keep, start, end, jump, pid, result = super().adapt_step_size(
            t0,
            t1,
            of_the_others(y0),
            of_the_others(y1_candidate),
            args,
            of_the_others(y_error),
            error_order,
            pid,
        )
        failure = diffrax.RESULTS.dt_min_reached
        result = diffrax.RESULTS.where(~keep & last_resort, failure, result)
        end = jnp.where(keep, end, jnp.maximum(end, start + shortest))
        cold = cold + jnp.where(started, 0, 1).astype(cold.dtype)
        return keep, start, end, jump, Control(pid, started | keep, cold, lost), result


class GridController(diffrax.StepTo):
    """Steps along a grid whose order and ends were checked before tracing.

    diffrax would check them once more while running, through a host callback: programs
    with one are neither kept in JAX's persistent compilation cache nor exported.
    """

    def wrap(self, direction: Any) -> "GridController":
        """Return the grid on diffrax's clock, which always runs forwards."""
        return GridController(ts=self.ts * direction)

    def init(self, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        """Return the end of the first step and the index of the one after."""
        return self.ts[1], 2


def cold_starts(controller_state: Any) -> int | Int[Array, ""]:
    """Return how often a step was attempted up to the first accepted one."""
    # The state of a grid is an index; its first step is always accepted.
    return controller_state.cold if isinstance(controller_state, Control) else 1


def lost_rows(controller_state: Any) -> bool | Bool[Array, "batch"]:
    """Say which rows were given up; none on a grid."""
    return controller_state.lost if isinstance(controller_state, Control) else False


class Steps(NamedTuple):
    """The steps of one solve.

    Attributes:
        times: the grid, or the two ends of adaptive steps, in the state's dtype.
        start: the first of them, as a scalar that diffrax treats in that dtype.
        end: the last of them, likewise.
        first: signed length of the first attempt, likewise; None on a grid.
        max_steps: the most steps to attempt.
        controller: diffrax's step control.
    """

    times: np.ndarray
    start: float | Float[Array, ""]
    end: float | Float[Array, ""]
    first: float | Float[Array, ""] | None
    max_steps: int
    controller: diffrax.AbstractStepSizeController


def plan_steps(
    dtype: DTypeLike, solver: diffrax.AbstractSolver, steps: AdaptiveOrGrid
) -> Steps:
    """Return the steps of one solve, checked.

    Raises:
        ValueError: if ``steps`` are adaptive though ``solver`` has no error estimate,
            or if a time or an option is out of range.
    """
    if not isinstance(steps, Adaptive):
        times = grid_in(dtype, steps, "steps")
        start, end = _scalar(times[0]), _scalar(times[-1])
        controller = GridController(ts=jnp.asarray(times))
        return Steps(times, start, end, None, len(times) - 1, controller)
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"{type(solver).__name__} has no error estimate for adaptive steps: give "
            "a grid as `steps`, or wrap it in diffrax.HalfSolver"
        )
    if not (steps.first_step > 0 and steps.max_steps >= 1):
        raise ValueError(
            "`first_step` must be positive and `max_steps` at least 1; got "
            f"{steps.first_step} and {steps.max_steps}"
        )
    times = interval_in(dtype, steps.t0, steps.t1)
    start, end = map(_scalar, times)
    first = np.copysign(steps.first_step, times[1] - times[0]).astype(times.dtype)
    controller = step_controller(steps.rtol, steps.atol, steps.error_norm)
    return Steps(times, start, end, _scalar(first), steps.max_steps, controller)


def _scalar(time: np.floating) -> float | Float[Array, ""]:
    """Return ``time`` as a Python float if that has its dtype in JAX.

    A Python float is a constant for diffrax, which then checks it while tracing.
    """
    return float(time) if time.dtype == jnp.result_type(float) else jnp.asarray(time)


def step_controller(
    rtol: float,
    atol: float,
    error_norm: Callable[[State], Float[Array, ""]] | None,
) -> StepController:
    """Return adaptive control that rejects every error that is not a number.

    Raises:
        ValueError: if a tolerance is negative or both are zero.
    """
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(
            f"`rtol` and `atol` must be >= 0 and not both 0; got {rtol} and {atol}"
        )
    norm = worst_row if error_norm is None else error_norm

    def safe_norm(error: State) -> Float[Array, ""]:
        value = norm(error)
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    return StepController(rtol=rtol, atol=atol, norm=safe_norm)


def worst_row(error: State) -> Float[Array, ""]:
    """Return the largest root mean square of a row.

    With one norm over the whole batch a single hard row among many easy ones would be
    solved badly.
    """
    return row_errors(error).max()


def row_errors(error: State) -> PerExample:
    """Return the root mean square of every row."""
    return jnp.sqrt(jnp.mean(error**2, axis=tuple(range(1, error.ndim))))
