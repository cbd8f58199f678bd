"""Guidance at sampling time: a field and another from which it should move away."""

from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import called_like, checked
from flowjax.events import expand_like, over_event
from flowjax.guidance.per_row import (
    check_interval,
    needs_velocity,
    null_like,
    weight,
)
from flowjax.guidance.rules import Field, Rule, extrapolation
from flowjax.interpolants import Interpolant, coefficients, linear
from flowjax.typing import Condition, PerExample, Range, State, Time, VelocityField


@checked
def classifier_free(
    field: Field,
    *,
    scale: float | Float[Array, ""] | PerExample,
    null: Any,
    interval: tuple[float, float] = (0.0, 1.0),
    rule: Rule = extrapolation,
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
            against its leaves [batch, ...]. An entry that is None, or a key that is
            left out of a dictionary, is no part of what can be missing and is kept:
            ``{"label": 10}`` for labels beside a guidance scale.
        interval: closed interval inside [0, 1] of the times ``t`` (of ``u``: starts)
            to guide at. Noise levels ``e = (1 - t) / t`` become ``t = 1 / (1 + e)``.
        rule: how the two predictions are combined; see `flowjax.guidance.rules`.

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
        return field(x, t, *ends, null_like(cond, null))

    guided = autoguidance(
        field, cast(Field, unconditional), scale=scale, interval=interval, rule=rule
    )

    @called_like(field)
    def conditioned(x: State, t: Time, *rest: Any) -> State:
        null_like(rest[-1] if rest else None, null)  # before the network sees it
        return guided(x, t, *rest)

    return cast(Field, conditioned)


@checked
def autoguidance(
    field: Field,
    weak: Field,
    *,
    scale: float | Float[Array, ""] | PerExample,
    interval: tuple[float, float] = (0.0, 1.0),
    rule: Rule = extrapolation,
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
        rule: how the two predictions are combined; see `flowjax.guidance.rules`.

    Returns:
        The guided field. Each call evaluates both, and ``field`` alone where no row of
        the batch is inside the interval.

    Raises:
        ValueError: if ``interval`` or ``scale`` is malformed.

    References:
        Karras et al. 2024, Guiding a Diffusion Model with a Bad Version of Itself,
        arXiv:2406.02507, Eq. 3.
    """
    low, high = check_interval(interval)
    if jnp.ndim(scale) > 1:
        raise ValueError(
            f"`scale` must be a number or [batch]; got shape {jnp.shape(scale)}"
        )

    @called_like(field)
    def guided(x: State, t: Time, *rest: Any) -> State:
        strong = field(x, t, *rest)
        inside = (t >= low) & (t <= high)

        def guide() -> State:
            # Two calls, not one of twice the batch: rows stay on their devices.
            other = weak(x, t, *rest)
            value = rule(strong, other, weight("scale", scale, strong))
            return jnp.where(expand_like(inside, x), value, strong)

        if low <= 0 and high >= 1:
            return guide()
        return jax.lax.cond(inside.any(), guide, lambda: strong)

    return cast(Field, guided)


@checked
def residual(
    field: Field,
    reference: State,
    *,
    scale: float | Float[Array, ""] | PerExample,
    delta: float = 1.0,
    interpolant: Interpolant | None = None,
) -> Field:
    """Return a guided field whose unconditional part costs no evaluation.

    Its weak field is that of data which are the single point ``reference`` (residual
    classifier-free guidance): with ``X(x, t, s)`` the flow map onto it,

        weak = delta (X - x) / (s - t)
        X = alpha_s x1 + sigma_s (x - alpha_t x1) / sigma_t

    whose limit on the diagonal, ``(x1 - x) / (1 - t)`` on the linear path, is the one
    for a velocity. For editing, ``reference`` is the data to leave ("self-negative").
    "One-time negative" guidance takes the data predicted without the condition at the
    start, ``fields.convert(v(x0, t, null), x0, t, ..., target="x1")``, one evaluation
    in all.

    Args:
        field: ``v(x, t, cond)`` or ``u(x, t, s, cond)``, called with its condition
            in the last place, which may be None.
        reference: ``x1`` [batch, *event].
        scale: one number or one per row [batch]; 1 is ``field``.
        delta: factor of the weak field.
        interpolant: the path of the field, by default the linear one.

    Returns:
        The guided field, with one evaluation of ``field`` per call. Where the path has
        no noise left (t=1) it is ``field`` itself.

    References:
        Kodaira et al. 2023, StreamDiffusion, arXiv:2312.12491, Sec. 3.2.
    """
    line = linear() if interpolant is None else interpolant

    def weak(x: State, t: Time, s: Time | None) -> State:
        start = coefficients(line, over_event(t, x))
        noise = (x - start.alpha * reference) / start.sigma
        if s is None:
            return start.d_alpha * reference + start.d_sigma * noise
        gap = over_event(s - t, x)
        end = coefficients(line, over_event(s, x))
        still = gap == 0
        jump = (end.alpha * reference + end.sigma * noise - x) / jnp.where(
            still, 1, gap
        )
        return jnp.where(still, start.d_alpha * reference + start.d_sigma * noise, jump)

    @called_like(field)
    def guided(x: State, t: Time, *rest: Any) -> State:
        strong = field(x, t, *rest)
        other = delta * weak(x, t, rest[0] if len(rest) > 1 else None)
        value = extrapolation(strong, other, weight("scale", scale, strong))
        noisy = line.sigma(t) > 0
        return jnp.where(expand_like(noisy, x), value, strong)

    return cast(Field, guided)


@checked
def zero_start(
    v: VelocityField, *, until: Annotated[float, Range(0, 1, "[)")] = 0.0
) -> VelocityField:
    """Return ``v``, but zero at the times ``t <= until``.

    CFG-Zero* holds the first steps of a fixed grid still, where a velocity that is not
    fully trained does more harm than none: ``until = grid[k]`` for the steps 0 to k.
    Where all rows stand still, ``v`` is not evaluated.

    Args:
        v: the velocity field. For average velocities the idea has no meaning: a jump
            from t=0 that stands still never leaves.
        until: last time of rest, in [0, 1).

    Raises:
        ValueError: if ``until`` is out of range, or when called as an average velocity.

    References:
        Fan et al. 2025, arXiv:2503.18886 (zero-init).
    """

    @called_like(v)
    def held(x: State, t: Time, *rest: Condition) -> State:
        needs_velocity("zero_start", rest)
        moving = t > until
        value = jax.lax.cond(
            moving.any(),
            lambda: v(x, t, *rest).astype(x.dtype),
            lambda: jnp.zeros_like(x),
        )
        return jnp.where(expand_like(moving, x), value, 0)

    return held
