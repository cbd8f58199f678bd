"""Fields: from one description of a flow to another.

Conversions between the things a network may predict (velocity, clean data, noise,
score), between average and instantaneous velocities, and the derivatives that
objectives and likelihoods need. Transformers take a field and return a field.
"""

from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax._checks import check_state, check_time
from flowjax._divergence import divergence as divergence
from flowjax._divergence import hutchinson_divergence as hutchinson_divergence
from flowjax._divergence import velocity_and_divergence as velocity_and_divergence
from flowjax._typing import (
    AverageVelocityField,
    Condition,
    State,
    Time,
    VelocityField,
)
from flowjax.interpolants import Interpolant, coefficients, expand_like

Prediction: TypeAlias = Literal["velocity", "x1", "x0", "score"]


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


def convert(
    value: State,
    x: State,
    t: Time,
    interpolant: Interpolant,
    *,
    source: Prediction,
    target: Prediction,
) -> State:
    """Convert one prediction at ``(x, t)`` into another.

    With ``D = alpha sigma' - sigma alpha'``::

        x1 = (sigma' x - sigma v) / D        x0 = (alpha v - alpha' x) / D
        v = alpha' x1 + sigma' x0            score = -x0 / sigma

    ``x1`` and ``x0`` stand for the posterior means E[x1 | x_t] and E[x0 | x_t], linked
    by ``x = alpha x1 + sigma x0``; the score holds for ``x0 ~ N(0, I)`` independent of
    the data. Only the velocity is finite at both ends: to and from the score, and from
    x1, there is a division by sigma (t=1); from x0 and the score one by alpha (t=0).

    Args:
        value: the prediction named by ``source`` [batch, *event].
        x: the state x_t [batch, *event].
        t: its time [batch].
        interpolant: the path the prediction belongs to, without gamma.
        source: what ``value`` is.
        target: what to return.

    Returns:
        The prediction named by ``target`` [batch, *event].

    Raises:
        ValueError: for an unknown name, shapes that do not fit, or an interpolant with
            latent noise, for which two predictions do not determine the third.

    References:
        Albergo et al. 2023, arXiv:2303.08797, Sec. 2.3; Lipman et al. 2024,
        arXiv:2412.06264, Table 1.
    """
    for role, name in (("source", source), ("target", target)):
        if name not in get_args(Prediction):
            raise ValueError(
                f"`{role}` must be one of {get_args(Prediction)}; got {name!r}"
            )
    if interpolant.gamma is not None:
        raise ValueError("`convert` needs an interpolant without latent noise gamma")
    check_state("x", x)
    check_state("value", value, like=x)
    check_time("t", t, len(x))
    if source == target:
        return value
    x1, x0 = _endpoints(value, x, t, interpolant, source)
    c = coefficients(interpolant, expand_like(t, x).astype(x.dtype))
    match target:
        case "x1":
            return x1
        case "x0":
            return x0
        case "velocity":
            return c.d_alpha * x1 + c.d_sigma * x0
        case "score":
            return -x0 / c.sigma


def _endpoints(
    value: State, x: State, t: Time, interpolant: Interpolant, source: Prediction
) -> tuple[State, State]:
    """Return the posterior means (E[x1 | x_t], E[x0 | x_t])."""
    c = coefficients(interpolant, expand_like(t, x).astype(x.dtype))
    if source == "velocity":
        # Where sigma' diverges (t=1 of the VP paths) numerator and denominator are
        # first multiplied by sigma: sigma sigma' stays finite.
        finite = jnp.isfinite(c.d_sigma)
        scale = jnp.where(finite, 1, c.sigma)
        d_sigma = jnp.where(finite, c.d_sigma, c.variance_rate)
        determinant = c.alpha * d_sigma - scale * c.sigma * c.d_alpha
        x1 = (d_sigma * x - scale * c.sigma * value) / determinant
        x0 = scale * (c.alpha * value - c.d_alpha * x) / determinant
        return x1, x0
    if source == "x1":
        return value, (x - c.alpha * value) / c.sigma
    x0 = value if source == "x0" else -c.sigma * value
    return (x - c.sigma * x0) / c.alpha, x0


def reparameterize(
    field: VelocityField,
    interpolant: Interpolant,
    *,
    source: Prediction,
    target: Prediction = "velocity",
) -> VelocityField:
    """Turn a field that predicts ``source`` into one that predicts ``target``.

    See `convert` for the equations, the errors and the ends at which they are finite.
    """

    def converted(x: State, t: Time, cond: Condition = None, /) -> State:
        value = field(x, t, cond)
        return convert(value, x, t, interpolant, source=source, target=target)

    return converted


def diagonal(u: AverageVelocityField) -> VelocityField:
    """Return the instantaneous velocity ``v(x, t) = u(x, t, t)`` of an average one."""

    def v(x: State, t: Time, cond: Condition = None, /) -> State:
        return u(x, t, t, cond)

    return v


def flow_map(u: AverageVelocityField) -> AverageVelocityField:
    """Return the flow map ``X(x, t, s) = x + (s - t) u(x, t, s)``."""

    def X(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return x + expand_like(s - t, x).astype(x.dtype) * u(x, t, s, cond)

    return X


def euler(v: VelocityField) -> AverageVelocityField:
    """Return ``u(x, t, s) = v(x, t)``: the average velocity of one Euler step."""

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return v(x, t, cond)

    return u


def compose(
    first: AverageVelocityField,
    second: AverageVelocityField,
    x: State,
    t: Time,
    s: Time,
    fraction: float | Time,
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
    middle = x + expand_like(m - t, x).astype(x.dtype) * start
    end = second(middle, m, s, cond)
    share = expand_like(f, x).astype(x.dtype)
    return share * start + (1 - share) * end


def chained(u: AverageVelocityField, steps: int) -> AverageVelocityField:
    """Return the average velocity over [t, s] of ``steps`` equal jumps of ``u``.

    ``chained(euler(v), n)`` is the average velocity of n Euler steps along ``v``: a
    teacher's trajectory as a field.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}")

    def average(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        def jump(carry: tuple[State, State], k: Array) -> tuple[Any, None]:
            y, total = carry
            a, b = (t + ((k + i) / steps).astype(t.dtype) * (s - t) for i in (0, 1))
            slope = u(y, a, b, cond)
            y = y + expand_like(b - a, y).astype(y.dtype) * slope
            return (y, total + slope / steps), None

        # The field may answer in a wider dtype than the state has.
        start = x.astype(jax.eval_shape(u, x, t, s, cond).dtype)
        zero = jnp.zeros_like(start)
        return jax.lax.scan(jump, (start, zero), jnp.arange(steps))[0][1]

    return average


def destination_derivative(
    u: AverageVelocityField,
    x: State,
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


def total_derivative(
    u: AverageVelocityField,
    x: State,
    t: Time,
    s: Time,
    v: State,
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


def difference_quotient(
    u: AverageVelocityField,
    x: State,
    t: Time,
    s: Time,
    v: State,
    cond: Condition = None,
    *,
    step: float,
) -> tuple[State, State]:
    """Return ``u`` and ``[u(x + h v, t + h, s) - u(x, t, s)] / h``, h = ``step``.

    `total_derivative` up to O(h), for networks without forward mode. In float32 the
    rounding error grows as 1e-7 / h: a step of 1e-2 is usual. The shifted start may lie
    past ``s`` and past 1.

    Raises:
        ValueError: unless ``step > 0``.
    """
    if not step > 0:
        raise ValueError(f"`step` must be positive; got {step}")
    value = u(x, t, s, cond)
    ahead = u(x + step * v, t + step, s, cond)
    return value, (ahead - value) / step
