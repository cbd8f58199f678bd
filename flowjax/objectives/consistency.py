"""Consistency models: jumps from any time to the data, ``s = 1``.

The residual is the Eulerian one of `flowjax.objectives.mean_flow` with the destination
held at 1; the members add an anchor on the diagonal or another parameterisation.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import event_mean, over_event
from flowjax.fields import diagonal
from flowjax.interpolants import Path
from flowjax.objectives.mean_flow import mean_flow
from flowjax.objectives.penalties import (
    Loss,
    Terms,
    clipped_cosine,
    mean_square,
    normalised,
    plus,
    with_value,
)
from flowjax.objectives.residuals import regression
from flowjax.typing import (
    AverageVelocityField,
    PerExample,
    Positive,
    State,
    VelocityField,
)

_sg = jax.lax.stop_gradient


_NORMALISED = normalised()


@checked
def anchored_consistency(
    u: AverageVelocityField,
    path: Path,
    *,
    anchor: VelocityField | None = None,
    penalty: Callable[[Terms], Loss] = clipped_cosine,
    target: AverageVelocityField | None = None,
) -> Loss:
    """Return a consistency loss towards s = 1 plus a flow-matching anchor (FACM).

    ``penalty(u(x, t, 1) - sg[v + (1 - t) du/dt]) + |a - v|^2 / dim + 1 - cos(a, v)``
    with the anchor ``a(x, t)``; the cosine runs over the channels (the last axis) and
    is averaged over the positions.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths; with a teacher's velocity in
            ``path.v`` every penalty has its zero at the truth.
        anchor: the velocity field of the anchor; None: the diagonal of ``u``. The paper
            marks the task by the mirrored time instead:
            ``lambda x, t, cond=None: u(x, 2 - t, jnp.ones_like(t), cond)``.
        penalty: of the consistency residual.
        target: as in `flowjax.objectives.mean_flow`.

    Returns:
        What the penalty returns, the loss of both parts added.

    References:
        Peng et al. 2025, Flow-Anchored Consistency Models, arXiv:2507.03738.
    """
    x, t, v = path.x, path.t, _sg(path.v)
    a = (diagonal(u) if anchor is None else anchor)(x, t, path.cond)
    fit = mean_square(regression(a, v, t, t))
    jump = mean_flow(u, path, jnp.ones_like(t), penalty=penalty, target=target)
    return plus(jump, fit + 1 - _cosine(a, v))


def _cosine(a: State, b: State) -> PerExample:
    """Return the cosine over the last axis, averaged over the positions."""

    def norm(c: State) -> Array:
        # The root of zero has no derivative, and networks start at zero.
        return jnp.sqrt(jnp.square(c).sum(-1) + 1e-12)

    cosine = (a * b).sum(-1) / (norm(a) * norm(b))
    return event_mean(cosine)


@checked
def continuous_consistency(
    f: AverageVelocityField,
    path: Path,
    *,
    sigma_data: Positive = 1.0,
    warmup: float | Float[Array, ""] = 1.0,
    penalty: Callable[[Terms], Loss] = _NORMALISED,
) -> Loss:
    """Return the continuous-time consistency loss of a TrigFlow network (sCM).

    With ``theta = pi (1 - t) / 2``, the consistency function ``c = cos x - sin sd F``
    and ``dx/dtheta = -(2 / pi) v`` the residual of ``F`` has the value ``-g``,

        g = cos(theta) dc/dtheta
          = -cos^2 (sd F - dx/dtheta) - r (cos sin x + sd cos sin dF/dtheta),

    zero where c is constant along the flow. The products with cos sin stand inside the
    tangents of the forward-mode pass and keep it bounded.

    Args:
        f: the network ``F(x / sigma_data, t, s, cond)``, called at ``s = 1``; sample
            with `trigonometric_field`.
        path: points on the *trigonometric* path from ``N(0, sigma_data^2 I)``. With the
            data's velocity this is consistency training (sCT), with a teacher's in
            ``path.v`` distillation (sCD).
        sigma_data: ``sd``, standard deviation of the data.
        warmup: ``r``, to warm the tangent up from 0 to 1.
        penalty: of the residual; `penalties.learned` around `penalties.normalised` is
            the paper's.

    Returns:
        What the penalty returns, by default the loss [batch].

    References:
        Lu and Song 2024, arXiv:2410.11081, Eq. 8.
    """
    x, t, cond = path.x, path.t, path.cond
    angle = (math.pi / 2) * (1 - t)
    cosine, product = jnp.cos(angle), jnp.cos(angle) * jnp.sin(angle)
    slope = -(2 / math.pi) * _sg(path.v)  # dx/dtheta
    c, cs = (over_event(a, x) for a in (cosine, product))

    value, derivative = jax.jvp(
        lambda x, t: f(x, t, jnp.ones_like(t), cond),
        (x / sigma_data, t),
        (cs * slope / sigma_data, -(2 / math.pi) * product),
    )
    r = jnp.asarray(warmup, x.dtype)
    g = -(c**2) * (sigma_data * value - slope)
    g = _sg(g - r * (cs * x + sigma_data * derivative))
    residual = with_value(value, -g)
    return penalty(Terms(residual, t, jnp.ones_like(t), _sg(derivative)))
