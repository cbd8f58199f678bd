"""Grids for a small number of steps, chosen from what a field does on the way.

BOSS measures on a fine trajectory what every possible Euler jump would miss and finds
the best chain of n jumps exactly; the loss grid puts the steps where the regression was
hard. Both return a grid for any solver. The choice happens before tracing, in NumPy.

References:
    Nguyen et al. 2024, Bellman Optimal Stepsize Straightening of Flow-Matching Models,
    arXiv:2312.16414 (BOSS).
    Liu et al. 2025, PUFM++: Point Cloud Upsampling via Enhanced Flow Matching,
    arXiv:2512.20988 (its adaptive time scheduler).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from flowjax.checks import check_grid
from flowjax.contracts import checked
from flowjax.events import expand_like
from flowjax.interpolants import Interpolant, Path, sample_path
from flowjax.sampling.inputs import grid_in, start_state
from flowjax.typing import Condition, Count, State, VelocityField


@checked
def boss_costs(
    field: VelocityField,
    x0: State,
    grid: Sequence[float] | np.ndarray | Array,
    *,
    cond: Condition = None,
) -> Float[Array, "times times"]:
    """Return what each Euler jump between two times of a fine Euler solution misses.

    ``c[i, j] = mean_batch |x_i + (t_j - t_i) v_i - x_j|^2`` for j > i, else 0. On the
    Euler solution the error is a sum of changes ``d_m = v_{m+1} - v_m`` of the slope,

        x_j - x_i - (t_j - t_i) v_i = sum_{i <= m < j-1} (t_j - t_{m+1}) d_m,

    so all costs follow from the K^2 products of the d_m, without the cancellation that
    products of states would suffer.

    Memory: K slopes of the batch (the K^2 errors themselves are never formed). Costs
    are means over the batch: average those of several calls where it is too large.

    Args:
        field: the velocity field.
        x0: states at ``grid[0]`` [batch, *event].
        grid: K + 1 increasing times, known before tracing; uniform with K = 100 in the
            paper.
        cond: a pytree with leading axis batch, or None.

    Returns:
        The costs, squared norms over the event [K + 1, K + 1].

    Raises:
        ValueError: if ``x0``, ``cond``, ``grid`` or the shape of the field's result do
            not fit.

    """
    x0 = start_state(x0)
    times = jnp.asarray(grid_in(x0.dtype, check_grid(grid)))
    size = len(times) - 1

    def step(x: State, ends: tuple[Array, Array]) -> tuple[State, State]:
        t, s = ends
        v = field(x, jnp.broadcast_to(t, (len(x),)), cond).astype(x.dtype)
        return x + (s - t) * v, v

    _, slopes = jax.lax.scan(step, x0, (times[:-1], times[1:]))
    changes = jnp.diff(slopes, axis=0).reshape((size - 1, -1))
    products = jnp.matmul(changes, changes.T, precision=jax.lax.Precision.HIGHEST)
    starts, inner = jnp.arange(size + 1), jnp.arange(size - 1)

    def column(j: Array) -> Array:
        """Return the costs of all jumps to ``t_j``: sums over m, m' >= i."""
        weights = jnp.where(inner < j - 1, times[j] - times[1:-1], 0)
        terms = products * (weights[:, None] * weights[None])
        sums = jnp.cumsum(jnp.cumsum(terms[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
        return jnp.where(starts < j, jnp.pad(jnp.diagonal(sums), (0, 2)), 0)

    return jax.lax.map(column, starts).T / len(x0)


@checked
def boss_grid(times: ArrayLike, costs: ArrayLike, steps: Count) -> np.ndarray:
    """Return the ``steps`` jumps along ``times`` with the least sum of costs.

    By dynamic programming over ``V_n(j) = min_{i < j} V_{n-1}(i) + c[i, j]``, exactly.

    Args:
        times: K + 1 increasing times.
        costs: of the jumps, from `boss_costs`; its upper triangle is read [K+1, K+1].
        steps: n, in 1..K.

    Returns:
        n + 1 of the times, both ends among them.

    Raises:
        ValueError: if shapes or ``steps`` do not fit or a cost is not finite.

    """
    grid, table = check_grid(np.asarray(times)), np.asarray(costs, np.float64)
    size = len(grid) - 1
    if table.shape != (size + 1, size + 1):
        raise ValueError(
            f"`costs` must have shape ({size + 1}, {size + 1}); got {table.shape}"
        )
    if not 1 <= steps <= size:
        raise ValueError(f"`steps` must lie in 1..{size}; got {steps}")
    if not np.isfinite(np.triu(table)).all():
        raise ValueError("`costs` must be finite")
    # Where no jump can lead is infinitely dear.
    table = np.where(np.triu(np.ones(table.shape, bool), 1), table, np.inf)
    best = np.where(np.arange(size + 1) == 0, 0.0, np.inf)
    before = []
    for _ in range(steps):
        through = best[:, None] + table
        before.append(through.argmin(0))
        best = through.min(0)
    chosen = [size]
    for previous in reversed(before):
        chosen.append(int(previous[chosen[-1]]))
    return grid[chosen[::-1]]


@checked
def jump_path(
    points: Float[Array, "points batch *event"],
    grid: Sequence[float] | np.ndarray | Array,
    jump: Int[Array, "batch"],
    *,
    cond: Condition = None,
) -> Path:
    """Return the starts of jumps along a solution and the slopes that lead to its ends.

    ``x = x_i``, ``t = t_i`` and ``v = (x_j - x_i) / (t_j - t_i)``, j = i + 1.
    `flowjax.objectives.flow_matching` on it fine-tunes a network to Euler steps on this
    grid: the second stage of BOSS.

    Args:
        points: a teacher's solution at the times of ``grid``.
        grid: n + 1 monotone times, such as `boss_grid`'s.
        jump: i for every row, in 0..n-1 [batch].
        cond: a pytree with leading axis batch, or None.

    Raises:
        ValueError: if shapes or ``grid`` do not fit.

    """
    times = check_grid(grid)
    if len(points) != len(times):
        raise ValueError(
            f"`points` must have shape [{len(times)}, batch, *event]; got "
            f"{points.shape}"
        )
    batch = points.shape[1]
    rows, clock = jnp.arange(batch), jnp.asarray(times, points.dtype)
    start, end = points[jump, rows], points[jump + 1, rows]
    t, s = clock[jump], clock[jump + 1]
    v = (end - start) / expand_like(s - t, start)
    return Path(start, t, v, points[0], points[-1], cond)


@checked
def loss_profile(
    field: VelocityField,
    interpolant: Interpolant,
    x0: State,
    x1: State,
    times: Float[Array, "m"],
    *,
    cond: Condition = None,
    z: State | None = None,
) -> Float[Array, "m"]:
    """Return ``l(t) = E |v(x_t, t) - v_t|^2 / dim`` at each of ``times``.

    At the exact field of Gaussian data ``N(m, S)`` on the linear path it is
    ``tr[S (t^2 S + (1 - t)^2)^-1] / dim``. Every time sees the same pairs.

    Args:
        field: the velocity field.
        interpolant: the path it was learned on.
        x0: source samples, coupled as in training [batch, *event].
        x1: data samples [batch, *event].
        times: where to measure [m]; the authors take 51 uniform ones.
        cond: a pytree with leading axis batch, or None.
        z: latent noise of the interpolant, where it has one.

    Returns:
        The means over the batch [m].

    Raises:
        ValueError: as `flowjax.interpolants.sample_path`.
    """

    def at(t: Float[Array, ""]) -> Float[Array, ""]:
        path = sample_path(
            interpolant, x0, x1, jnp.broadcast_to(t, (len(x1),)), cond, z=z
        )
        v = field(path.x, path.t, cond).astype(path.x.dtype)
        return jnp.square(v - path.v).mean()

    return jax.lax.map(at, times)


@checked
def loss_cdf_grid(times: ArrayLike, losses: ArrayLike, steps: Count) -> np.ndarray:
    """Return the grid on which every step holds the same share of the loss.

    ``t_k = F^-1(k / n)``, F the normalised integral of the loss, which is taken to be
    linear between ``times``; so F is quadratic there, and inverted as such.

    Args:
        times: m increasing times.
        losses: not negative, such as `loss_profile`'s [m].
        steps: n, at least 1.

    Returns:
        n + 1 times from ``times[0]`` to ``times[-1]``.

    Raises:
        ValueError: if shapes or values do not fit.
    """
    grid, loss = check_grid(np.asarray(times)), np.asarray(losses, np.float64)
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}")
    if loss.shape != grid.shape or grid[0] > grid[-1]:
        raise ValueError(
            "need increasing `times` and as many `losses`; got "
            f"{grid.tolist()} and shape {loss.shape}"
        )
    if not (np.isfinite(loss).all() and loss.min() >= 0 and loss.any()):
        raise ValueError(
            f"`losses` must be finite, not negative and not all 0; got {loss}"
        )
    width, rise = np.diff(grid), np.diff(loss)
    area = np.concatenate([[0.0], np.cumsum((loss[1:] + loss[:-1]) / 2 * width)])
    wanted = np.arange(1, steps) / steps * area[-1]
    # In the first interval whose end reaches the wanted area; its area is positive.
    cell = np.searchsorted(area, wanted) - 1
    rest = wanted - area[cell]
    # The root of (rise / width) tau^2 / 2 + loss tau = rest, free of cancellation.
    root = np.sqrt(np.maximum(loss[cell] ** 2 + 2 * rise[cell] / width[cell] * rest, 0))
    inner = grid[cell] + 2 * rest / (loss[cell] + root)
    return np.concatenate([grid[:1], inner, grid[-1:]])
