"""Runge-Kutta, Adams and their relatives: weighted sums of velocities."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from flowjax.checks import check_grid
from flowjax.contracts import checked
from flowjax.sampling.multistep import MultistepSolver
from flowjax.typing import Natural

Grid: TypeAlias = Sequence[float] | np.ndarray | Array
Start: TypeAlias = Literal["runge_kutta", "rising"]

_HALF_STEP = ([[0, 0], [1 / 2, 0]], [0, 1])
_FULL_STEP = ([[0, 0], [1, 0]], [1 / 2, 1 / 2])
_TWO_THIRDS = ([[0, 0], [2 / 3, 0]], [1 / 4, 3 / 4])
_KUTTA_3 = ([[0, 0, 0], [1 / 2, 0, 0], [-1, 2, 0]], [1 / 6, 2 / 3, 1 / 6])
_KUTTA_4 = (
    [[0, 0, 0, 0], [1 / 2, 0, 0, 0], [0, 1 / 2, 0, 0], [0, 0, 1, 0]],
    [1 / 6, 1 / 3, 1 / 3, 1 / 6],
)


@checked
def runge_kutta(grid: Grid, *, a: ArrayLike, b: ArrayLike) -> MultistepSolver:
    """Return the explicit Runge-Kutta method with the tableau ``a``, ``b``.

    ``K_k = v(x + h sum_l a_kl K_l, t + c_k h)`` with ``c_k = sum_l a_kl``, and
    ``x <- x + h sum_k b_k K_k`` for the step from t to t + h.

    Args:
        grid: n + 1 strictly monotone times in [0, 1], in either direction.
        a: [stages, stages], zero on and above the diagonal.
        b: [stages], with sum 1.

    Returns:
        A solver with ``stages`` rows per step and as long a memory.

    Raises:
        ValueError: if ``grid`` or the tableau does not fit.
    """
    times, (a, b) = check_grid(grid), (np.asarray(x, np.float64) for x in (a, b))
    stages = b.size
    if a.shape != (stages, stages) or b.ndim != 1 or np.triu(a).any():
        raise ValueError(
            "an explicit tableau has `b` [stages] and `a` [stages, stages], zero on "
            f"and above the diagonal; got {b.tolist()} and {a.tolist()}"
        )
    nodes = a.sum(1)
    if not (abs(b.sum() - 1) < 1e-12 and nodes.min() >= 0 and nodes.max() <= 1):
        raise ValueError(
            "`b` must have the sum 1 and the rows of `a` sums in [0, 1]; "
            f"got {b.tolist()} and {a.tolist()}"
        )
    # From one stage's point to the next: the difference of their rows.
    moves = np.diff(np.vstack([a, b]), axis=0)
    newest_first = [
        np.pad(row[k::-1], (0, stages - 1 - k)) for k, row in enumerate(moves)
    ]
    # Not t + c h, which may round to a time outside the interval.
    start, end = times[:-1, None], times[1:, None]
    points = (1 - nodes) * start + nodes * end
    steps = np.repeat(end - start, stages, axis=0)
    return _velocity_solver(
        points.ravel(), steps * np.tile(newest_first, (len(start), 1))
    )


@checked
def euler(grid: Grid) -> MultistepSolver:
    """Return Euler's method: ``x <- x + h v(x, t)``, one evaluation per step."""
    return runge_kutta(grid, a=[[0]], b=[1])


@checked
def midpoint(grid: Grid) -> MultistepSolver:
    """Return the explicit midpoint rule, two evaluations per step; RF-Solver is this.

    ``x <- x + h v(x + h/2 v, t + h/2)``. RF-Solver writes ``x + h v + h^2/2 a`` with
    the difference quotient ``a = [v(x + h/2 v, t + h/2) - v] / (h/2)``: the same.

    References:
        Wang et al. 2024, Taming Rectified Flow for Inversion and Editing (RF-Solver),
        arXiv:2411.04746.
    """
    a, b = _HALF_STEP
    return runge_kutta(grid, a=a, b=b)


@checked
def heun(grid: Grid) -> MultistepSolver:
    """Return Heun's method: the trapezoidal rule after an Euler step."""
    a, b = _FULL_STEP
    return runge_kutta(grid, a=a, b=b)


@checked
def ralston(grid: Grid) -> MultistepSolver:
    """Return Ralston's method, of the least error bound among those of two stages."""
    a, b = _TWO_THIRDS
    return runge_kutta(grid, a=a, b=b)


@checked
def rk4(grid: Grid) -> MultistepSolver:
    """Return the classical Runge-Kutta method, four evaluations per step."""
    a, b = _KUTTA_4
    return runge_kutta(grid, a=a, b=b)


@checked
def fireflow(grid: Grid) -> MultistepSolver:
    """Return FireFlow: the midpoint rule that reuses the last midpoint's velocity.

    ``m = v(x + h/2 m_last, t + h/2)``, ``x <- x + h m``, with ``m_last = v(x, t)`` in
    the first step: second order for N + 1 evaluations.

    Args:
        grid: N + 1 strictly monotone times in [0, 1], in either direction.

    References:
        Deng et al. 2024, FireFlow: Fast Inversion of Rectified Flow for Image Semantic
        Editing, arXiv:2412.07517.
    """
    times = check_grid(grid)
    before, after = _neighbours(times)
    # The points are those of evaluation: x_k itself is left out between two midpoints.
    middles = (times[:-1] + times[1:]) / 2
    weights = np.stack([before + after / 2, -before / 2], axis=1)
    return _velocity_solver(np.concatenate([times[:1], middles]), weights)


@checked
def pseudo_corrector(grid: Grid, *, heun_steps: Natural = 1) -> MultistepSolver:
    """Return FlowTurbo's steps: Heun's, then Heun's with a reused first slope.

    ``e = v(x + h e_last, t + h)``, ``x <- x + h/2 (e_last + e)``, where ``e_last`` is
    the last slope of the step before: one evaluation per step after the Heun steps.

    Args:
        grid: N + 1 strictly monotone times in [0, 1], in either direction.
        heun_steps: how many steps to begin with are Heun's, of two evaluations: from 1,
            for N + 1 evaluations in all, to N, which is `heun`.

    Raises:
        ValueError: if ``grid`` does not fit or ``heun_steps`` is not in 1..N.

    References:
        Zhao et al. 2024, FlowTurbo: Towards Real-time Flow-Based Image Generation with
        Velocity Refiner, arXiv:2409.18128.
    """
    times = check_grid(grid)
    if not 1 <= heun_steps < len(times):
        raise ValueError(
            f"`heun_steps` must lie in 1..{len(times) - 1}; got {heun_steps}"
        )
    rest = times[heun_steps - 1 :]
    before, after = _neighbours(rest)
    # The points are the predictions x + h e_last.
    weights = np.stack([before / 2 + after, -before / 2], axis=1)
    solver = _velocity_solver(rest, weights)
    return chain(heun(times[:heun_steps]), solver) if heun_steps > 1 else solver


@checked
def adams_bashforth(
    grid: Grid, *, order: int = 2, start: Start = "runge_kutta"
) -> MultistepSolver:
    """Return the Adams-Bashforth method: one evaluation per step, reusing the last.

    ``x <- x + integral of p over the step``, where the polynomial p passes through the
    last ``order`` slopes, at whatever times they were.

    Args:
        grid: N + 1 strictly monotone times in [0, 1], in either direction, with
            ``N >= order``.
        order: 2, 3 or 4.
        start: what takes the first ``order - 1`` steps: ``"runge_kutta"``, a method of
            order ``order - 1``, which keeps the order (N, N + 2 and N + 6 evaluations
            and a memory of 2, 5 and 10), or ``"rising"``, Adams-Bashforth of orders 1,
            2, ..., N evaluations, whose first step limits the order to 2.

    Raises:
        ValueError: if ``grid`` does not fit or an option is unknown.

    References:
        Hairer, Noersett, Wanner 1993, Solving Ordinary Differential Equations I,
        Sec. III.5.
    """
    if order not in (2, 3, 4):
        raise ValueError(f"`order` must be 2, 3 or 4; got {order}")
    if start not in get_args(Start):
        raise ValueError(f"`start` must be one of {get_args(Start)}; got {start!r}")
    times = check_enough_steps(grid, order)
    own_start = start == "runge_kutta" and order > 2
    first, stages = (order - 1, order - 1) if own_start else (0, 1)
    steps, index = np.diff(times), np.arange(len(times) - 1)
    # The row in which the slope at each time of the grid is evaluated.
    row = stages * np.minimum(index, first) + np.maximum(index - first, 0)
    weights = np.zeros((len(steps) - first, row[order - 1] + 1))
    for i in index[first:]:
        nodes = np.arange(i, max(i - order, -1), -1)
        u = (times[nodes] - times[i]) / steps[i]
        mean = interpolation_weights(u, 1 / np.arange(1, len(nodes) + 1))
        weights[i - first, row[i] - row[nodes]] = steps[i] * mean
    solver = _velocity_solver(times[first:-1], weights)
    if not own_start:
        return solver
    a, b = _FULL_STEP if order == 3 else _KUTTA_3
    return chain(runge_kutta(times[:order], a=a, b=b), solver)


@checked
def chain(*solvers: MultistepSolver) -> MultistepSolver:
    """Return the solver that runs ``solvers`` one after the other.

    Each should begin at the time at which the one before ends; it makes no use of
    the evaluations of that one.
    """
    width = max(solver.weights.shape[1] for solver in solvers)

    def widen(solver: MultistepSolver) -> MultistepSolver:
        missing = width - solver.weights.shape[1]
        return solver._replace(weights=np.pad(solver.weights, ((0, 0), (0, missing))))

    return MultistepSolver(*map(np.concatenate, zip(*map(widen, solvers), strict=True)))


def check_enough_steps(grid: Grid, order: int) -> np.ndarray:
    """Return the checked ``grid``.

    Raises:
        ValueError: if `check_grid` does, or if it has fewer steps than ``order``.
    """
    times = check_grid(grid)
    if len(times) <= order:
        raise ValueError(
            f"order {order} needs at least {order} steps; got {len(times) - 1}"
        )
    return times


def interpolation_weights(nodes: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the w of ``mean of p = sum_j w_j p(nodes_j)`` for every polynomial p.

    Its degree is less than the number k of nodes, which differ.

    Args:
        nodes: [k].
        moments: the means of 1, u, u^2, ... [k].
    """
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)


def _neighbours(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps before and after every time, 0 where there is none."""
    steps = np.diff(times)
    return np.append(0, steps), np.append(steps, 0)


def _velocity_solver(times: np.ndarray, weights: np.ndarray) -> MultistepSolver:
    """Return a solver that keeps the velocity itself."""
    ones = np.ones_like(times)
    return MultistepSolver(times, 0 * ones, ones, ones, weights)
