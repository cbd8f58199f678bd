"""Guidance: sharpen a conditional field by moving away from the unconditional one.

At sampling time `classifier_free` turns a field into a guided one. At training time
`drop_condition` teaches a network both fields, and `guided_velocity` puts the guidance
inside the target, so that the trained average velocity is guided at the price of one
evaluation.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowjax._checks import check_condition
from flowjax._typing import (
    AverageVelocityField,
    Condition,
    PerExample,
    PRNGKey,
    State,
    Time,
)
from flowjax.interpolants import Path, expand_like

Field = TypeVar("Field", bound=Callable[..., Any])
"""A velocity ``v(x, t, cond)`` or an average velocity ``u(x, t, s, cond)``."""


def classifier_free(
    field: Field,
    *,
    scale: float | Float[Array, ""] | PerExample,
    null: Any,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Field:
    """Return the guided field ``f_null + scale (f_cond - f_null)``.

    Scale 1 is the conditional field, 0 the unconditional one; some papers write
    ``scale = 1 + w``. Outside the interval of times the field is exactly ``f_cond``.
    Each call evaluates ``field`` twice, and once where no row of the batch is inside.

    The guided field does not sample ``p(x | c)^scale p(x)^(1 - scale)``, and a guided
    average velocity is not the average of the guided velocity: with few steps the
    scale has another meaning than with many.

    Args:
        field: ``v(x, t, cond)`` or ``u(x, t, s, cond)``; what comes back has the same
            signature, and needs a condition.
        scale: the guidance scale, one number or one per row [batch].
        null: the condition that means "none": a number for integer labels, or a pytree
            matching the condition's (a prefix of it will do) whose leaves broadcast
            against its leaves [batch, ...].
        interval: closed interval inside [0, 1] of the times ``t`` (of ``u``: starts)
            to guide at. Noise levels ``e = (1 - t) / t`` become ``t = 1 / (1 + e)``.

    Returns:
        The guided field.

    Raises:
        ValueError: if ``interval`` or ``scale`` is malformed; when called, if there is
            no condition or ``null`` does not fit it.

    References:
        Ho and Salimans 2022, Classifier-Free Diffusion Guidance, arXiv:2207.12598,
        Eq. 6. Zheng et al. 2023, Guided Flows, arXiv:2311.13443. Kynkäänniemi et al.
        2024, Applying Guidance in a Limited Interval, arXiv:2404.07724.
    """

    def unconditional(x: State, t: Time, *rest: Any) -> State:
        *ends, cond = rest if rest else (None,)
        return field(x, t, *ends, _null_like(cond, null))

    guided = autoguidance(
        field, cast(Field, unconditional), scale=scale, interval=interval
    )

    def checked(x: State, t: Time, *rest: Any) -> State:
        _null_like(rest[-1] if rest else None, null)  # before the network sees it
        return guided(x, t, *rest)

    return cast(Field, checked)


def autoguidance(
    field: Field,
    weak: Field,
    *,
    scale: float | Float[Array, ""] | PerExample,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Field:
    """Return ``weak + scale (field - weak)``: away from a worse version of the model.

    The weak field is a smaller or less trained network on the same task and condition,
    or the average of one over the parameters of another run. Scale 1 is ``field``, to
    which the result is equal outside the interval of times.

    Args:
        field: ``v(x, t, cond)`` or ``u(x, t, s, cond)``.
        weak: a field of the same signature.
        scale: one number or one per row [batch].
        interval: closed interval inside [0, 1] of the times ``t`` to guide at.

    Returns:
        The guided field. Each call evaluates both, and ``field`` alone where no row of
        the batch is inside the interval.

    Raises:
        ValueError: if ``interval`` or ``scale`` is malformed.

    References:
        Karras et al. 2024, Guiding a Diffusion Model with a Bad Version of Itself,
        arXiv:2406.02507, Eq. 3.
    """
    low, high = _check_interval(interval)
    if jnp.ndim(scale) > 1:
        raise ValueError(
            f"`scale` must be a number or [batch]; got shape {jnp.shape(scale)}"
        )

    def guided(x: State, t: Time, *rest: Any) -> State:
        strong = field(x, t, *rest)
        inside = (t >= low) & (t <= high)

        def guide() -> State:
            # Two calls, not one of twice the batch: rows stay on their devices.
            other = weak(x, t, *rest)
            value = other + _weight("scale", scale, strong) * (strong - other)
            return jnp.where(_column(inside, x), value, strong)

        if low <= 0 and high >= 1:
            return guide()
        return jax.lax.cond(inside.any(), guide, lambda: strong)

    return cast(Field, guided)


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
    low, high = _check_interval(interval)
    per_row = isinstance(omega, Array) or isinstance(kappa, Array)
    if not isinstance(omega, Array):
        _check_number("omega", omega, lambda value: 0 < value < math.inf, "> 0")
    if not isinstance(kappa, Array):
        _check_number("kappa", kappa, lambda value: 0 <= value < 1, "in [0, 1)")
    null_rows = _null_like(path.cond, null)
    x, t, v = path.x, path.t, path.v
    target = _weight("omega", omega, v) * v
    if isinstance(kappa, Array) or kappa:
        own = u(x, t, t, path.cond).astype(v.dtype)
        target += _weight("kappa", kappa, v) * own
    # isclose: the weight of 0.1 + 0.9 must not be a rounding error.
    if per_row or not math.isclose(omega + kappa, 1):
        rest = _weight("omega", 1 - omega - kappa, v)
        target += rest * u(x, t, t, null_rows).astype(v.dtype)
    guide = (t >= low) & (t <= high) & ~_equal_rows(path.cond, null_rows, len(x))
    return jax.lax.stop_gradient(jnp.where(_column(guide, x), target, v))


def draw_guidance(
    key: PRNGKey, batch: int, *, largest: float = 8.0, power: float = 1.0
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
    _check_number("largest", largest, lambda value: value >= 1, ">= 1")
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


def drop_condition(
    key: PRNGKey, cond: Condition, *, null: Any, probability: float
) -> Condition:
    """Replace the condition of random rows by ``null``, each independently.

    Args:
        key: typed random key.
        cond: a pytree with leading axis batch.
        null: the condition that means "none", as in `classifier_free`.
        probability: chance of a row to lose its condition, in [0, 1]; 0.1 is usual.

    Returns:
        The condition; a dropped row is dropped from all leaves.

    Raises:
        ValueError: if there is no condition, ``null`` does not fit it, or
            ``probability`` lies outside [0, 1].

    References:
        Ho and Salimans 2022, arXiv:2207.12598, Alg. 1.
    """
    _check_number("probability", probability, lambda p: 0 <= p <= 1, "in [0, 1]")
    null_rows = _null_like(cond, null)
    batch = len(jax.tree.leaves(null_rows)[0])
    drop = jax.random.bernoulli(key, probability, (batch,))
    return jax.tree.map(
        lambda none, leaf: jnp.where(_column(drop, none), none, leaf), null_rows, cond
    )


def _null_like(cond: Condition, null: Any) -> Condition:
    """Return ``null`` with the structure, the shapes and the dtypes of ``cond``."""
    leaves = jax.tree.leaves(cond)
    if not leaves:
        raise ValueError(f"guidance needs a condition; got cond={cond}")
    check_condition(cond, len(leaves[0]))
    try:
        prefix = jax.tree.broadcast(null, cond)
    except ValueError as error:
        raise ValueError(f"`null` must match the condition: {error}") from error

    def fill(leaf: Any, value: Any) -> Array:
        dtype = jnp.result_type(leaf)
        whole = jnp.issubdtype(dtype, jnp.integer)
        if whole and not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise ValueError(f"`null` of {dtype} labels must be integer; got {value}")
        return jnp.broadcast_to(jnp.asarray(value, dtype), jnp.shape(leaf))

    return jax.tree.map(fill, cond, prefix)


def _equal_rows(cond: Condition, other: Condition, batch: int) -> Bool[Array, "batch"]:
    """Say which rows agree in every leaf."""

    def leaf(a: Any, b: Any) -> Bool[Array, "batch"]:
        return jnp.equal(a, b).reshape((batch, -1)).all(axis=1)

    agree = jax.tree.leaves(jax.tree.map(leaf, cond, other))
    return jnp.stack(agree).all(axis=0)


def _column(mask: Bool[Array, "batch"], x: Array) -> Bool[Array, "batch *ones"]:
    """Append singleton axes to ``mask`` so that it broadcasts against ``x``."""
    return mask.reshape((-1,) + (1,) * (x.ndim - 1))


def _weight(name: str, scale: float | Array, x: State) -> float | Array:
    """Return ``scale`` so that it multiplies ``x``.

    Raises:
        ValueError: if it is an array of another batch.
    """
    if isinstance(scale, float | int):
        return scale
    if scale.ndim and scale.shape != x.shape[:1]:
        raise ValueError(
            f"`{name}` must have shape [batch]=({len(x)},); got {scale.shape}"
        )
    return expand_like(jnp.broadcast_to(scale, (len(x),)), x).astype(x.dtype)


def _check_interval(interval: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the two ends of ``interval``; those given per row are not checked.

    Raises:
        ValueError: unless ``0 <= low <= high <= 1``.
    """
    low, high = interval
    if isinstance(low, Array) or isinstance(high, Array):
        return low, high
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"`interval` must be (low, high) with 0 <= low <= high <= 1; got {interval}"
        )
    return low, high


def _check_number(
    name: str, value: Any, allowed: Callable[[float], bool], text: str
) -> None:
    """Raise ValueError unless ``value`` is a Python number that is ``allowed``."""
    if not isinstance(value, float | int) or not allowed(value):
        raise ValueError(f"`{name}` must be a Python float {text}; got {value}")
