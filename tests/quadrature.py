"""Expectations over (x_t, v_c) by deterministic nodes instead of Monte Carlo.

x_t runs over a uniform grid weighted by its density: the trapezoidal rule converges
exponentially, even where the posterior weights of a mixture switch steeply. Given x_t
and component k of the data, v_c is Gaussian and Gauss-Hermite nodes make losses that
are polynomial in it exact. A stationary point then shows as a zero to rounding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.interpolants import Interpolant, Path, coefficients


class Quadrature(NamedTuple):
    path: Path
    weights: Array  # [batch], sums to 1


def joint_quadrature(mixture, interpolant: Interpolant, t: float, *, nodes=(320, 4)):
    """Nodes over (x_t, v_c) for 1-D mixture data (means, stds of shape [k, 1])."""
    shares, means, stds = mixture.weights[:, None], mixture.means, mixture.stds
    c = coefficients(interpolant, jnp.asarray(t, dtype=float))
    centre = c.alpha * means
    variance = c.alpha**2 * stds**2 + c.sigma**2
    covariance = c.alpha * c.d_alpha * stds**2 + c.sigma * c.d_sigma
    total = c.d_alpha**2 * stds**2 + c.d_sigma**2
    spread = jnp.sqrt(jnp.maximum(total - covariance**2 / variance, 0.0))

    reach = 9 * jnp.sqrt(variance)
    x = jnp.linspace((centre - reach).min(), (centre + reach).max(), nodes[0])[None]
    log_joint = (
        jnp.log(shares) - (x - centre) ** 2 / (2 * variance) - jnp.log(variance) / 2
    )
    weight = jax.nn.softmax(log_joint.ravel()).reshape(log_joint.shape)  # [k, x]

    n, w = np.polynomial.hermite_e.hermegauss(nodes[1])
    n, w = jnp.asarray(n)[:, None, None], jnp.asarray(w / w.sum())[:, None, None]
    mean = c.d_alpha * means + covariance / variance * (x - centre)
    v = mean[None] + spread[None] * n
    x = jnp.broadcast_to(x[None], v.shape).reshape((-1, 1))
    # x0 and x1 follow from x and v; no objective of this room reads them.
    unused = jnp.full_like(x, jnp.nan)
    times = jnp.full((len(x),), t, dtype=x.dtype)
    path = Path(x, times, v.reshape((-1, 1)), unused, unused)
    return Quadrature(path, (w * weight[None]).ravel())


def smooth_features(x: Array, t: Array, s: Array) -> Array:
    """Directions in which a field may move away from the truth [features, *x.shape]."""
    t, s = (a.reshape((-1,) + (1,) * (x.ndim - 1)) for a in (t, s))
    ones = jnp.ones_like(x)
    return jnp.stack(
        [ones, x, t * x, s * ones, (s - t) * x, jnp.sin(x + s), jnp.cos(2 * x) * t]
    )
