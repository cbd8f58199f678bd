"""Predictions: one description of the flow at a point into another."""

from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp

from flowjax.checks import check_state, check_time
from flowjax.events import over_event
from flowjax.interpolants import Interpolant, coefficients
from flowjax.typing import Condition, State, Time, VelocityField

Prediction: TypeAlias = Literal["velocity", "x1", "x0", "score"]


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
    c = coefficients(interpolant, over_event(t, x))
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
    c = coefficients(interpolant, over_event(t, x))
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
