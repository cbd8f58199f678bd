"""Bootstraps: semigroup targets whose two jumps are not both the network's own.

Every member is `flowjax.fields.compose` of two fields: the velocity of the path and
then the network (AlphaFlow, Consistency-FM), Euler steps along the diagonal (SnapFlow),
the averaged network on dyadic steps (shortcut models). A target of finite steps has a
fixed point of finite steps: how far it lies from the truth is said with each.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import over_event
from flowjax.fields import compose, diagonal, euler_step
from flowjax.interpolants import Path
from flowjax.objectives.flow_map import semigroup
from flowjax.objectives.flow_matching import flow_matching
from flowjax.objectives.penalties import Loss, Terms, mean_square, plus
from flowjax.objectives.residuals import (
    alpha_flow_residual,
    anchored,
    regression,
)
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Count,
    Positive,
    Range,
    Share,
    State,
    Time,
    VelocityField,
)

_sg = jax.lax.stop_gradient


@checked
def alpha_flow(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    alpha: Share | Annotated[Float[Array, ""], Range(0, 1)] | Time,
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
    share_equal: Share = 0.0,
    clip: Positive | None = 4.0,
    second: AverageVelocityField | None = None,
) -> Loss:
    """Return the penalty of AlphaFlow's residual in units of ``alpha``.

    ``u(x, t, s) - sg[alpha v + (1 - alpha) u(x + (m - t) v, m, s)]`` with
    ``m = t + alpha (s - t)`` and the velocity ``v`` of the path. ``alpha = 1`` is
    trajectory flow matching, and as ``alpha -> 0`` the residual over ``alpha`` becomes
    MeanFlow's, which is what ``alpha = 0`` computes; annealing from 1 to 0
    (`flowjax.objectives.schedules.sigmoid_decay`) leads from the one to the other. The
    penalty sees the residual divided by ``alpha``, its gradient is that of the residual
    itself: the size of the step does not depend on ``alpha``, whatever the penalty.
    For ``alpha > 0`` the average velocity is off the minimum by O(alpha).

    The paper weighs the mean square l of the residual by ``alpha / (l + c)``, and by
    ``1 / (l + c)`` on rows with ``s = t`` and where ``alpha`` is 0. That is
    `penalties.adaptive` with power 1 and one offset per row, ``c dim / alpha^2`` where
    ``s != t`` and ``alpha > 0``, ``c dim`` elsewhere. The former has no limit: the
    gradient of its rows vanishes as ``alpha -> 0``, and is back at 0. With one fixed
    offset, as MeanFlow has it, nothing jumps: the residual is in units of ``alpha`` for
    that purpose.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch].
        alpha: in [0, 1], a number or a traced scalar (a schedule needs no
            recompilation, and only the branch in force is run), or one per row [batch].
            It is 0 for all rows or for none: where some are, these become NaN. Below
            ``1e-4`` rounding shows.
        penalty: from the residual to the loss.
        share_equal: the share of rows with ``s = t``, as in `mean_flow`.
        clip: bound of the entries of the target where ``alpha > 0``.
        second: field of the second jump, without gradient; None: ``u``.

    Returns:
        What the penalty returns, by default the loss [batch].

    Raises:
        ValueError: if ``alpha`` is known and 0 for some rows only, or shapes and
            options do not fit.

    References:
        Zhang et al. 2025, AlphaFlow, arXiv:2510.20771.
    """
    if not isinstance(alpha, Tracer) and np.any(alpha) != np.all(alpha):
        raise ValueError(f"`alpha` must be 0 for all rows or for none; got {alpha}")
    alphas = jnp.broadcast_to(jnp.asarray(alpha, path.t.dtype), path.t.shape)

    identity = partial(alpha_flow_residual, u, clip=clip, second=second)
    return penalty(anchored(u, path, s, identity, alphas, share_equal=share_equal))


@checked
def shortcut(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    target: AverageVelocityField | None = None,
    penalty: Callable[[Terms], Loss] = mean_square,
    share_equal: Share = 0.875,
    finest: Count = 128,
    clip: Positive | None = 4.0,
) -> Loss:
    """Return the penalty of one step against two half steps on a dyadic grid.

    `semigroup` at the middle, with the target network in both jumps. A jump of
    ``1 / finest`` or less is an Euler step along the diagonal: there, and only there,
    the target is off the average velocity by the error of an Euler step.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch] of `flowjax.times.dyadic_pairs`.
        target: the field of the two half steps, usually the average of the parameters;
            None: ``u``.
        penalty: from the residual to the loss.
        share_equal: the share of rows with ``s = t``, on which flow matching is done.
        finest: the number of the smallest steps in [0, 1].
        clip: bound of the entries of the target and of the meeting point.

    Returns:
        What the penalty returns, by default the loss [batch].

    References:
        Frans et al. 2024, Shortcut Models, arXiv:2410.12557, Eq. 5.
    """
    field = u if target is None else target

    def step(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        end = jnp.where(jnp.abs(s - t) <= 1.001 / finest, t, s)
        return field(x, t, end, cond)

    def bounded(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        return step(x if clip is None else jnp.clip(x, -clip, clip), t, s, cond)

    return semigroup(
        u,
        path,
        s,
        penalty=penalty,
        share_equal=share_equal,
        first=step,
        second=bounded,
        clip=clip,
    )


@checked
def snap_flow(
    u: AverageVelocityField,
    path: Path,
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
    weight: float = 0.1,
    midpoint: bool = False,
    clip: Positive | None = 20.0,
) -> Loss:
    """Return flow matching of the diagonal plus ``weight`` times a one-step target.

    ``u(x0, 0, 1)`` regresses two Euler steps along the network's own diagonal (with
    ``midpoint``, one step of the midpoint rule): the fixed point is the two-step
    solver's map, off the flow map by that solver's error. The paper halves the sum.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        penalty: applied to both residuals.
        weight: of the one-step term.
        midpoint: aim at ``v(x0 + v(x0, 0) / 2, 1/2)`` instead.
        clip: bound of the entries of the one-step target.

    Returns:
        What the penalty returns, the loss of both parts added.

    References:
        Luan et al. 2026, SnapFlow, arXiv:2604.05656; formula and constants from a
        reproduction, not the authors' code.
    """
    x, zero = path.x0, jnp.zeros_like(path.t)
    one, cond = jnp.ones_like(path.t), path.cond
    step = euler_step(diagonal(u))
    target = compose(step, step, x, zero, one, 0.5, cond)
    if midpoint:  # the mean of both slopes, twice, less the first
        target = 2 * target - step(x, zero, one, cond)
    if clip is not None:
        target = jnp.clip(target, -clip, clip)
    jump = regression(u(x, zero, one, cond), target, zero, one)
    anchor = flow_matching(diagonal(u), path, penalty=penalty)
    return plus(anchor, penalty(jump), weight=weight)


@checked
def consistency_flow_matching(
    v: VelocityField,
    path: Path,
    *,
    target: VelocityField | None = None,
    segments: Count = 2,
    delta: float = 1e-3,
    boundary: float = 0.9,
    weight: float = 1e-5,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return the penalties that make a velocity constant along each segment.

    With ``r = min(t + delta, 1)``, ``x_r`` on the same line and the end ``T`` of the
    segment of t: ``f(x_t, t) - sg f(x_r, r)``, ``f(x, t) = x + (T - t) v(x, t)``, plus
    ``weight`` times ``v(x_t, t) - sg v(x_r, r)``. Where ``r >= boundary`` the first
    target is ``x_T`` itself. One Euler step per segment is then exact. Straight,
    crossing-free couplings are stationary; the marginal velocity of an independent
    coupling is not, by design. The first residual is of the order of ``delta``.

    Args:
        v: the velocity field to train.
        path: points on *linear* paths.
        target: the field at ``x_r``, without gradient; None: ``v``.
        segments: how many equal segments [0, 1] has; sample with as many Euler steps.
        delta: distance of the two times.
        boundary: from this time on the first target is the data's.
        weight: of the second term.
        penalty: applied to both residuals.

    Returns:
        What the penalty returns, the loss of both parts added.

    Raises:
        ValueError: if an option is out of range.

    References:
        Yang et al. 2024, Consistency Flow Matching, arXiv:2407.02398, Eq. 6 and 8.
    """
    if segments < 1 or not 0 < delta < 1:
        raise ValueError(
            f"need `segments` >= 1 and 0 < `delta` < 1; got {segments} and {delta}"
        )
    x, t, cond = path.x, path.t, path.cond
    line = _sg(path.v)
    r = jnp.minimum(t + delta, 1)
    end = jnp.clip(jnp.ceil(t * segments) / segments, 1 / segments, 1)

    def span(a: Time) -> Array:
        return over_event(a, x)

    here = v(x, t, cond)
    there = _sg((v if target is None else target)(x + span(r - t) * line, r, cond))
    bootstrap = span(r - t) * line + span(end - r) * there
    goal = jnp.where(span(r) < boundary, bootstrap, span(end - t) * line)
    position = regression(span(end - t) * here, goal, t, end)
    slope = regression(here, there, t, r)
    inside = (t < boundary) & (end - t > 1.01 * delta)
    mask = weight * inside.astype(x.dtype)
    return plus(penalty(position), penalty(slope), weight=mask)
