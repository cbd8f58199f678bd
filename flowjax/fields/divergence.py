"""Divergences of velocity fields, exact and estimated."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import event_sum
from flowjax.typing import (
    Condition,
    Count,
    PerExample,
    PRNGKey,
    State,
    Time,
    Values,
    VelocityField,
)


@checked
def divergence(
    v: VelocityField, x: Values, t: Time, cond: Condition = None
) -> PerExample:
    """Return the exact divergence ``sum_i d v_i / d x_i`` of every row.

    Costs one forward-mode product per event dimension; see `velocity_and_divergence`.
    Rows of ``v`` must not depend on each other, as for every network without batch
    statistics.

    Args:
        v: the velocity field.
        x: states [batch, *event].
        t: times [batch].
        cond: the condition, or None.

    Returns:
        The divergence [batch].
    """
    return velocity_and_divergence(v, x, t, cond)[1]


@checked
def hutchinson_divergence(
    key: PRNGKey,
    v: VelocityField,
    x: Values,
    t: Time,
    cond: Condition = None,
    *,
    probes: Count = 1,
) -> PerExample:
    """Return an unbiased estimate ``mean_k e_k . (dv/dx) e_k`` of the divergence.

    The probes ``e_k`` are Rademacher, which has the least variance among laws with
    independent entries of unit variance.

    Args:
        key: typed random key.
        v: the velocity field; its rows must not depend on each other.
        x: states [batch, *event].
        t: times [batch].
        cond: the condition, or None.
        probes: number of probes per row, at least 1.

    Returns:
        The estimate [batch].

    Raises:
        ValueError: if ``probes`` is less than 1 or shapes do not fit.

    References:
        Hutchinson 1990; Grathwohl et al. 2018, FFJORD, arXiv:1810.01367, Eq. 7.
    """
    noise = jax.random.rademacher(key, (probes, *x.shape), dtype=x.dtype)
    return velocity_and_divergence(v, x, t, cond, jnp.moveaxis(noise, 0, 1))[1]


@checked
def velocity_and_divergence(
    v: VelocityField,
    x: Values,
    t: Time,
    cond: Condition = None,
    probes: Float[Array, "batch probe *event"] | None = None,
) -> tuple[State, PerExample]:
    """Return the velocity and its divergence, exact or estimated with given probes.

    The field is evaluated once and only its linear part once per direction, one
    direction after the other so that memory does not grow with their number.

    Args:
        v: the velocity field; its rows must not depend on each other.
        x: states [batch, *event].
        t: times [batch].
        cond: the condition, or None.
        probes: vectors ``e_k`` with ``E[e e^T] = I``: the divergence is then
            ``mean_k e_k . (dv/dx) e_k``. None: the exact one.

    Returns:
        The velocity [batch, *event] and the divergence [batch].
    """
    value, push = jax.linearize(lambda x: v(x, t, cond), x)

    def quadratic(direction: State) -> PerExample:
        return event_sum(direction * push(direction))

    if probes is not None:
        return value, jax.lax.map(quadratic, jnp.moveaxis(probes, 1, 0)).mean(0)
    unit = jnp.eye(x[0].size, dtype=x.dtype).reshape((-1, *x.shape[1:]))
    terms = jax.lax.map(lambda e: quadratic(jnp.broadcast_to(e, x.shape)), unit)
    return value, terms.sum(0)
