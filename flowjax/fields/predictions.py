"""Predictions: one description of the flow at a point into another."""

from typing import Annotated, Literal, TypeAlias

import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.events import over_event
from flowjax.interpolants import Interpolant, coefficients
from flowjax.typing import Condition, Range, State, Time, Values, VelocityField

Prediction: TypeAlias = Literal["velocity", "x1", "x0", "score"]


@checked
def convert(
    value: Values,
    x: Values,
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
    if interpolant.gamma is not None:
        raise ValueError("`convert` needs an interpolant without latent noise gamma")
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


@checked
def reparameterize(
    field: VelocityField,
    interpolant: Interpolant,
    *,
    source: Prediction,
    target: Prediction = "velocity",
    margin: Annotated[float, Range(0, 0.5, "[)")] = 1e-5,
) -> VelocityField:
    """Turn a field that predicts ``source`` into one that predicts ``target``.

    See `convert` for the equations and the errors. At an end of the path where they
    divide by zero, the field and the coefficients are taken ``margin`` inside, so that
    a sampler may step onto the end; there the result is off by O(margin).

    Args:
        field: the prediction named by ``source``.
        interpolant: the path the prediction belongs to, without gamma.
        source: what ``field`` predicts.
        target: what to predict.
        margin: how near to such an end the field is asked.

    References:
        Lu et al. 2022, DPM-Solver, arXiv:2206.00927, Appendix D (1e-3 or 1e-4).
    """
    by_alpha = source in ("x0", "score") and target in ("x1", "velocity")
    by_sigma = source in ("x1", "score") or target == "score"
    low = margin if by_alpha else None
    high = 1 - margin if by_sigma and source != target else None

    def converted(x: State, t: Time, cond: Condition = None, /) -> State:
        inside = jnp.clip(t, low, high)
        value = field(x, inside, cond)
        return convert(value, x, inside, interpolant, source=source, target=target)

    return converted
