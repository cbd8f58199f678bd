"""The coefficients of a path, their derivatives and the noise that they leave."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from flowjax.contracts import checked
from flowjax.typing import TimeFunction


class Interpolant(NamedTuple):
    """Coefficients of ``x_t = alpha x1 + sigma x0 (+ gamma z)`` as functions of time.

    ``variance`` is ``sigma^2 + gamma^2``. It is needed only where sigma or gamma is a
    square root that reaches zero: there their derivative diverges while that of the
    variance stays finite, and the marginal fields depend on the latter alone.
    """

    alpha: TimeFunction
    sigma: TimeFunction
    gamma: TimeFunction | None = None
    variance: TimeFunction | None = None


class Coefficients(NamedTuple):
    """An interpolant and its time derivatives at given times, each shaped as ``t``.

    ``variance_rate`` is ``sigma sigma' + gamma gamma'``, half the derivative of the
    variance. ``gamma`` and ``d_gamma`` are zero without latent noise.
    """

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]
    gamma: Float[Array, "..."]
    d_alpha: Float[Array, "..."]
    d_sigma: Float[Array, "..."]
    d_gamma: Float[Array, "..."]
    variance_rate: Float[Array, "..."]


@checked
def derivative(f: TimeFunction, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return df/dt at every entry of ``t`` by one forward-mode pass."""
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


@checked
def coefficients(interpolant: Interpolant, t: Float[Array, "..."]) -> Coefficients:
    """Evaluate an interpolant and its time derivatives at ``t`` (any shape)."""
    ones = jnp.ones_like(t)
    alpha, d_alpha = jax.jvp(interpolant.alpha, (t,), (ones,))
    sigma, d_sigma = jax.jvp(interpolant.sigma, (t,), (ones,))
    gamma = d_gamma = jnp.zeros_like(t)
    if interpolant.gamma is not None:
        gamma, d_gamma = jax.jvp(interpolant.gamma, (t,), (ones,))
    if interpolant.variance is None:
        rate = sigma * d_sigma + gamma * d_gamma
    else:
        rate = derivative(interpolant.variance, t) / 2
    return Coefficients(alpha, sigma, gamma, d_alpha, d_sigma, d_gamma, rate)


@checked
def noise_variance(
    interpolant: Interpolant, t: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return ``sigma^2 + gamma^2``, the variance of x_t given the data, at ``t``.

    It is what the marginals depend on: they can't tell the noise of the source from
    latent noise.
    """
    if interpolant.variance is not None:
        # The derivative of sigma^2 would be 0 * inf where sigma' is infinite.
        return interpolant.variance(t)
    latent = 0.0 if interpolant.gamma is None else interpolant.gamma(t) ** 2
    return interpolant.sigma(t) ** 2 + latent


@checked
def noise_level(
    interpolant: Interpolant, t: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return ``sqrt(sigma^2 + gamma^2)``, the deviation of x_t given the data."""
    return jnp.sqrt(noise_variance(interpolant, t))


@checked
def time_of_ratio(interpolant: Interpolant, ratio: ArrayLike) -> np.ndarray:
    """Return the times at which noise over signal, ``sigma / alpha``, is ``ratio``.

    Latent noise counts as sigma. On the linear path they are ``1 / (1 + ratio)``; here
    they are found by bisection, in float64 and before tracing, wherever this is called.

    Args:
        interpolant: a path whose ratio falls with time.
        ratio: not negative, of any shape.

    Returns:
        float64 times shaped as ``ratio``: 0 where it is above that of t=0, 1 where it
        is below that of t=1.
    """
    ratio = np.asarray(ratio, np.float64)
    low, high = np.zeros_like(ratio), np.ones_like(ratio)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        for _ in range(60):
            middle = (low + high) / 2
            t = jnp.asarray(middle)
            # Squares multiplied out: neither a division nor a root can spoil this.
            signal = (interpolant.alpha(t) * ratio) ** 2
            noisy = np.asarray(noise_variance(interpolant, t) > signal)
            low, high = np.where(noisy, middle, low), np.where(noisy, high, middle)
    return np.asarray((low + high) / 2)
