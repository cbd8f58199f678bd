"""Policies: velocities that need no network on one segment of time.

One call of a network at the start ``(x_t, t)`` of a segment [t, s] gives the parameters
of a policy, and the policy is a velocity on the whole segment: many small steps cost
nothing. A policy is a NamedTuple of arrays with the batch axis first, so that
``jax.lax.stop_gradient(policy)`` detaches it and ``jax.tree.map`` slices its rows. Its
`velocity` is a `VelocityField` like any other.

All live on the linear path ``x_t = t x1 + (1 - t) x0`` and predict velocities at the
start: with a velocity ``m`` the data is at ``x + (1 - t) m``. The network answers
[batch, *event[:-1], features]; see `split_output`. Channels come last, and each
position of the event has a mixture of its own. A last layer that starts at zero makes
all components of a Gaussian mixture equal, and their gradients too: they would never
part.

References:
    Chen et al. 2025, pi-Flow, arXiv:2510.14974; ArcFlow (momentum).
"""

import math
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax._typing import (
    AverageVelocityField,
    Condition,
    PRNGKey,
    State,
    Time,
)
from flowjax.fields import chained, euler
from flowjax.interpolants import expand_like


@runtime_checkable
class Policy(Protocol):
    """A velocity that is valid on one segment of time and needs no network."""

    def velocity(self, x: State, t: Time, cond: Condition = None, /) -> State:
        """Return the velocity at ``x`` and ``t``; the condition is not read."""
        ...


@runtime_checkable
class IntegrablePolicy(Policy, Protocol):
    """A policy that does not read the state and has a closed-form integral."""

    def average_velocity(self, a: Time, b: Time) -> State:
        """Return the mean of the velocity over [a, b]; at ``a = b`` the velocity."""
        ...

    def displacement(self, a: Time, b: Time) -> State:
        """Return the integral of the velocity from ``a`` to ``b``."""
        ...


@runtime_checkable
class PolicyMaker(Protocol):
    """One forward pass of a network, turned into a policy for the segment [t, s]."""

    def __call__(self, x: State, t: Time, s: Time, cond: Condition = None, /) -> Policy:
        """Return the policy of the segments that start at ``x`` and ``t``."""
        ...


class GaussianMixturePolicy(NamedTuple):
    """The velocity of a Gaussian mixture of the data, given the start of the segment.

    ``p(x1 | x_s) = sum_k w_k N(mu_k, V)`` at every position. `velocity` is the exact
    ``E[x1 - x0 | x_t]`` of that law: if it is the true posterior at the start, so it is
    on the whole segment. Finite for s <= t <= 1 where V > 0.

    Attributes:
        x: the start x_s [batch, *event].
        t: its time s < 1 [batch].
        log_weights: log w_k up to a constant [batch, k, *event[:-1], 1].
        means: mu_k [batch, k, *event].
        variance: V, shared by the components [batch, 1, *event], each axis of the event
            possibly of size 1.
    """

    x: State
    t: Time
    log_weights: Float[Array, "batch k *positions 1"]
    means: Float[Array, "batch k *event"]
    variance: Float[Array, "batch 1 *broadcast"]

    def velocity(self, x: State, t: Time, cond: Condition = None, /) -> State:
        """Return ``E[(x1 - x) / (1 - t) | x_t = x, x_s]``."""
        # The posterior at t is that at s times N(x; t x1, (1-t)^2) and divided by
        # N(x_s; s x1, (1-s)^2), which is exp(x1 nu - x1^2 zeta / 2) with differences
        # nu of x / var and zeta of 1 / var. With all means measured from x and
        # everything multiplied by (1-t)^2 no term diverges at t=1.
        now, start = x[:, None], self.x[:, None]
        t, s = (expand_like(a, now).astype(x.dtype) for a in (t, self.t))
        rest, odds = 1 - t, s / (1 - s)
        zeta = t**2 - (odds * rest) ** 2
        pull = t * now + rest * odds * (s * now - start) / (1 - s)
        total = rest**2 + self.variance * zeta
        offset = self.means - now
        evidence = (offset * (rest * pull) - offset**2 * (zeta / 2)) / total
        logits = self.log_weights + evidence.sum(-1, keepdims=True)
        values = (rest * offset + self.variance * pull) / total
        return (jax.nn.softmax(logits, 1) * values).sum(1)


class DataGridPolicy(NamedTuple):
    """pi-Flow's DX policy: data predictions on a grid of times, linear in between.

    ``v = (x1(t) - x) / (1 - t)``; ``1 - t`` counts as at least 1e-4. Euler steps that
    end at t=1 end in the prediction.

    Attributes:
        points: the data at equally spaced times of [t, s] [batch, k, *event].
        t: start of the segment [batch].
        s: its end, ``s > t`` [batch].
    """

    points: Float[Array, "batch k *event"]
    t: Time
    s: Time

    def velocity(self, x: State, t: Time, cond: Condition = None, /) -> State:
        """Return the velocity towards the data predicted for time ``t``."""
        last = self.points.shape[1] - 1
        length = jnp.maximum(self.s - self.t, jnp.finfo(self.t.dtype).eps)
        place = jnp.clip((t - self.t) / length, 0, 1) * last
        index = jnp.arange(last + 1, dtype=place.dtype)
        hat = jnp.maximum(1 - jnp.abs(place[:, None] - index[None]), 0)
        hat = hat.reshape(hat.shape + (1,) * (x.ndim - 1)).astype(x.dtype)
        rest = expand_like(jnp.maximum(1 - t, 1e-4), x).astype(x.dtype)
        return ((hat * self.points).sum(1) - x) / rest


class MomentumPolicy(NamedTuple):
    """ArcFlow's mixture of velocities that grow or decay exponentially.

    ``v(t) = sum_k w_k m_k exp(l_k (t - t_0))``, whatever the state. A rate of zero is a
    straight line.

    Attributes:
        t: the start t_0 of the segment [batch].
        log_weights: log w_k up to a constant [batch, k, *event[:-1], 1].
        velocities: m_k, those at the start [batch, k, *event].
        rates: l_k [batch, k, *event[:-1], 1].
    """

    t: Time
    log_weights: Float[Array, "batch k *positions 1"]
    velocities: Float[Array, "batch k *event"]
    rates: Float[Array, "batch k *positions 1"]

    def velocity(self, x: State, t: Time, cond: Condition = None, /) -> State:
        """Return the velocity at ``t``; ``x`` is not read."""
        return self.average_velocity(t, t)

    def average_velocity(self, a: Time, b: Time) -> State:
        """Return ``sum_k w_k m_k exp(l_k (a - t_0)) phi(l_k (b - a))``."""
        elapsed, length = (
            expand_like(gap, self.rates).astype(self.rates.dtype)
            for gap in (a - self.t, b - a)
        )
        growth = jnp.exp(self.rates * elapsed) * mean_exponential(self.rates * length)
        weights = jax.nn.softmax(self.log_weights, 1)
        return (weights * growth * self.velocities).sum(1)

    def displacement(self, a: Time, b: Time) -> State:
        """Return the integral of the velocity from ``a`` to ``b``."""
        average = self.average_velocity(a, b)
        return expand_like(b - a, average).astype(average.dtype) * average


MixturePolicy = TypeVar("MixturePolicy", GaussianMixturePolicy, MomentumPolicy)


def gaussian_mixture_policy(
    raw: Float[Array, "batch *positions features"], x: State, t: Time
) -> GaussianMixturePolicy:
    """Return the policy of a network's output with ``k (channels + 1) + 1`` features.

    Per component a velocity ``m`` and a log-weight, then one log standard deviation
    ``l`` of the velocity: ``mu = x + (1 - t) m`` and ``V = (1 - t)^2 exp(2 l)``.

    Args:
        raw: the network's output [batch, *event[:-1], features].
        x: states at the start of the segment [batch, *event].
        t: times of the start, less than 1 [batch].

    Raises:
        ValueError: if the features do not fit the channels of ``x``.

    References:
        Chen et al. 2025, pi-Flow, arXiv:2510.14974; GMFlow, arXiv:2504.05304.
    """
    means, log_weights, log_std = split_output(raw, x, extra=1, shared=1)
    rest = expand_like(1 - t, means).astype(x.dtype)
    variance = (rest * jnp.exp(log_std)) ** 2
    return GaussianMixturePolicy(x, t, log_weights, x[:, None] + rest * means, variance)


def data_grid_policy(
    raw: Float[Array, "batch *positions features"], x: State, t: Time, s: Time
) -> DataGridPolicy:
    """Return the policy of a network's output with ``k channels`` features.

    Args:
        raw: k velocities ``m``, the data being ``x + (1 - t) m``
            [batch, *event[:-1], features].
        x: states at the start of the segment [batch, *event].
        t: times of the start, less than 1 [batch].
        s: times of the end [batch].

    Raises:
        ValueError: if the features do not fit the channels of ``x``.

    References:
        Chen et al. 2025, pi-Flow, arXiv:2510.14974 (DX policy).
    """
    velocities, _, _ = split_output(raw, x)
    rest = expand_like(1 - t, velocities).astype(x.dtype)
    return DataGridPolicy(x[:, None] + rest * velocities, t, s)


def momentum_policy(
    raw: Float[Array, "batch *positions features"], x: State, t: Time
) -> MomentumPolicy:
    """Return the policy of a network's output with ``k (channels + 2)`` features.

    Per component a velocity, a log-weight and a rate. To the rates are added numbers
    equally spaced from log 0.2 to log 4, so that an output of zero already has k
    different components; the first rate is set to zero, a straight line.

    Args:
        raw: the network's output [batch, *event[:-1], features].
        x: states at the start of the segment [batch, *event], read for their shape.
        t: times of the start [batch].

    Raises:
        ValueError: if the features do not fit the channels of ``x``.

    References:
        ArcFlow, mixture of momentum processes; constants from its configurations.
    """
    velocities, extra, _ = split_output(raw, x, extra=2)
    log_weights, rates = extra[..., :1], extra[..., 1:]
    spread = np.linspace(math.log(0.2), math.log(4), max(rates.shape[1] - 1, 1))
    offsets = jnp.asarray(spread[: rates.shape[1] - 1], x.dtype)
    offsets = offsets.reshape((1, -1) + (1,) * (rates.ndim - 2))
    rates = jnp.concatenate([jnp.zeros_like(rates[:, :1]), rates[:, 1:] + offsets], 1)
    return MomentumPolicy(t, log_weights, velocities, rates)


def split_output(
    raw: Float[Array, "batch *positions features"],
    x: State,
    *,
    extra: int = 0,
    shared: int = 0,
) -> tuple[Array, Array, Array]:
    """Split ``k (channels + extra) + shared`` features into the parts of k components.

    The features are k blocks of ``channels + extra`` numbers, one after the other, and
    then the ``shared`` ones; k follows from their number.

    Args:
        raw: the network's output [batch, *event[:-1], features].
        x: states [batch, *event], which say how many channels there are.
        extra: numbers per component besides its channels.
        shared: numbers common to all components.

    Returns:
        The channels [batch, k, *event], the extra numbers
        [batch, k, *event[:-1], extra] and the shared ones
        [batch, 1, *event[:-1], shared], in the dtype of ``x``.

    Raises:
        ValueError: if no k >= 1 fits, or the other axes differ from those of ``x``.
    """
    block = x.shape[-1] + extra
    components, left = divmod(raw.shape[-1] - shared, block)
    if raw.shape[:-1] != x.shape[:-1] or components < 1 or left:
        raise ValueError(
            f"the network's output must have shape {x.shape[:-1]} + "
            f"(k * {block} + {shared},) for some k >= 1; got {raw.shape}"
        )
    raw = raw.astype(x.dtype)
    blocks = raw[..., : components * block]
    blocks = jnp.moveaxis(blocks.reshape((*raw.shape[:-1], components, block)), -2, 1)
    channels = x.shape[-1]
    rest = raw[:, None, ..., components * block :]
    return blocks[..., :channels], blocks[..., channels:], rest


def drop_components(
    key: PRNGKey, policy: MixturePolicy, *, rate: float
) -> MixturePolicy:
    """Drop every component with probability ``rate``, the same at all positions.

    A row that would lose all its components keeps them. pi-Flow drives the states of
    its training with such a policy (0.05 to 0.1), to visit more than its own.

    Raises:
        ValueError: unless ``0 <= rate < 1``.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"`rate` must lie in [0, 1); got {rate}")
    keep = jax.random.bernoulli(key, 1 - rate, policy.log_weights.shape[:2])
    keep = keep | ~keep.any(1, keepdims=True)
    keep = keep.reshape(keep.shape + (1,) * (policy.log_weights.ndim - 2))
    return policy._replace(log_weights=jnp.where(keep, policy.log_weights, -jnp.inf))


def policy_average(policy: Policy, *, steps: int = 128) -> AverageVelocityField:
    """Return the average velocity of a policy: closed form, or ``steps`` Euler steps.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """
    if not isinstance(policy, IntegrablePolicy):
        return chained(euler(policy.velocity), steps)

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return policy.average_velocity(t, s)

    return u


def policy_step(make_policy: PolicyMaker, *, steps: int = 128) -> AverageVelocityField:
    """Return the average velocity over [t, s] of the policy made at ``(x, t)``.

    Ready for `flowjax.sampling.few_step`, whose grid are the segments: one forward pass
    of the network each.

    Args:
        make_policy: ``(x, t, s, cond) -> policy``.
        steps: Euler steps per segment of a policy without closed form.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return policy_average(make_policy(x, t, s, cond), steps=steps)(x, t, s)

    return u


def mean_exponential(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return ``(e^z - 1) / z``, the mean of ``e^(z a)`` over a in [0, 1]; 1 at z = 0.

    A Taylor series where ``|z| < 0.3``: precise there too in value and in derivatives.
    """
    near = jnp.abs(z) < 0.3
    # Each branch sees only arguments at which it and its derivatives are finite.
    small, large = jnp.where(near, z, 0), jnp.where(near, 1, z)
    series = jnp.ones_like(z)
    for order in range(13, 1, -1):
        series = 1 + small / order * series
    return jnp.where(near, series, jnp.expm1(large) / large)
