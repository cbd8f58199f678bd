"""Residuals: what an identity between velocities leaves, before any penalty.

Each function states one identity of the field that is trained and returns its `Terms`;
every objective is ``penalty(residual(...))``, or a sum of such. The identities of an
average velocity off the diagonal come to stand beside the diagonal itself by
`anchored`, which gives every row the identity it is meant for.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import expand_like, over_event
from flowjax.fields import (
    TotalDerivative,
    compose,
    destination_derivative,
    diagonal,
    total_derivative,
)
from flowjax.interpolants import Path
from flowjax.objectives.penalties import Terms, with_value
from flowjax.row_groups import map_rows, row_layout
from flowjax.typing import (
    AnyTime,
    AverageVelocityField,
    Condition,
    Positive,
    Share,
    State,
    Time,
    Values,
    VelocityField,
)

EulerianStop: TypeAlias = Literal["derivative", "advection", "velocity", "nothing"]
"""What carries no gradient: each entry stops less than the one before."""

LagrangianStop: TypeAlias = Literal["derivative", "velocity", "nothing"]
"""What carries no gradient: each entry stops less than the one before."""

Tangent: TypeAlias = VelocityField | Float[Array | np.ndarray, "batch *event"]
"""A direction in the space of states: a field, or its values at the states."""

_sg = jax.lax.stop_gradient


@checked
def regression(prediction: Values, target: Values, t: AnyTime, s: AnyTime) -> Terms:
    """Return the terms of ``prediction - sg[target]``, where no derivative entered."""
    residual = prediction - _sg(target)
    return Terms(residual, t, s, jnp.zeros_like(residual))


@checked
def velocity_residual(v: VelocityField, path: Path) -> Terms:
    """Return ``v(x_t, t) - sg[v_t]``: flow matching, the identity of the diagonal."""
    return regression(v(path.x, path.t, path.cond), path.v, path.t, path.t)


@checked
def eulerian_residual(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    tangent: Tangent | None = None,
    *,
    velocity: VelocityField | None = None,
    stop: EulerianStop = "derivative",
    gradient_share: float | Float[Array, ""] = 1.0,
    derivative_scale: float | Float[Array, ""] = 1.0,
    derivative: TotalDerivative = total_derivative,
) -> Terms:
    """Return ``u(x_t, t, s) - sg[v + r (s - t) du/dt]`` for every row, MeanFlow's.

    `flowjax.objectives.mean_flow` says what the arguments mean. Prediction and
    derivative come from one call of ``derivative``; this is also the residual of a row
    with ``s = t``, at the price of a derivative that is multiplied by 0.

    Raises:
        ValueError: if ``stop`` is unknown.
    """
    x, t, cond = path.x, path.t, path.cond
    v = path.v if velocity is None else velocity(x, t, cond)
    v = v if stop == "nothing" else _sg(v)
    w = v if tangent is None else _values(tangent, path)
    prediction, slope = _total(derivative, u, path, s, w, stop, gradient_share)
    reach = jnp.asarray(derivative_scale, x.dtype) * over_event(s - t, x)
    return Terms(prediction - (v + reach * slope), t, s, _sg(slope))


def _values(tangent: Tangent, path: Path) -> State:
    """Return the values of a tangent, which carry no gradient, in the dtype of x."""
    if callable(tangent):
        tangent = tangent(path.x, path.t, path.cond)
    return _sg(jnp.asarray(tangent)).astype(path.x.dtype)


def _total(
    derivative: TotalDerivative,
    u: AverageVelocityField,
    path: Path,
    s: Time,
    w: State,
    stop: EulerianStop,
    gradient_share: float | Float[Array, ""],
) -> tuple[State, State]:
    """Return ``u`` and ``du/dt`` along w, with the share of its gradient that stays."""
    at = (path.x, path.t, s)
    if stop == "advection":
        # Two passes: the part in time keeps its gradient, the part in space does not.
        still = jnp.zeros_like(w)
        prediction, in_time = derivative(u, *at, still, path.cond)
        _, in_space = jax.jvp(lambda x: u(x, path.t, s, path.cond), (path.x,), (w,))
        slope = in_time + _sg(in_space)
    else:
        prediction, slope = derivative(u, *at, w, path.cond)
    if stop == "derivative":
        return prediction, _sg(slope)
    # A whole share is the default, and then two copies of the slope are none too many.
    if isinstance(gradient_share, float) and gradient_share == 1.0:
        return prediction, slope
    kept = jnp.asarray(gradient_share, path.x.dtype)
    return prediction, kept * slope + (1 - kept) * _sg(slope)


@checked
def lagrangian_residual(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    velocity: VelocityField | None = None,
    stop: LagrangianStop = "velocity",
) -> Terms:
    """Return ``d_s X(x_t, t, s) - v(X, s)`` for every row.

    `flowjax.objectives.lagrangian` says what the arguments mean.

    Raises:
        ValueError: if ``stop`` is unknown.
    """
    v = diagonal(u) if velocity is None else velocity
    x, t, cond = path.x, path.t, path.cond
    prediction, slope = destination_derivative(u, x, t, s, cond)
    reach = over_event(s - t, x)
    end, rate = x + reach * prediction, prediction + reach * slope
    goal = v(end, s, cond) if stop == "nothing" else _sg(v(_sg(end), s, cond))
    residual = rate - goal
    if stop == "derivative":
        residual = with_value(prediction, residual)
    return Terms(residual, t, s, _sg(slope))


@checked
def semigroup_residual(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    fraction: AnyTime,
    *,
    first: AverageVelocityField | None = None,
    second: AverageVelocityField | None = None,
    clip: Positive | None = None,
) -> Terms:
    """Return ``u(x, t, s) - sg[f first(x, t, m) + (1 - f) second(y, m, s)]``.

    `flowjax.objectives.semigroup` says what the arguments mean; here ``fraction`` is
    one number per row [batch].
    """
    x, t, cond = path.x, path.t, path.cond
    target = compose(first or u, second or u, x, t, s, fraction, cond)
    if clip is not None:
        target = jnp.clip(target, -clip, clip)
    return regression(u(x, t, s, cond), target, t, s)


@checked
def alpha_flow_residual(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    alpha: Time,
    *,
    clip: Positive | None = None,
    second: AverageVelocityField | None = None,
) -> Terms:
    """Return ``u(x, t, s) - sg[alpha v + (1 - alpha) second(x + (m - t) v, m, s)]``.

    In units of ``alpha`` and with the gradient of the residual itself; at ``alpha = 0``
    its limit, MeanFlow's. `flowjax.objectives.alpha_flow` says what the arguments mean;
    here ``alpha`` is one number per row [batch], 0 for all or for none; the rows where
    alone it is 0 become NaN.
    """
    x, t, v, cond = path.x, path.t, _sg(path.v), path.cond

    def given(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return v

    def discrete() -> tuple[State, State]:
        target = compose(given, second or u, x, t, s, alpha, cond)
        if clip is not None:
            target = jnp.clip(target, -clip, clip)
        return target, jnp.zeros_like(x)

    def continuous() -> tuple[State, State]:
        _, slope = total_derivative(u, x, t, s, v, cond)
        return v + over_event(s - t, x) * slope, slope

    # A branch and not a selection: only one of the two passes of u is run.
    annealing = alpha.any()
    target, slope = jax.lax.cond(annealing, discrete, continuous)
    residual = u(x, t, s, cond) - _sg(target)
    # Where one is meant, the other pass says nothing.
    stray = jnp.where(annealing, jnp.nan, 1).astype(alpha.dtype)
    unit = over_event(jnp.where(alpha > 0, alpha, stray), x)
    return Terms(with_value(residual, residual / unit), t, s, _sg(slope))


@checked
def reversal_residual(
    u: AverageVelocityField, path: Path, s: Time, forth: Values
) -> Terms:
    """Return ``u(x, t, s) - sg[u(X, s, t)]`` with ``X = sg[x + (s - t) u(x, t, s)]``.

    An interval has one average velocity, whichever way it is run through.

    Args:
        u: the field of the way back.
        path: a batch of points.
        s: destination times [batch].
        forth: ``u(x, t, s)``, which carries the gradient [batch, *event].
    """
    x, t = path.x, path.t
    end = _sg(x + over_event(s - t, x) * forth)
    return regression(forth, u(end, s, t, path.cond), t, s)


@checked
def anchored(
    u: AverageVelocityField | None,
    path: Path,
    s: Time,
    off_diagonal: Callable[..., Terms],
    *extra: Array | None,
    share_equal: Share,
) -> Terms:
    """Return ``u(x, t, t) - v`` on the rows with s = t, another identity elsewhere.

    The rows with ``s = t`` are those of `flowjax.times.ordered_pairs`; a row that
    should be one of them and is not gets NaN.

    Args:
        u: the average-velocity field to train; None leaves the rows with s = t out: a
            residual of zero.
        path: a batch of points on conditional paths.
        s: destination times [batch].
        off_diagonal: ``(path, s, *extra) -> terms`` of the other rows, as one of the
            residuals above with its field bound.
        extra: arrays with leading axis batch (or None), handed on row by row.
        share_equal: the share of the rows with ``s = t``.

    Raises:
        ValueError: if ``s`` is not [batch] in [0, 1] or ``share_equal`` does not fit
            the batch.
    """
    return map_rows(
        lambda rows: _on_diagonal(u, *rows[:2]),
        lambda rows: off_diagonal(*rows),
        (path, s, *extra),
        row_layout(len(path.x), share_equal),
    )


def _on_diagonal(u: AverageVelocityField | None, path: Path, s: Time) -> Terms:
    if u is None:
        zero = jnp.zeros_like(path.x)
        terms = Terms(zero, path.t, s, zero)
    else:
        terms = velocity_residual(diagonal(u), path)
    # The promise about the rows with s = t cannot be checked while tracing.
    kept = expand_like(s == path.t, path.x)
    return terms._replace(residual=jnp.where(kept, terms.residual, jnp.nan), s=s)
