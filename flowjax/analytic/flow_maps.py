"""Flow maps and average velocities: from one time to another.

In one dimension a flow keeps the order of its points, so it carries every quantile to
the same quantile: ``y = F_end^{-1}(F_start(x))``. It is solved in the logit of the
distribution function, in which neither tail loses digits.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array, Bool, Float

from flowjax.analytic.marginals import (
    Components,
    components,
    velocity,
)
from flowjax.analytic.mixtures import Mixture
from flowjax.contracts import checked
from flowjax.events import expand_like
from flowjax.interpolants import Interpolant
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    State,
    Time,
)


@checked
def flow_map(mixture: Mixture, interpolant: Interpolant) -> AverageVelocityField:
    """Return ``X(x, t, s)``, the solution at time s of ``dx/dt = v`` through (x, t).

    One Gaussian, any event: ``X = alpha_s m + sqrt(V_s / V_t) (x - alpha_t m)``.
    A mixture on the line: the monotone map ``X = F_s^{-1}(F_t(x))`` of the marginal
    distribution functions, precise in both tails. Its derivatives of first order in
    x, t and s are exact; those of higher order are not.

    Raises:
        ValueError: for several components in more than one dimension.
    """
    size = math.prod(mixture.means.shape[1:])
    if len(mixture.weights) > 1 and size > 1:
        raise ValueError(
            "the flow map is closed-form for one Gaussian or in one dimension; got "
            f"{len(mixture.weights)} components of shape {mixture.means.shape[1:]}: "
            "integrate `velocity` with flowjax.sampling.ode instead"
        )

    def field(x: State, t: Time, s: Time, cond: Condition = None) -> State:
        start = components(mixture, interpolant, x, t)
        end = components(mixture, interpolant, x, s, name="s")
        if len(mixture.weights) == 1:
            scale = jnp.sqrt(end.variance / start.variance)
            return (end.alpha * end.means + scale * start.offset)[:, 0]
        still = t.astype(x.dtype) == s.astype(x.dtype)
        y = rearrange(_line(start), _line(end), x.reshape(len(x)), still)
        return y.reshape(x.shape)

    return field


@checked
def average_velocity(
    mixture: Mixture, interpolant: Interpolant
) -> AverageVelocityField:
    """Return ``u(x, t, s) = 1 / (s - t) * integral of v(X(x, t, m), m) over [t, s]``.

    ``u(x, t, t) = v(x, t)``, and ``u`` is differentiable once everywhere: the MeanFlow
    identity ``u = v + (s - t) du/dt`` holds to rounding. Coefficients are taken to be
    smooth: ``t^p`` with 1 < p < 2 has an infinite alpha'' at t=0, so there the
    derivative is infinite too, and nearly equal times next to 0 lose digits.

    Raises:
        ValueError: for several components in more than one dimension.
    """
    transport = flow_map(mixture, interpolant)
    instant = velocity(mixture, interpolant)

    def field(x: State, t: Time, s: Time, cond: Condition = None) -> State:
        arrival = transport(x, t, s)
        t, s = t.astype(x.dtype), s.astype(x.dtype)
        near = jnp.abs(s - t) < _quadrature_length(x.dtype)
        # Both branches are evaluated. Each row of the one not taken gets harmless times
        # (no division by zero, no long quadrature), so that no NaN reaches a tangent.
        gap = expand_like(jnp.where(near, jnp.ones_like(t), s - t), x)
        quotient = (arrival - x) / gap
        end = jnp.where(near, s, t)

        def at_node(node: Float[Array, ""]) -> State:
            m = t + (end - t) * node
            return instant(transport(x, t, m), m)

        values = jax.vmap(at_node)(jnp.asarray(_NODES, x.dtype))
        weights = jnp.asarray(_WEIGHTS, x.dtype).reshape((-1,) + (1,) * x.ndim)
        integral = (weights * values).sum(axis=0)
        return jnp.where(expand_like(near, x), integral, quotient)

    return field


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NODES, _WEIGHTS = (1 + _NODES) / 2, _WEIGHTS / 2


def _quadrature_length(dtype: np.dtype) -> float:
    """Return the |s - t| below which the quadrature is better than the quotient."""
    # The quotient (X - x) / (s - t) loses eps / |s - t| to cancellation. Gauss-Legendre
    # with n nodes errs by (|s - t| / 4R)^2n, R being the distance in complex time of
    # the nearest singularity of v along the trajectory: about S for the line (zeros of
    # (1-t)^2 + t^2 S^2), S/3 for the diffusion path. They are equal at the length below
    # for R = 0.005: 0.003 in float64 (error 1e-13), 0.01 in float32 (error 1e-5).
    order, radius = 2 * len(_NODES), 0.005
    return float(jnp.finfo(dtype).eps * (4 * radius) ** order) ** (1 / (order + 1))


class LineMixture(NamedTuple):
    """A mixture on the line, one per row; the means and scales are [batch, k]."""

    log_weights: Float[Array, "1 k"]
    means: Float[Array, "batch k"]
    scales: Float[Array, "batch k"]


def _line(c: Components) -> LineMixture:
    """Return the one-dimensional marginal described by ``c``."""
    return LineMixture(
        jnp.log(c.weights),
        (c.alpha * c.means).reshape(c.log_joint.shape),
        jnp.sqrt(c.variance).reshape(c.log_joint.shape),
    )


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


def _logit_cdf(line: LineMixture, x: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """Return ``log F(x) - log(1 - F(x))``, which keeps all digits in both tails."""
    z = (x[:, None] - line.means) / line.scales
    # The default order of the tail series is good to 4e-9 only; this one to rounding.
    log_tails = log_ndtr(jnp.stack([z, -z]), series_order=10)
    below, above = logsumexp(line.log_weights[None] + log_tails, axis=2)
    return below - above


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
