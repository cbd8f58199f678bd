"""Wasserstein distances between empirical distributions.

The exact distance in any dimension solves an assignment problem on the host. The sliced
distance averages one-dimensional ones, which need only sorting, and runs under jit.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.metrics.sample_sets import (
    Samples,
    Scalar,
    check_pair,
    device_pair,
    host_pair,
    map_in_chunks,
    nan_unless_finite,
)
from flowjax.typing import Count, PRNGKey


@checked
def wasserstein2(x: Samples, y: Samples, *, max_size: Count = 5000) -> float:
    """Return the exact 2-Wasserstein distance between two sets of equal size.

    ``W2^2 = min over permutations p of (1/n) sum_i ||x_i - y_p(i)||^2``, in float64 on
    the host. The time grows like n^3 and the cost matrix takes ``8 n^2`` bytes.

    Between samples of one and the same law the value is not zero: in dimension d > 4 it
    decays only like n^(-1/d). Compare with the distance of two halves of the data.

    Args:
        x: samples [n, *event].
        y: samples [n, *event].
        max_size: largest n accepted.

    Raises:
        ValueError: if the sets differ in size or event shape, are empty, not finite or
            larger than ``max_size``.

    References:
        Peyré and Cuturi 2018, Computational Optimal Transport, arXiv:1803.00567,
        Section 2.2 (assignment).
    """
    check_pair(x, y, names=("x", "y"))
    if len(x) != len(y):
        raise ValueError(
            f"`x` and `y` must have equally many rows; got {len(x)} and {len(y)}"
        )
    if len(x) > max_size:
        raise ValueError(
            f"at most max_size={max_size} rows are assigned exactly; got {len(x)}. "
            "Take a subset, or `sliced_wasserstein2`"
        )
    # Here and not above: they would take a good part of the time of `import flowjax`.
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    cost = cdist(*host_pair(x, y), metric="sqeuclidean")
    rows, columns = linear_sum_assignment(cost)
    return float(np.sqrt(cost[rows, columns].mean()))


@checked
def wasserstein_1d(x: Samples, y: Samples, *, power: int = 1) -> Scalar:
    """Return the exact Wasserstein distance of order 1 or 2 between sets of numbers.

    ``W_p^p = integral over q in [0, 1] of |F_x^-1(q) - F_y^-1(q)|^p``. The empirical
    quantile functions are steps, so the integral is a finite sum also for n != m.

    Args:
        x: numbers [n].
        y: numbers [m].
        power: the order p, 1 or 2.

    Returns:
        The distance W_p; NaN if, under a trace, an input turns out not to be finite.

    Raises:
        ValueError: if an input is no non-empty finite vector or ``power`` is another.

    References:
        Peyré and Cuturi 2018, arXiv:1803.00567, Section 2.6 (one dimension).
    """
    if power not in (1, 2):
        raise ValueError(f"`power` must be 1 or 2; got {power}")
    for name, numbers in (("x", x), ("y", y)):
        if numbers.ndim != 1:
            raise ValueError(f"`{name}` must have shape [n]; got {numbers.shape}")
    columns = x[:, None], y[:, None]
    check_pair(*columns, names=("x", "y"))
    xs, ys = device_pair(*columns)
    total = _quantile_cost(xs[:, 0], ys[:, 0], power)
    return nan_unless_finite(total if power == 1 else jnp.sqrt(total), xs, ys)


@checked
def sliced_wasserstein2(
    key: PRNGKey,
    x: Samples,
    y: Samples,
    *,
    num_projections: Count = 256,
    chunk_size: Count = 64,
) -> Scalar:
    """Return the sliced 2-Wasserstein distance over random directions.

    ``SW2^2 = mean over unit directions w of W2^2(<w, x>, <w, y>)``, each term exact. A
    translation by c gives ``||c|| / sqrt(d)`` in expectation of the square.

    Args:
        key: draws the directions, uniform on the sphere; reuse it to compare models.
        x: samples [n, *event].
        y: samples [m, *event]; m may differ from n.
        num_projections: number of directions.
        chunk_size: directions handled at once; memory is ``chunk_size (n + m)``.

    Returns:
        The distance SW2; NaN if, under a trace, a sample turns out not to be finite.

    Raises:
        ValueError: if the event shapes differ, a set is empty or not finite, or a
            number is not positive.

    References:
        Bonneel et al. 2015, Sliced and Radon Wasserstein Barycenters of Measures,
        Journal of Mathematical Imaging and Vision 51.
    """
    check_pair(x, y, names=("x", "y"))
    xs, ys = device_pair(x, y)
    # Drawn in float32 always: one key means the same directions for every dtype.
    normal = jax.random.normal(key, (num_projections, xs.shape[1]), jnp.float32)
    normal = normal.astype(xs.dtype)
    directions = normal / jnp.linalg.norm(normal, axis=1, keepdims=True)
    value = _sliced(xs, ys, directions, chunk_size=chunk_size)
    return nan_unless_finite(value, xs, ys)


@partial(jax.jit, static_argnames="chunk_size")
def _sliced(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    directions: Float[Array, "k dim"],
    *,
    chunk_size: int,
) -> Scalar:
    def project(points: Float[Array, "n dim"], w: Float[Array, "dim"]) -> Array:
        return jnp.matmul(points, w, precision=jax.lax.Precision.HIGHEST)

    def squared(w: Float[Array, "dim"]) -> Scalar:
        return _quantile_cost(project(x, w), project(y, w), 2)

    return jnp.sqrt(map_in_chunks(squared, directions, chunk_size).mean())


def _quantile_cost(x: Float[Array, "n"], y: Float[Array, "m"], power: int) -> Scalar:
    """Return the integral of ``|F_x^-1 - F_y^-1|^power`` over the levels [0, 1]."""
    rows, columns, weights = _quantile_coupling(len(x), len(y))
    gaps = jnp.abs(jnp.sort(x)[rows] - jnp.sort(y)[columns])
    return jnp.sum(jnp.asarray(weights, gaps.dtype) * gaps**power)


def _quantile_coupling(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return who among n sorted points shares how much mass with whom among m.

    At most n + m - 1 triples (row, column, weight), the weights summing to one.
    """
    # In units of 1/(n m) the levels where a quantile function jumps are integers, so
    # nothing is lost to rounding and coinciding levels coincide exactly.
    jumps_x = np.arange(n + 1, dtype=np.int64) * m
    jumps_y = np.arange(m + 1, dtype=np.int64) * n
    levels = np.union1d(jumps_x, jumps_y)
    starts, widths = levels[:-1], np.diff(levels)
    return starts // m, starts // n, widths / (n * m)
