"""Maximum mean discrepancies: kernel two-sample statistics with unbiased estimators.

Both are U-statistics: their expectation is exactly zero between samples of one law, at
every sample size, so a value may be negative.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.metrics.sample_sets import (
    Samples,
    Scalar,
    check_pair,
    device_pair,
    map_in_chunks,
    nan_unless_finite,
    squared_distances_from,
)
from flowjax.typing import Count

MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors that `mmd2` applies to the median distance to obtain its bandwidths."""

_MEDIAN_POINTS = 1000

RowKernel: TypeAlias = Callable[
    [Float[Array, "dim"], Float[Array, "m dim"]], Float[Array, "m"]
]


@checked
def mmd2(
    x: Samples,
    y: Samples,
    *,
    bandwidths: Sequence[float] | Float[Array | np.ndarray, "scales"] | None = None,
    chunk_size: Count = 1024,
) -> Scalar:
    """Return the unbiased squared MMD under a mixture of Gaussian kernels.

    ``MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j)
    - 2 mean_{i, j} k(x_i, y_j)`` with
    ``k(a, b) = mean over h of exp(-||a - b||^2 / (2 h^2))``.

    Args:
        x: generated samples [n, *event], n >= 2.
        y: real samples [m, *event], m >= 2.
        bandwidths: the standard deviations h. By default `MULTIPLIERS` times the median
            distance between pairs of ``y`` alone (at most 1000 of its rows, evenly
            spaced). The usual heuristic pools both sets; then a bad model would widen
            its own kernel, and values of two models could not be compared.
        chunk_size: rows handled at once; memory is a few ``chunk_size max(n, m)``.

    Returns:
        The estimate, negative as often as not if both laws are equal; NaN if, under a
        trace, a sample is not finite or a bandwidth not positive.

    Raises:
        ValueError: if the event shapes differ, a set has fewer than two rows or is not
            finite, or a bandwidth is not positive.

    References:
        Gretton et al. 2012, A Kernel Two-Sample Test, JMLR 13, Lemma 6 (estimator) and
        Section 8 (median heuristic).
    """
    check_pair(x, y, names=("x", "y"), minimum=2)
    xs, ys = device_pair(x, y)
    if bandwidths is None:
        scales = _median_distance(ys) * jnp.asarray(MULTIPLIERS, ys.dtype)
    else:
        scales = jnp.asarray(bandwidths).astype(ys.dtype)
    _check_bandwidths(scales, given=bandwidths is not None)
    value = _gaussian_mmd2(xs, ys, scales, chunk_size=chunk_size)
    return nan_unless_finite(value, xs, ys, jnp.log(scales))


@checked
def kernel_distance(
    features_x: Samples, features_y: Samples, *, chunk_size: Count = 1024
) -> Scalar:
    """Return the kernel (Inception) distance KID of two sets of features.

    The unbiased squared MMD under ``k(a, b) = (<a, b> / d + 1)^3``, over all rows at
    once. (Published values are often means over random blocks of rows, which has the
    same expectation and a larger variance.)

    Args:
        features_x: features [n, *event] of one set, n >= 2; flattened to d numbers.
        features_y: features [m, *event] of the other, m >= 2.
        chunk_size: rows handled at once; memory is a few ``chunk_size max(n, m)``.

    Returns:
        The estimate, negative as often as not if both laws are equal; NaN if, under a
        trace, a feature turns out not to be finite.

    Raises:
        ValueError: if the feature shapes differ, or a set has fewer than two rows or is
            not finite.

    References:
        Bińkowski et al. 2018, Demystifying MMD GANs, arXiv:1801.01401, Section 4.
    """
    check_pair(features_x, features_y, names=("features_x", "features_y"), minimum=2)
    xs, ys = device_pair(features_x, features_y)
    value = _polynomial_mmd2(xs, ys, chunk_size=chunk_size)
    return nan_unless_finite(value, xs, ys)


@functools.partial(jax.jit, static_argnames="chunk_size")
def _gaussian_mmd2(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    scales: Float[Array, "scales"],
    *,
    chunk_size: int,
) -> Scalar:
    # The kernel does not notice a translation; the rounding of distances does.
    centre = y.mean(axis=0, keepdims=True)
    rates = [1 / (2 * scales[i] ** 2) for i in range(len(scales))]

    def kernel(row: Float[Array, "dim"], points: Float[Array, "m dim"]) -> Array:
        squared = squared_distances_from(row, points)
        # A sum over few scales, not one more axis: it fuses into the reduction.
        kernels = [jnp.exp(-squared * rate) for rate in rates]
        return functools.reduce(jnp.add, kernels) / len(rates)

    return _unbiased_mmd2(kernel, x - centre, y - centre, chunk_size)


@functools.partial(jax.jit, static_argnames="chunk_size")
def _polynomial_mmd2(
    x: Float[Array, "n dim"], y: Float[Array, "m dim"], *, chunk_size: int
) -> Scalar:
    def kernel(row: Float[Array, "dim"], points: Float[Array, "m dim"]) -> Array:
        product = jnp.matmul(points, row, precision=jax.lax.Precision.HIGHEST)
        return (product / len(row) + 1) ** 3

    return _unbiased_mmd2(kernel, x, y, chunk_size)


def _unbiased_mmd2(
    kernel: RowKernel,
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    chunk_size: int,
) -> Scalar:
    """Return the U-statistic of the squared MMD, a chunk of kernel rows at a time."""

    def within(points: Float[Array, "n dim"]) -> Scalar:
        index = jnp.arange(len(points))

        def row_sum(indexed_row: tuple[Array, Array]) -> Scalar:
            i, row = indexed_row
            return jnp.sum(jnp.where(index == i, 0, kernel(row, points)))

        sums = map_in_chunks(row_sum, (index, points), chunk_size)
        return sums.mean() / (len(points) - 1)

    across = map_in_chunks(lambda row: kernel(row, y).mean(), x, chunk_size).mean()
    return within(x) + within(y) - 2 * across


@jax.jit
def _median_distance(points: Float[Array, "n dim"]) -> Scalar:
    """Return the median distance between pairs of at most 1000 of the points."""
    size = min(len(points), _MEDIAN_POINTS)
    # Evenly spaced, because data are often sorted by class.
    chosen = points[np.linspace(0, len(points) - 1, size).astype(int)]

    def distances(row: Float[Array, "dim"]) -> Float[Array, "size"]:
        # By differences, unlike `squared_distances_from`: equal points are 0 apart.
        return jnp.linalg.norm(row[None] - chosen, axis=1)

    pairs = map_in_chunks(distances, chosen, 16)
    return jnp.median(pairs[np.triu_indices(size, k=1)])


def _check_bandwidths(scales: Array, *, given: bool) -> None:
    """Raise ValueError unless the scales are a vector, positive where known."""
    if scales.ndim != 1 or scales.size == 0:
        raise ValueError(
            f"`bandwidths` must be a non-empty list; got the shape {scales.shape}"
        )
    if isinstance(scales, Tracer):
        return
    values = np.asarray(scales)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"`bandwidths` must be positive and finite; got {values.tolist()}"
            if given
            else "the median distance of `y` is zero (repeated rows): pass `bandwidths`"
        )
