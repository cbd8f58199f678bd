"""The paths by name, each a tuple of functions of time."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.interpolants.coefficients import Interpolant
from flowjax.typing import Range


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


@checked
def polynomial(power: Annotated[float, Range(1)]) -> Interpolant:
    """Return ``alpha = t^power``, ``sigma = 1 - t^power``, the line at another pace.

    Args:
        power: at least 1; below, the velocity diverges at t=0.

    Raises:
        ValueError: if ``power`` is less than 1.
    """
    return Interpolant(alpha=lambda t: t**power, sigma=lambda t: 1 - t**power)


@checked
def minimum_noise(sigma_min: Annotated[float, Range(0, 1, "[)")] = 1e-4) -> Interpolant:
    """Return ``alpha = t``, ``sigma = 1 - (1 - sigma_min) t``, ending in N(x1, s^2 I).

    Args:
        sigma_min: standard deviation s left around the data at t=1, in [0, 1).

    Raises:
        ValueError: if ``sigma_min`` lies outside [0, 1).

    References:
        arXiv:2210.02747, Eq. 20-23 (the conditional optimal-transport path).
    """
    # (1 - t) + s t instead of 1 - (1 - s) t: exactly s at t=1 in every precision.
    return Interpolant(alpha=_identity, sigma=lambda t: (1 - t) + sigma_min * t)


def linear_variance_preserving() -> Interpolant:
    """Return ``alpha = t``, ``sigma = sqrt(1 - t^2)``; sigma' diverges at t=1."""

    def squared(t: Float[Array, "..."]) -> Float[Array, "..."]:
        return (1 - t) * (1 + t)

    return Interpolant(
        alpha=_identity, sigma=lambda t: jnp.sqrt(squared(t)), variance=squared
    )


@checked
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


@checked
def accelerated_line(ratio: Annotated[float, Range(0, 2)] = 1.5) -> Interpolant:
    """Return ``alpha = t^2 + h (t - t^2)``, ``sigma = 1 - alpha`` for ``h = ratio``.

    The straight line from x0 to x1 with the initial velocity ``v0 = h (x1 - x0)`` and
    the constant acceleration ``(2 - 2 h) (x1 - x0)``; h = 1 is the linear path.

    Args:
        ratio: in [0, 2], so that alpha does not turn back.

    Raises:
        ValueError: unless ``0 <= ratio <= 2``.

    References:
        Park et al. 2024, Constant Acceleration Flow, arXiv:2411.00322.
    """

    def alpha(t: Float[Array, "..."], /) -> Float[Array, "..."]:
        return t * (ratio + (1 - ratio) * t)

    # 1 - alpha, factored: exactly 0 at t=1 in every precision.
    return Interpolant(alpha=alpha, sigma=lambda t: (1 - t) * (1 + (1 - ratio) * t))


def _identity(t: Float[Array, "..."]) -> Float[Array, "..."]:
    return t


def _one_minus(t: Float[Array, "..."]) -> Float[Array, "..."]:
    return 1 - t


def _quarter_sine(t: Float[Array, "..."]) -> Float[Array, "..."]:
    # sin(pi/2 t) is exactly 1 at t=1 and exactly 0 at t=0, unlike cos(pi/2).
    return jnp.sin(t * (jnp.pi / 2))
