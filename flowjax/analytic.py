"""Closed-form marginal fields: the oracle of tests, notebooks and users.

The data ``x1`` is a Gaussian mixture with diagonal covariances, the source ``x0`` (and
the latent noise ``z``) standard normal and independent of it. Then the law of
``x_t = alpha x1 + sigma x0 (+ gamma z)`` is again such a mixture, with component means
``alpha m_k`` and variances ``V_k = alpha^2 S_k^2 + sigma^2 + gamma^2``, and velocity,
score, density and denoiser are finite sums, for every interpolant. For one Gaussian,
and for any mixture in one dimension, so are the flow map and the average velocity.

Every function returns a field, computed in the dtype (float32 or float64) of its ``x``.
Fields are finite, and exact, wherever all ``V_k > 0``, both endpoints included.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from flowjax._checks import check_state, check_time
from flowjax._line import LineMixture, rearrange
from flowjax._typing import (
    AverageVelocityField,
    Condition,
    PerExample,
    PRNGKey,
    State,
    Time,
    VelocityField,
)
from flowjax.interpolants import Interpolant, coefficients, expand_like


class Mixture(NamedTuple):
    """A mixture ``sum_k w_k N(m_k, diag(S_k^2))``; make it with `mixture`, `gaussian`.

    Attributes:
        weights: w_k, positive with sum 1 [k].
        means: m_k [k, *event].
        stds: S_k, zero for a point mass [k, *event].
    """

    weights: Float[Array, "k"]
    means: Float[Array, "k *event"]
    stds: Float[Array, "k *event"]


def gaussian(mean: ArrayLike, std: ArrayLike) -> Mixture:
    """Return ``N(mean, diag(std^2))``, a mixture of one.

    Args:
        mean: its mean [*event], with at least one axis.
        std: its standard deviation, not negative, [*event] or a scalar.

    Raises:
        ValueError: if shapes or values do not fit.
    """
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    if mean.ndim == 0:
        raise ValueError("`mean` must have shape [*event], one axis or more; got ()")
    return mixture(jnp.ones(1), mean[None], std[None] if std.ndim else std)


def mixture(weights: ArrayLike, means: ArrayLike, stds: ArrayLike) -> Mixture:
    """Return ``sum_k w_k N(m_k, diag(S_k^2))``.

    A data set itself is the mixture of its points, with equal weights and ``stds=0``;
    its fields are finite before t=1.

    Args:
        weights: positive, of any scale: they are divided by their sum [k].
        means: component means [k, *event], with at least one event axis.
        stds: standard deviations, not negative, [k, *event] or a scalar.

    Raises:
        ValueError: if shapes do not fit, or values where they are known.
    """
    weights, means, stds = (jnp.asarray(a, dtype=float) for a in (weights, means, stds))
    if means.ndim < 2 or len(means) == 0:
        raise ValueError(f"`means` must have shape [k, *event]; got {means.shape}")
    if weights.shape != means.shape[:1]:
        raise ValueError(
            f"`weights` must have shape [k]=({len(means)},); got {weights.shape}"
        )
    if stds.ndim and stds.shape != means.shape:
        raise ValueError(
            f"`stds` must be a scalar or have shape {means.shape}; got {stds.shape}"
        )
    if not _holds(weights > 0):
        raise ValueError(f"`weights` must be positive; got {weights}")
    if not _holds(stds >= 0):
        raise ValueError(f"`stds` must not be negative; got {stds}")
    return Mixture(weights / weights.sum(), means, jnp.broadcast_to(stds, means.shape))


def sample(key: PRNGKey, mixture: Mixture, batch: int) -> State:
    """Draw ``batch`` independent samples of a mixture [batch, *event]."""
    if batch < 1:
        raise ValueError(f"`batch` must be at least 1; got {batch}")
    key_component, key_normal = jax.random.split(key)
    k = jax.random.categorical(key_component, jnp.log(mixture.weights), shape=(batch,))
    means, stds = mixture.means[k], mixture.stds[k]
    return means + stds * jax.random.normal(key_normal, means.shape, means.dtype)


def velocity(mixture: Mixture, interpolant: Interpolant) -> VelocityField:
    """Return ``v(x, t) = E[d x_t / dt | x_t = x]``.

    ``v = sum_k r_k v_k`` with the posterior probabilities ``r_k`` of the components and
    ``v_k = alpha' m_k + (V_k' / 2) / V_k (x - alpha m_k)``.

    References:
        arXiv:2303.08797, Sec. 2.2 (velocity as conditional expectation).
    """

    def field(x: State, t: Time, cond: Condition = None) -> State:
        c = _components(mixture, interpolant, x, t)
        return _average(c, c.d_alpha * c.means + c.half_rate / c.variance * c.offset)

    return field


def score(mixture: Mixture, interpolant: Interpolant) -> VelocityField:
    """Return ``grad_x log p_t(x) = -sum_k r_k (x - alpha m_k) / V_k``."""

    def field(x: State, t: Time, cond: Condition = None) -> State:
        c = _components(mixture, interpolant, x, t)
        return _average(c, -c.offset / c.variance)

    return field


def posterior_mean(mixture: Mixture, interpolant: Interpolant) -> VelocityField:
    """Return the denoiser ``E[x1 | x_t = x]``.

    It is ``sum_k r_k (m_k + alpha S_k^2 / V_k (x - alpha m_k))``.
    """

    def field(x: State, t: Time, cond: Condition = None) -> State:
        c = _components(mixture, interpolant, x, t)
        gain = c.alpha * c.stds**2 / c.variance
        return _average(c, c.means + gain * c.offset)

    return field


def log_density(
    mixture: Mixture, interpolant: Interpolant
) -> Callable[..., PerExample]:
    """Return ``f(x, t) = log p_t(x) = log sum_k w_k N(x; alpha m_k, V_k)`` [batch]."""

    def field(x: State, t: Time, cond: Condition = None) -> PerExample:
        c = _components(mixture, interpolant, x, t)
        return logsumexp(c.log_joint, axis=1)

    return field


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
        start = _components(mixture, interpolant, x, t)
        end = _components(mixture, interpolant, x, s, name="s")
        if len(mixture.weights) == 1:
            scale = jnp.sqrt(end.variance / start.variance)
            return (end.alpha * end.means + scale * start.offset)[:, 0]
        still = t.astype(x.dtype) == s.astype(x.dtype)
        y = rearrange(_line(start), _line(end), x.reshape(len(x)), still)
        return y.reshape(x.shape)

    return field


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


def _holds(condition: Bool[Array, "..."]) -> bool:
    """Say whether every entry is true, as far as is known before tracing."""
    return isinstance(condition, Tracer) or bool(condition.all())


class _Components(NamedTuple):
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


def _components(
    mixture: Mixture, interpolant: Interpolant, x: State, t: Time, name: str = "t"
) -> _Components:
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
    noise = c.sigma**2 + c.gamma**2
    if interpolant.variance is not None:
        # Where sigma' is infinite a derivative of sigma**2 in t would be 0 * inf.
        noise = interpolant.variance(t)
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
    return _Components(
        log_joint, weights, means, stds, alpha, d_alpha, variance, half_rate, offset
    )


def _average(c: _Components, values: Float[Array, "batch k *event"]) -> State:
    """Average ``values`` over the components given x: ``sum_k r_k values_k``."""
    posterior = jax.nn.softmax(c.log_joint, axis=1)
    # A sum and not a dot product, which loses digits on accelerators.
    weights = jnp.expand_dims(posterior, tuple(range(2, values.ndim)))
    return (weights * values).sum(axis=1)


def _line(c: _Components) -> LineMixture:
    """Return the one-dimensional marginal described by ``c``."""
    return LineMixture(
        jnp.log(c.weights),
        (c.alpha * c.means).reshape(c.log_joint.shape),
        jnp.sqrt(c.variance).reshape(c.log_joint.shape),
    )
