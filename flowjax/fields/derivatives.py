"""Derivatives of an average velocity in its times and along a trajectory."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Positive,
    State,
    Time,
    Values,
)


@runtime_checkable
class TotalDerivative(Protocol):
    """`total_derivative`, or `difference_quotient` with its step bound."""

    def __call__(
        self,
        u: AverageVelocityField,
        x: State,
        t: Time,
        s: Time,
        v: State,
        cond: Condition = None,
        /,
    ) -> tuple[State, State]:
        """Return ``u`` and ``du/dt`` along ``(v, 1, 0)``."""
        ...


@checked
def destination_derivative(
    u: AverageVelocityField,
    x: Values,
    t: Time,
    s: Time,
    cond: Condition = None,
) -> tuple[State, State]:
    """Return ``u(x, t, s)`` and ``d_s u``, its derivative in the destination.

    One forward-mode pass with the tangent ``(0, 0, 1)`` in ``(x, t, s)``. The flow map
    ``X = x + (s - t) u`` has ``d_s X = u + (s - t) d_s u``, which on the true map is
    ``v(X, s)``, the Lagrangian identity.

    References:
        Boffi et al. 2024, Flow Map Matching, arXiv:2406.07507, Eq. 8.
    """
    return jax.jvp(lambda s: u(x, t, s, cond), (s,), (jnp.ones_like(s),))


@checked
def total_derivative(
    u: AverageVelocityField,
    x: Values,
    t: Time,
    s: Time,
    v: Values,
    cond: Condition = None,
) -> tuple[State, State]:
    """Return ``u`` and ``du/dt = (v . grad_x) u + d_t u`` along a trajectory.

    One forward-mode pass with the tangent ``(v, 1, 0)`` in ``(x, t, s)``: the start
    moves with the flow, the destination ``s`` stays.

    Args:
        u: the average-velocity field.
        x: states [batch, *event].
        t: start times [batch].
        s: destination times [batch].
        v: velocity of the start [batch, *event].
        cond: closed over, never differentiated (labels and keys have no tangent).

    Returns:
        ``u(x, t, s)`` and its total derivative, each [batch, *event].

    References:
        Geng et al. 2025, arXiv:2505.13447, Eq. 8, on the clock ``1 - t``.
    """
    tangent = (v, jnp.ones_like(t), jnp.zeros_like(s))
    return jax.jvp(lambda x, t, s: u(x, t, s, cond), (x, t, s), tangent)


@checked
def difference_quotient(
    u: AverageVelocityField,
    x: Values,
    t: Time,
    s: Time,
    v: Values,
    cond: Condition = None,
    *,
    step: Positive,
) -> tuple[State, State]:
    """Return ``u`` and ``[u(x + h v, t + h, s) - u(x, t, s)] / h``, h = ``step``.

    `total_derivative` up to O(h), for networks without forward mode. In float32 the
    rounding error grows as 1e-7 / h: a step of 1e-2 is usual. The shifted start may lie
    past ``s`` and past 1.

    Raises:
        ValueError: unless ``step > 0``.
    """
    value = u(x, t, s, cond)
    ahead = u(x + step * v, t + step, s, cond)
    return value, (ahead - value) / step
