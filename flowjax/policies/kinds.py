"""The kinds of policies: Gaussian mixtures, data on a grid of times, momentum."""

from typing import Annotated, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import expand_like, over_event
from flowjax.typing import Condition, PRNGKey, Range, State, Time


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
        t, s = (over_event(a, now) for a in (t, self.t))
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
        rest = over_event(jnp.maximum(1 - t, 1e-4), x)
        return ((over_event(hat, self.points) * self.points).sum(1) - x) / rest


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
        elapsed, length = (over_event(gap, self.rates) for gap in (a - self.t, b - a))
        growth = jnp.exp(self.rates * elapsed) * mean_exponential(self.rates * length)
        weights = jax.nn.softmax(self.log_weights, 1)
        return (weights * growth * self.velocities).sum(1)

    def displacement(self, a: Time, b: Time) -> State:
        """Return the integral of the velocity from ``a`` to ``b``."""
        average = self.average_velocity(a, b)
        return over_event(b - a, average) * average


MixturePolicy = TypeVar("MixturePolicy", GaussianMixturePolicy, MomentumPolicy)


@checked
def drop_components(
    key: PRNGKey, policy: MixturePolicy, *, rate: Annotated[float, Range(0, 1, "[)")]
) -> MixturePolicy:
    """Drop every component with probability ``rate``, the same at all positions.

    A row that would lose all its components keeps them. pi-Flow drives the states of
    its training with such a policy (0.05 to 0.1), to visit more than its own.

    Raises:
        ValueError: unless ``0 <= rate < 1``.
    """
    keep = jax.random.bernoulli(key, 1 - rate, policy.log_weights.shape[:2])
    keep = keep | ~keep.any(1, keepdims=True)
    kept = expand_like(keep, policy.log_weights)
    return policy._replace(log_weights=jnp.where(kept, policy.log_weights, -jnp.inf))


@checked
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
