"""Between velocities, average velocities and flow maps: a field from a field."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.contracts import checked
from flowjax.events import over_event
from flowjax.typing import (
    AnyTime,
    AverageVelocityField,
    Condition,
    Count,
    Positive,
    State,
    Time,
    Values,
    VelocityField,
)


@checked
def diagonal(u: AverageVelocityField) -> VelocityField:
    """Return the instantaneous velocity ``v(x, t) = u(x, t, t)`` of an average one."""

    def v(x: State, t: Time, cond: Condition = None, /) -> State:
        return u(x, t, t, cond)

    return v


@checked
def flow_map(u: AverageVelocityField) -> AverageVelocityField:
    """Return the flow map ``X(x, t, s) = x + (s - t) u(x, t, s)``."""

    def X(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return x + over_event(s - t, x) * u(x, t, s, cond)

    return X


@checked
def euler_step(v: VelocityField) -> AverageVelocityField:
    """Return ``u(x, t, s) = v(x, t)``: the average velocity of one Euler step."""

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return v(x, t, cond)

    return u


@checked
def compose(
    first: AverageVelocityField,
    second: AverageVelocityField,
    x: Values,
    t: Time,
    s: Time,
    fraction: float | AnyTime,
    cond: Condition = None,
) -> State:
    """Return the average velocity over [t, s] of two jumps that meet at time m.

    ``m = t + f (s - t)``, ``y = x + (m - t) first(x, t, m)`` and the result is
    ``f first(x, t, m) + (1 - f) second(y, m, s)``. It equals ``u(x, t, s)`` where both
    fields are the average velocity ``u`` of one flow: the semigroup property. Weighing
    by ``f`` instead of by ``(m - t) / (s - t)`` keeps it finite at ``s = t``.

    Args:
        first: the field of the first jump.
        second: the field of the second jump.
        x: states [batch, *event].
        t: start times [batch].
        s: destination times [batch].
        fraction: ``f``, one number or one per row [batch]; in [0, 1] the two jumps
            go the same way.
        cond: the condition, or None.

    Returns:
        The average velocity [batch, *event].

    References:
        Boffi et al. 2025, arXiv:2505.18825 (progressive); Guo et al. 2025,
        SplitMeanFlow, arXiv:2507.16884, Eq. 8.
    """
    f = jnp.broadcast_to(jnp.asarray(fraction, t.dtype), t.shape)
    m = t + f * (s - t)
    start = first(x, t, m, cond)
    middle = x + over_event(m - t, x) * start
    end = second(middle, m, s, cond)
    share = over_event(f, x)
    return share * start + (1 - share) * end


@checked
def chained(u: AverageVelocityField, steps: Count) -> AverageVelocityField:
    """Return the average velocity over [t, s] of ``steps`` equal jumps of ``u``.

    ``chained(euler_step(v), n)`` is the average velocity of n Euler steps along ``v``:
    a teacher's trajectory as a field.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """

    def average(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        def jump(carry: tuple[State, State], k: Array) -> tuple[Any, None]:
            y, total = carry
            a, b = (t + ((k + i) / steps).astype(t.dtype) * (s - t) for i in (0, 1))
            slope = u(y, a, b, cond)
            y = y + over_event(b - a, y) * slope
            return (y, total + slope / steps), None

        # The field may answer in a wider dtype than the state has.
        start = x.astype(jax.eval_shape(u, x, t, s, cond).dtype)
        zero = jnp.zeros_like(start)
        return jax.lax.scan(jump, (start, zero), jnp.arange(steps))[0][1]

    return average


@checked
def trigonometric_field(
    f: AverageVelocityField, *, sigma_data: Positive = 1.0
) -> AverageVelocityField:
    """Return the average velocity of a TrigFlow network ``F``.

    ``X(x, t, s) = cos(d) x - sin(d) sigma_data F(x / sigma_data, t, s)`` with
    ``d = pi (s - t) / 2`` on the trigonometric path whose source is
    ``N(0, sigma_data^2 I)``; ``u = (X - x) / (s - t)``, whose limit on the diagonal is
    ``-(pi / 2) sigma_data F``. Jumps to ``s = 1`` are those sCM learns.

    Args:
        f: the network ``F(x / sigma_data, t, s, cond)``.
        sigma_data: standard deviation of the data and of the source.

    References:
        Lu and Song 2024, arXiv:2410.11081, Sec. 3.
    """

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        half_turn = math.pi / 2
        gap = over_event(s - t, x)
        # (cos d - 1) / (s - t) and sin d / (s - t), both finite on the diagonal.
        sine = half_turn * jnp.sinc(gap / 2)
        bend = -half_turn * jnp.sin(half_turn * gap / 2) * jnp.sinc(gap / 4)
        return bend * x - sine * sigma_data * f(x / sigma_data, t, s, cond)

    return u
