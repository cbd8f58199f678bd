"""Velocity, score, denoiser and density of the marginal at one time."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from flowjax.analytic.mixtures import Mixture
from flowjax.checks import check_state, check_time
from flowjax.contracts import checked
from flowjax.events import expand_like
from flowjax.interpolants import Interpolant, coefficients, noise_variance
from flowjax.typing import (
    Condition,
    PerExample,
    State,
    Time,
    VelocityField,
)


@checked
def velocity(mixture: Mixture, interpolant: Interpolant) -> VelocityField:
    """Return ``v(x, t) = E[d x_t / dt | x_t = x]``.

    ``v = sum_k r_k v_k`` with the posterior probabilities ``r_k`` of the components and
    ``v_k = alpha' m_k + (V_k' / 2) / V_k (x - alpha m_k)``.

    References:
        arXiv:2303.08797, Sec. 2.2 (velocity as conditional expectation).
    """

    def field(x: State, t: Time, cond: Condition = None) -> State:
        c = components(mixture, interpolant, x, t)
        return posterior_average(
            c, c.d_alpha * c.means + c.half_rate / c.variance * c.offset
        )

    return field


@checked
def score(mixture: Mixture, interpolant: Interpolant) -> VelocityField:
    """Return ``grad_x log p_t(x) = -sum_k r_k (x - alpha m_k) / V_k``."""

    def field(x: State, t: Time, cond: Condition = None) -> State:
        c = components(mixture, interpolant, x, t)
        return posterior_average(c, -c.offset / c.variance)

    return field


@checked
def posterior_mean(mixture: Mixture, interpolant: Interpolant) -> VelocityField:
    """Return the denoiser ``E[x1 | x_t = x]``.

    It is ``sum_k r_k (m_k + alpha S_k^2 / V_k (x - alpha m_k))``.
    """

    def field(x: State, t: Time, cond: Condition = None) -> State:
        c = components(mixture, interpolant, x, t)
        gain = c.alpha * c.stds**2 / c.variance
        return posterior_average(c, c.means + gain * c.offset)

    return field


@checked
def log_density(
    mixture: Mixture, interpolant: Interpolant
) -> Callable[..., PerExample]:
    """Return ``f(x, t) = log p_t(x) = log sum_k w_k N(x; alpha m_k, V_k)`` [batch]."""

    def field(x: State, t: Time, cond: Condition = None) -> PerExample:
        c = components(mixture, interpolant, x, t)
        return logsumexp(c.log_joint, axis=1)

    return field


class Components(NamedTuple):
    """The marginal of x_t component by component; all broadcast to [batch, k, *event].

    ``log_joint`` [batch, k] is ``log w_k + log N(x; alpha m_k, V_k)``; ``half_rate`` is
    ``V_k' / 2``; ``offset`` is ``x - alpha m_k``.
    """

    log_joint: Float[Array, "batch k"]
    weights: Float[Array, "1 k"]
    means: Float[Array, "1 k *event"]
    stds: Float[Array, "1 k *event"]
    alpha: Array
    d_alpha: Array
    variance: Float[Array, "batch k *event"]
    half_rate: Float[Array, "batch k *event"]
    offset: Float[Array, "batch k *event"]


def components(
    mixture: Mixture, interpolant: Interpolant, x: State, t: Time, name: str = "t"
) -> Components:
    """Evaluate the components of the marginal at ``x`` and ``t`` in the dtype of x."""
    check_state("x", x)
    check_time(name, t, len(x))
    if x.shape[1:] != mixture.means.shape[1:]:
        raise ValueError(
            f"`x` must have the event shape {mixture.means.shape[1:]}; got {x.shape}"
        )
    t = t.astype(x.dtype)
    weights, means, stds = (a.astype(x.dtype)[None] for a in mixture)
    c = coefficients(interpolant, t)
    noise = noise_variance(interpolant, t)
    points = x[:, None]
    alpha, d_alpha, noise, noise_rate = (
        expand_like(w, points) for w in (c.alpha, c.d_alpha, noise, c.variance_rate)
    )
    variance = alpha**2 * stds**2 + noise
    half_rate = alpha * d_alpha * stds**2 + noise_rate
    offset = points - alpha * means
    terms = offset**2 / variance + jnp.log(2 * jnp.pi * variance)
    log_normal = -0.5 * terms.reshape(*terms.shape[:2], -1).sum(axis=-1)
    log_joint = jnp.log(weights) + log_normal
    return Components(
        log_joint, weights, means, stds, alpha, d_alpha, variance, half_rate, offset
    )


def posterior_average(c: Components, values: Float[Array, "batch k *event"]) -> State:
    """Average ``values`` over the components given x: ``sum_k r_k values_k``."""
    posterior = jax.nn.softmax(c.log_joint, axis=1)
    # A sum and not a dot product, which loses digits on accelerators.
    weights = jnp.expand_dims(posterior, tuple(range(2, values.ndim)))
    return (weights * values).sum(axis=1)
