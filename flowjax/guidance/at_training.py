"""Guidance that a network learns: in the target, and through dropped conditions."""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.contracts import checked
from flowjax.events import expand_like
from flowjax.guidance.per_row import (
    check_interval,
    check_number,
    is_null,
    null_like,
    weight,
)
from flowjax.interpolants import Path
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Count,
    PerExample,
    PRNGKey,
    Range,
    Share,
    State,
)


@checked
def guided_velocity(
    u: AverageVelocityField,
    path: Path,
    *,
    null: Any,
    omega: float | PerExample,
    kappa: float | PerExample = 0.0,
    interval: tuple[float, float] | tuple[PerExample, PerExample] = (0.0, 1.0),
) -> State:
    """Return the guided target velocity of MeanFlow, without gradient.

    ``v_g = omega v + kappa u(x, t, t, cond) + (1 - omega - kappa) u(x, t, t, null)``,
    where ``v`` is ``path.v``. A network trained on it (``path._replace(v=v_g)``, which
    also makes it the tangent of the derivative) converges to the classifier-free
    guided field of scale ``omega / (1 - kappa)``. Rows outside the interval, and rows
    whose condition already is ``null``, keep ``path.v``.

    The rules of the literature are cases of this one: MeanFlow with ``(omega, kappa)``,
    improved MeanFlow with ``(1, 1 - 1 / scale)`` per row, Decoupled MeanFlow and
    TwinFlow with ``(1, w)``, scale ``1 / (1 - w)``, and Re-MeanFlow with
    ``omega = max(1, scale - 1)``, ``kappa = 1 - omega / scale``.

    Args:
        u: the average-velocity field in training, best in evaluation mode.
        path: a batch of points on conditional paths, with a condition.
        null: the condition that means "none", as in `classifier_free`.
        omega: weight of the data's velocity, a Python float > 0 or one per row [batch].
        kappa: weight of the field's own conditional velocity, a Python float in
            [0, 1) or one per row [batch]. The float 0 spares its evaluation.
        interval: closed interval inside [0, 1] of the times to guide at, for all rows
            or with ends [batch]. The paper's [a, b] is ``(1 - b, 1 - a)`` here.

    Returns:
        The target velocity [batch, *event], in the dtype of ``path.v``. With
        ``omega + kappa = 1`` the null evaluation is spared.

    Raises:
        ValueError: if there is no condition, ``null`` does not fit it, or an option is
            not a Python float in its range.

    References:
        Geng et al. 2025, Mean Flows for One-step Generative Modeling, arXiv:2505.13447,
        Eq. 19 (``kappa = 0``) and the appendix on improved guidance.
    """
    low, high = check_interval(interval)
    per_row = isinstance(omega, Array) or isinstance(kappa, Array)
    if not isinstance(omega, Array):
        check_number("omega", omega, lambda value: 0 < value < math.inf, "> 0")
    if not isinstance(kappa, Array):
        check_number("kappa", kappa, lambda value: 0 <= value < 1, "in [0, 1)")
    null_rows = null_like(path.cond, null)
    x, t, v = path.x, path.t, path.v
    target = weight("omega", omega, v) * v
    if isinstance(kappa, Array) or kappa:
        own = u(x, t, t, path.cond).astype(v.dtype)
        target += weight("kappa", kappa, v) * own
    # isclose: the weight of 0.1 + 0.9 must not be a rounding error.
    if per_row or not math.isclose(omega + kappa, 1):
        rest = weight("omega", 1 - omega - kappa, v)
        target += rest * u(x, t, t, null_rows).astype(v.dtype)
    guide = (t >= low) & (t <= high) & ~is_null(path.cond, null=null)
    return jax.lax.stop_gradient(jnp.where(expand_like(guide, x), target, v))


@checked
def draw_guidance(
    key: PRNGKey,
    batch: Count,
    *,
    largest: Annotated[float, Range(1)] = 8.0,
    power: float = 1.0,
) -> tuple[PerExample, tuple[PerExample, PerExample]]:
    """Draw a guidance scale and an interval of times per row, as conditions to learn.

    The scale has the density ``w^-power`` on [1, largest]; the interval starts at
    U(0, 1/2) and ends at U(1/2, 1). A network that sees them (`improved_mean_flow`)
    leaves the choice of both to sampling time. Its target is `guided_velocity` with
    ``omega = 1``, ``kappa = 1 - 1 / scale`` and the interval.

    Args:
        key: typed random key.
        batch: number of rows.
        largest: largest scale, at least 1.
        power: exponent of the density.

    Returns:
        The scales [batch] and the two ends of the intervals, each [batch].

    Raises:
        ValueError: unless ``largest >= 1``.

    References:
        Geng et al. 2025, Improved Mean Flows, arXiv:2512.02012.
    """
    key_scale, key_low, key_high = jax.random.split(key, 3)
    quantile = jax.random.uniform(key_scale, (batch,))
    if math.isclose(power, 1):
        scale = jnp.exp(quantile * math.log(largest))
    else:
        rest = 1 - power
        scale = (1 + quantile * (largest**rest - 1)) ** (1 / rest)
    low = jax.random.uniform(key_low, (batch,), maxval=0.5)
    high = jax.random.uniform(key_high, (batch,), minval=0.5)
    return scale, (low, high)


@checked
def drop_condition(
    key: PRNGKey, cond: Condition, *, null: Any, probability: Share
) -> Condition:
    """Replace the condition of random rows by ``null``, each independently.

    `is_null` says afterwards which rows were dropped.

    Args:
        key: typed random key.
        cond: a pytree with leading axis batch: labels [batch], vectors [batch, d],
            arrays of the event's axes [batch, ...], dictionaries of these.
        null: the condition that means "none", as in `classifier_free`; NaN for floats
            that the network replaces by an embedding of its own.
        probability: chance of a row to lose its condition, in [0, 1]; 0.1 is usual.

    Returns:
        The condition; a dropped row is dropped from all entries that ``null`` names.

    Raises:
        ValueError: if there is no condition, ``null`` does not fit it, or
            ``probability`` lies outside [0, 1].

    References:
        Ho and Salimans 2022, arXiv:2207.12598, Alg. 1.
    """
    null_rows = null_like(cond, null)
    batch = len(jax.tree.leaves(null_rows)[0])
    drop = jax.random.bernoulli(key, probability, (batch,))
    return jax.tree.map(
        lambda none, leaf: jnp.where(expand_like(drop, none), none, leaf),
        null_rows,
        cond,
    )
