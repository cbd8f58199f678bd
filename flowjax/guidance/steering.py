"""Steering by a function of the data: a classifier, a loss, an identity."""

from collections.abc import Callable
from typing import Annotated, TypeAlias

import jax
import jax.numpy as jnp

from flowjax.contracts import called_like, checked
from flowjax.events import event_sum, expand_like, over_event
from flowjax.fields import convert
from flowjax.guidance.per_row import needs_velocity
from flowjax.interpolants import Interpolant, coefficients, linear
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Count,
    PerExample,
    Range,
    State,
    Time,
    VelocityField,
)

Score: TypeAlias = Callable[[State, Condition], PerExample]
"""``(x1, cond) -> [batch]``: a loss or a log-probability of data, row by row."""


@checked
def classifier(
    v: VelocityField,
    log_probability: Callable[[State, Time, Condition], PerExample],
    *,
    scale: float = 1.0,
    interpolant: Interpolant | None = None,
    earliest: Annotated[float, Range(0, 1, "()")] = 1e-3,
) -> VelocityField:
    """Return ``v + scale sigma D / alpha grad_x log p(y | x_t)``.

    ``D = alpha' sigma - alpha sigma'``; on the linear path the factor is
    ``(1 - t) / t``. With the exact ``log p`` and scale 1 it is the velocity of the data
    given y. The score of the path must be that of ``v``: a standard normal source,
    independent of the data.

    Args:
        v: the velocity field. An average velocity has no such correction: what it
            averages over depends on the classifier at all later times.
        log_probability: ``log p(y | x_t)`` of a classifier that has seen noised data,
            ``(x, t, cond) -> [batch]``; constants in x do not matter.
        scale: weight of the gradient.
        interpolant: the path of the field, by default the linear one.
        earliest: the factor, infinite at t=0 where the gradient vanishes, is taken at
            ``max(t, earliest)``.

    Raises:
        ValueError: unless ``earliest`` lies in (0, 1), or when called as an average
            velocity.

    References:
        Dhariwal and Nichol 2021, Diffusion Models Beat GANs on Image Synthesis,
        arXiv:2105.05233, Sec. 4; for flows Zheng et al. 2023, arXiv:2311.13443.
    """
    line = linear() if interpolant is None else interpolant

    @called_like(v)
    def guided(x: State, t: Time, *rest: Condition) -> State:
        needs_velocity("classifier", rest)
        cond = rest[0] if rest else None
        gradient = jax.grad(lambda x: log_probability(x, t, cond).sum())(x)
        time = over_event(jnp.maximum(t, earliest), x)
        c = coefficients(line, time)
        factor = c.d_alpha * c.sigma**2 / c.alpha - c.variance_rate
        return v(x, t, *rest) + (scale * factor * gradient).astype(x.dtype)

    return guided


@checked
def flow_chef(
    v: VelocityField,
    loss: Score,
    *,
    rate: float,
    iterations: Count = 1,
    interpolant: Interpolant | None = None,
) -> AverageVelocityField:
    """Return the average velocity of one Euler step steered by a loss of the data.

    With ``v`` evaluated once, without gradient, ``x <- x - rate dL/dx1`` is repeated at
    ``x1 = E[x1 | x, v]`` (``x + (1 - t) v`` on the linear path) with that ``v``, then
    follows the Euler step. The last step, ``s = 1``, is not corrected. No gradient
    passes through the network, however large. For `sampling.few_step`, whose jumps tell
    the method the length of the step.

    Args:
        v: the velocity field; of an average velocity, its diagonal.
        loss: ``L(x1, cond) -> [batch]``, differentiable in ``x1``.
        rate: step of the descent.
        iterations: descents per step.
        interpolant: the path of the field, by default the linear one.

    Raises:
        ValueError: unless ``iterations >= 1``.

    References:
        Patel et al. 2024, Steering Rectified Flow Models in the Vector Field for
        Controlled Image Generation, arXiv:2412.00100.
    """
    line = linear() if interpolant is None else interpolant

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        velocity = jax.lax.stop_gradient(v(x, t, cond)).astype(x.dtype)

        def descend(z: State, _: None) -> tuple[State, None]:
            x1 = convert(velocity, z, t, line, source="velocity", target="x1")
            slope = jax.grad(lambda x1: loss(x1, cond).sum())(x1)
            return z - rate * slope, None

        z, _ = jax.lax.scan(descend, x, length=iterations)
        corrected = expand_like((s < 1) & (s != t), x)
        gap = over_event(s - t, x)
        shift = (z - x) / jnp.where(corrected, gap, 1)
        return velocity + jnp.where(corrected, shift, 0)

    return u


@checked
def rectif_id(
    reference: State,
    log_probability: Score,
    *,
    scale: float = 1.0,
    iterations: Count = 50,
    largest: float | None = 1.0,
    cond: Condition = None,
) -> State:
    """Return the fixed point ``x1 = reference + scale grad log p(y | x1)``.

    On straight trajectories, guided sampling ends where this equation holds, with the
    unguided sample as the anchor ``reference``: a classifier of clean data is enough.
    For a flow that is straight in K windows, solve it at the end of each window in
    turn, with the anchor moved by the flow and ``log_probability`` taken at
    ``fields.flow_map(u)(x, t, 1)``.

    Args:
        reference: the sample without guidance [batch, *event].
        log_probability: ``log p(y | x1)``, ``(x1, cond) -> [batch]``.
        scale: weight of the gradient. Without ``largest`` the iteration converges
            where ``scale`` times the gradient's Lipschitz constant is below 1.
        iterations: of the fixed point.
        largest: bound of the gradient's 2-norm per row; None: no bound.
        cond: handed on to ``log_probability``.

    Raises:
        ValueError: unless ``iterations >= 1``.

    References:
        Sun et al. 2024, RectifID: Personalizing Rectified Flow with Anchored Classifier
        Guidance, arXiv:2405.14677.
    """

    def iterate(x1: State, _: None) -> tuple[State, None]:
        slope = jax.grad(lambda x: log_probability(x, cond).sum())(x1)
        if largest is not None:
            norm = jnp.sqrt(event_sum(jnp.square(slope)))
            slope = slope / expand_like(jnp.maximum(1.0, norm / largest), x1)
        return reference + scale * slope, None

    return jax.lax.scan(iterate, reference, length=iterations)[0]
