"""Consistency models: jumps from any time to the data, ``s = 1``.

The residual is the Eulerian one of `flowjax.objectives.mean_flow` with the destination
held at 1; the members add an anchor on the diagonal or another parameterisation.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._typing import (
    AverageVelocityField,
    Condition,
    PerExample,
    State,
    Time,
    VelocityField,
)
from flowjax.fields import diagonal
from flowjax.interpolants import Path, expand_like
from flowjax.objectives.mean_flow import mean_flow
from flowjax.objectives.penalties import (
    Loss,
    Terms,
    adaptive,
    mean_square,
    normalised,
    plus,
    revalued,
    weighted,
)

_sg = jax.lax.stop_gradient


def clipped_cosine(terms: Terms) -> PerExample:
    """Return FACM's penalty of a consistency residual.

    Its value becomes ``(1 - sqrt(t)) clip(e, -1, 1)`` and the loss, with the mean
    square l of that, ``cos(pi t / 2) l sg[(l + 1e-3)^-1/2]``. Clipping is biased where
    the velocity is conditional.
    """

    def scale(e: State, t: Time) -> State:
        return expand_like(1 - jnp.sqrt(t), e).astype(e.dtype) * jnp.clip(e, -1, 1)

    root = adaptive(power=0.5, offset=1e-3 * terms.residual[0].size)
    cosine = weighted(lambda t: jnp.cos(t * (jnp.pi / 2)), penalty=root)
    return revalued(scale, penalty=cosine)(terms)


_CLIPPED_COSINE: Any = clipped_cosine
_NORMALISED: Any = normalised()


def anchored_consistency(
    u: AverageVelocityField,
    path: Path,
    *,
    anchor: VelocityField | None = None,
    penalty: Callable[[Terms], Loss] = _CLIPPED_COSINE,
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
    fit = mean_square(Terms(a - v, t, t, jnp.zeros_like(v)))
    jump = mean_flow(u, path, jnp.ones_like(t), penalty=penalty, target=target)
    return plus(jump, fit + 1 - _cosine(a, v))


def _cosine(a: State, b: State) -> PerExample:
    """Return the cosine over the last axis, averaged over the positions."""

    def norm(c: State) -> Array:
        # The root of zero has no derivative, and networks start at zero.
        return jnp.sqrt(jnp.square(c).sum(-1) + 1e-12)

    cosine = (a * b).sum(-1) / (norm(a) * norm(b))
    return cosine.reshape((len(a), -1)).mean(1)


def trigonometric_field(
    f: AverageVelocityField, *, sigma_data: float = 1.0
) -> AverageVelocityField:
    """Return the average velocity of a TrigFlow network ``F``.

    ``X(x, t, s) = cos(d) x - sin(d) sigma_data F(x / sigma_data, t, s)`` with
    ``d = pi (s - t) / 2`` on the trigonometric path whose source is
    ``N(0, sigma_data^2 I)``; ``u = (X - x) / (s - t)``, whose limit on the diagonal is
    ``-(pi / 2) sigma_data F``. Jumps to ``s = 1`` are those sCM learns.

    Args:
        f: the network ``F(x / sigma_data, t, s, cond)``.
        sigma_data: standard deviation of the data and of the source.

    References:
        Lu and Song 2024, arXiv:2410.11081, Sec. 3.
    """

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        half_turn = math.pi / 2
        gap = expand_like(s - t, x).astype(x.dtype)
        # (cos d - 1) / (s - t) and sin d / (s - t), both finite on the diagonal.
        sine = half_turn * jnp.sinc(gap / 2)
        bend = -half_turn * jnp.sin(half_turn * gap / 2) * jnp.sinc(gap / 4)
        return bend * x - sine * sigma_data * f(x / sigma_data, t, s, cond)

    return u


def continuous_consistency(
    f: AverageVelocityField,
    path: Path,
    *,
    sigma_data: float = 1.0,
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
    c, cs = (expand_like(a, x).astype(x.dtype) for a in (cosine, product))

    value, derivative = jax.jvp(
        lambda x, t: f(x, t, jnp.ones_like(t), cond),
        (x / sigma_data, t),
        (cs * slope / sigma_data, -(2 / math.pi) * product),
    )
    r = jnp.asarray(warmup, x.dtype)
    g = -(c**2) * (sigma_data * value - slope)
    g = _sg(g - r * (cs * x + sigma_data * derivative))
    residual = value + _sg(-g - value)
    return penalty(Terms(residual, t, jnp.ones_like(t), _sg(derivative)))
