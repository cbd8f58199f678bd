"""Expectations over (x_t, v_c) by Gauss-Hermite nodes instead of Monte Carlo.

Given component k of Gaussian-mixture data, (x_t, v_c) is jointly Gaussian. Rotated
coordinates x_t = mean + std n1, v_c = v_k(x_t) + residual_std n2 make polynomial losses
exact and the rule symmetric in n2, so that a stationary point shows as a zero to
rounding.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.interpolants import Interpolant, Path, coefficients


class Quadrature(NamedTuple):
    path: Path
    weights: Array  # [batch], sums to 1


def joint_quadrature(mixture, interpolant: Interpolant, t: float, nodes: int = 40):
    """Nodes over (x_t, v_c) for 1-D mixture data (means, stds of shape [k, 1])."""
    n, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    first, second = (a.ravel() for a in np.meshgrid(n, n, indexing="ij"))
    weight = np.outer(w, w).ravel()
    c = coefficients(interpolant, jnp.asarray(t, dtype=float))
    xs, vs, ws = [], [], []
    for share, mean, std in zip(*(np.asarray(a) for a in mixture), strict=True):
        variance = c.alpha**2 * std**2 + c.sigma**2
        covariance = c.alpha * c.d_alpha * std**2 + c.sigma * c.d_sigma
        total = c.d_alpha**2 * std**2 + c.d_sigma**2
        residual = jnp.sqrt(jnp.maximum(total - covariance**2 / variance, 0.0))
        x = c.alpha * mean + jnp.sqrt(variance) * first
        velocity = c.d_alpha * mean + covariance / variance * (x - c.alpha * mean)
        xs.append(x)
        vs.append(velocity + residual * second)
        ws.append(share * weight)
    x, v = (jnp.concatenate(a)[:, None] for a in (xs, vs))
    # x0 and x1 follow from x and v; no objective of this room reads them.
    x1 = jnp.full_like(x, jnp.nan)
    times = jnp.full((len(x),), t, dtype=x.dtype)
    return Quadrature(Path(x, times, v, x1, x1), jnp.asarray(np.concatenate(ws)))


def smooth_features(x: Array, t: Array, s: Array) -> Array:
    """Directions in which a field may move away from the truth [features, *x.shape]."""
    t, s = (a.reshape((-1,) + (1,) * (x.ndim - 1)) for a in (t, s))
    ones = jnp.ones_like(x)
    return jnp.stack(
        [ones, x, t * x, s * ones, (s - t) * x, jnp.sin(x + s), jnp.cos(2 * x) * t]
    )
