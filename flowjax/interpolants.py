"""Interpolants: how a source sample x0 and a data sample x1 are joined at time t.

``x_t = alpha(t) x1 + sigma(t) x0 (+ gamma(t) z)`` with ``z ~ N(0, I)``; t=0 is the
source, t=1 the data. An interpolant is data, a tuple of functions of time, so a new one
is one line: ``Interpolant(alpha=..., sigma=...)``. Derivatives come from forward-mode
autodiff and need not be written.

References:
    Lipman et al. 2022, Flow Matching for Generative Modeling, arXiv:2210.02747.
    Liu et al. 2022, Flow Straight and Fast, arXiv:2209.03003.
    Albergo, Boffi, Vanden-Eijnden 2023, Stochastic Interpolants, arXiv:2303.08797.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from flowjax._checks import check_condition, check_state, check_time
from flowjax._typing import Condition, State, Time, TimeFunction


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


class Path(NamedTuple):
    """One batch of points on conditional paths; every leaf has the batch axis first.

    Slicing, sharding and masking rows is one ``jax.tree.map``.

    Attributes:
        x: the interpolated state x_t [batch, *event].
        t: its time [batch].
        v: the target velocity, d x_t / dt at fixed (x0, x1, z) [batch, *event].
        x0: the source sample [batch, *event].
        x1: the data sample [batch, *event].
        cond: the condition, a pytree with leading axis batch, or None.
    """

    x: State
    t: Time
    v: State
    x0: State
    x1: State
    cond: Any = None


def expand_like(t: Shaped[Array, "batch"], x: State) -> Shaped[Array, "batch *ones"]:
    """Append singleton axes to ``t`` [batch] so that it broadcasts against ``x``."""
    return jnp.reshape(t, t.shape + (1,) * (x.ndim - 1))


def derivative(f: TimeFunction, t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return df/dt at every entry of ``t`` by one forward-mode pass."""
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


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


def sample_path(
    interpolant: Interpolant,
    x0: State,
    x1: State,
    t: Time,
    cond: Condition = None,
    *,
    z: State | None = None,
) -> Path:
    """Join ``x0`` and ``x1`` at time ``t``: ``x_t`` and its velocity ``d x_t / dt``.

    Args:
        interpolant: the coefficients alpha, sigma and possibly gamma.
        x0: source samples [batch, *event].
        x1: data samples [batch, *event].
        t: times in [0, 1] [batch].
        cond: a pytree with leading axis batch, handed on unchanged, or None.
        z: latent noise [batch, *event]; needed exactly when ``gamma`` is set.

    Returns:
        The `Path`, in the dtype of ``x1``. At a time where ``sigma'`` or ``gamma'``
        diverges (t=1 of the variance-preserving interpolants) so does its ``v``.

    Raises:
        ValueError: if shapes, dtypes or times do not fit, or ``z`` is missing or extra.

    References:
        arXiv:2303.08797, Definition 2.1.
    """
    check_state("x1", x1)
    check_state("x0", x0, like=x1)
    check_time("t", t, len(x1))
    check_condition(cond, len(x1))
    for name, x in (("x0", x0), ("z", z)):
        if x is not None and x.dtype != x1.dtype:
            raise ValueError(
                f"`{name}` must have the dtype of `x1`={x1.dtype}; got {x.dtype}"
            )
    if (interpolant.gamma is None) != (z is None):
        expected = "no" if interpolant.gamma is None else "a"
        got = "none" if z is None else f"one of shape {z.shape}"
        raise ValueError(f"this interpolant takes {expected} latent `z`; got {got}")
    if z is not None:
        check_state("z", z, like=x1)
    c = coefficients(interpolant, t)

    def combine(a: Array, b: Array, g: Array) -> Array:
        a, b, g = (expand_like(w, x1).astype(x1.dtype) for w in (a, b, g))
        return a * x1 + b * x0 if z is None else a * x1 + b * x0 + g * z

    x = combine(c.alpha, c.sigma, c.gamma)
    v = combine(c.d_alpha, c.d_sigma, c.d_gamma)
    return Path(x, t, v, x0, x1, cond)


def linear() -> Interpolant:
    """Return the straight path ``x_t = t x1 + (1 - t) x0`` (rectified flow, CondOT).

    References:
        arXiv:2209.03003, Eq. 1; arXiv:2210.02747, Eq. 20 with sigma_min = 0.
    """
    return Interpolant(alpha=_identity, sigma=_one_minus)


def trigonometric() -> Interpolant:
    """Return ``alpha = sin(pi t / 2)``, ``sigma = cos(pi t / 2)``.

    The endpoints are exact: sigma is written as a sine of the remaining angle.

    References:
        arXiv:2303.08797, Table 4; arXiv:2209.15571.
    """
    return Interpolant(alpha=_quarter_sine, sigma=lambda t: _quarter_sine(1 - t))


def polynomial(power: float) -> Interpolant:
    """Return ``alpha = t^power``, ``sigma = 1 - t^power``, the line at another pace.

    Args:
        power: at least 1; below, the velocity diverges at t=0.

    Raises:
        ValueError: if ``power`` is less than 1.
    """
    if not power >= 1:
        raise ValueError(f"`power` must be at least 1; got {power}")
    return Interpolant(alpha=lambda t: t**power, sigma=lambda t: 1 - t**power)


def minimum_noise(sigma_min: float = 1e-4) -> Interpolant:
    """Return ``alpha = t``, ``sigma = 1 - (1 - sigma_min) t``, ending in N(x1, s^2 I).

    Args:
        sigma_min: standard deviation s left around the data at t=1, in [0, 1).

    Raises:
        ValueError: if ``sigma_min`` lies outside [0, 1).

    References:
        arXiv:2210.02747, Eq. 20-23 (the conditional optimal-transport path).
    """
    if not 0 <= sigma_min < 1:
        raise ValueError(f"`sigma_min` must lie in [0, 1); got {sigma_min}")
    # (1 - t) + s t instead of 1 - (1 - s) t: exactly s at t=1 in every precision.
    return Interpolant(alpha=_identity, sigma=lambda t: (1 - t) + sigma_min * t)


def linear_variance_preserving() -> Interpolant:
    """Return ``alpha = t``, ``sigma = sqrt(1 - t^2)``; sigma' diverges at t=1."""

    def squared(t: Float[Array, "..."]) -> Float[Array, "..."]:
        return (1 - t) * (1 + t)

    return Interpolant(
        alpha=_identity, sigma=lambda t: jnp.sqrt(squared(t)), variance=squared
    )


def variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> Interpolant:
    """Return the diffusion path of the linear beta schedule, run from noise to data.

    ``T(t) = (1-t)^2 (beta_max - beta_min) / 2 + (1-t) beta_min``,
    ``alpha = exp(-T/2)``, ``sigma = sqrt(1 - exp(-T))``; the paper runs ``1 - t``.
    ``alpha(0) = exp(-(beta_min + beta_max) / 4)`` is small but not zero, and
    ``sigma'`` diverges at t=1: train on t <= 1 - 1e-5.

    Args:
        beta_min: noise rate at the data, positive.
        beta_max: noise rate at the noise end, at least ``beta_min``.

    Raises:
        ValueError: unless ``0 < beta_min <= beta_max``.

    References:
        Song et al. 2020, Score-Based Generative Modeling through SDEs,
        arXiv:2011.13456, Eq. 33.
    """
    if not 0 < beta_min <= beta_max:
        raise ValueError(
            "`beta_min` and `beta_max` must satisfy 0 < beta_min <= beta_max; "
            f"got {beta_min} and {beta_max}"
        )

    def log_snr_integral(t: Float[Array, "..."]) -> Float[Array, "..."]:
        return (1 - t) ** 2 * ((beta_max - beta_min) / 2) + (1 - t) * beta_min

    def squared(t: Float[Array, "..."]) -> Float[Array, "..."]:
        return -jnp.expm1(-log_snr_integral(t))

    return Interpolant(
        alpha=lambda t: jnp.exp(-log_snr_integral(t) / 2),
        sigma=lambda t: jnp.sqrt(squared(t)),
        variance=squared,
    )


def _identity(t: Float[Array, "..."]) -> Float[Array, "..."]:
    return t


def _one_minus(t: Float[Array, "..."]) -> Float[Array, "..."]:
    return 1 - t


def _quarter_sine(t: Float[Array, "..."]) -> Float[Array, "..."]:
    # sin(pi/2 t) is exactly 1 at t=1 and exactly 0 at t=0, unlike cos(pi/2).
    return jnp.sin(t * (jnp.pi / 2))
