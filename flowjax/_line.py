"""The monotone map between two Gaussian mixtures on the line.

In one dimension a flow keeps the order of its points, so it carries every quantile to
the same quantile: ``y = F_end^{-1}(F_start(x))``. It is solved in the logit of the
distribution function, in which neither tail loses digits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array, Bool, Float


class LineMixture(NamedTuple):
    """A mixture on the line, one per row; the means and scales are [batch, k]."""

    log_weights: Float[Array, "1 k"]
    means: Float[Array, "batch k"]
    scales: Float[Array, "batch k"]


def _logit_cdf(line: LineMixture, x: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """Return ``log F(x) - log(1 - F(x))``, which keeps all digits in both tails."""
    z = (x[:, None] - line.means) / line.scales
    # The default order of the tail series is good to 4e-9 only; this one to rounding.
    log_tails = log_ndtr(jnp.stack([z, -z]), series_order=10)
    below, above = logsumexp(line.log_weights[None] + log_tails, axis=2)
    return below - above


# Compiled as one: outside jit its many small operations would be compiled one by one.
@jax.jit
def rearrange(
    start: LineMixture,
    end: LineMixture,
    x: Float[Array, "batch"],
    still: Bool[Array, "batch"],
) -> Float[Array, "batch"]:
    """Solve ``F_end(y) = F_start(x)`` for y; rows that are ``still`` keep x exactly."""
    level = _logit_cdf(start, x)
    fixed = jax.lax.stop_gradient((start, end, x, level))
    y = jnp.where(still, x, _bisect(*fixed))
    y = jax.lax.stop_gradient(y)
    # Implicit differentiation as one Newton step whose value is subtracted: between
    # far modes the slope almost vanishes, and rounding over slope could move y.
    _, slope = jax.jvp(lambda y: _logit_cdf(end, y), (y,), (jnp.ones_like(y),))
    slope = jax.lax.stop_gradient(jnp.maximum(slope, jnp.finfo(x.dtype).tiny))
    residual = _logit_cdf(end, y) - level
    return y - (residual - jax.lax.stop_gradient(residual)) / slope


def _bisect(
    start: LineMixture,
    end: LineMixture,
    x: Float[Array, "batch"],
    level: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    """Solve ``logit F_end(y) = level`` to the last digit by bisection."""
    # F_start(x) lies between the least and the greatest Phi(z_k), so y does between the
    # points that are z_min in all and z_max in all components of the end.
    z = (x[:, None] - start.means) / start.scales
    z_min, z_max = z.min(axis=1, keepdims=True), z.max(axis=1, keepdims=True)
    low = (end.means + end.scales * z_min).min(axis=1)
    high = (end.means + end.scales * z_max).max(axis=1)

    def halve(_: object, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = low + (high - low) / 2
        below = _logit_cdf(end, middle) < level
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    steps = jnp.finfo(x.dtype).nmant + 12
    low, high = jax.lax.fori_loop(0, steps, halve, (low, high))
    return low + (high - low) / 2
