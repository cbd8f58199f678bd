"""Distillation: few-step students of a teacher's velocity or trajectories.

A teacher enters as a field: its velocity, or the average velocity of its solver
(``fields.chained(fields.euler_step(v), n)``). The terms are those of the other rooms,
on the points that the student itself visits. Reflow has no function of its own: it is
`flow_matching` on pairs of a teacher's start and end.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.events import expand_like, over_event
from flowjax.fields import (
    diagonal,
    euler_step,
)
from flowjax.interpolants import Interpolant, Path, sample_path
from flowjax.objectives.flow_map import semigroup
from flowjax.objectives.flow_matching import flow_matching
from flowjax.objectives.penalties import (
    Loss,
    Penalty,
    Terms,
    displaced,
    mean_square,
    plus,
    pseudo_huber,
)
from flowjax.objectives.residuals import regression
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    PerExample,
    PRNGKey,
    State,
    Time,
    VelocityField,
)

_sg = jax.lax.stop_gradient


@checked
def trajectory_distillation(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    velocity: VelocityField,
    trajectory: AverageVelocityField,
    target: AverageVelocityField | None = None,
    delta: float = 0.02,
    velocity_weight: float = 1.0,
    consistency_weight: float = 1.0,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return TraFlow's three terms: output, velocity and self-consistency.

    With the teacher's map ``T`` and ``q = min(t + delta, s)``::

        X(x, t, 1) - sg T(x, t, 1)          reconstruct the teacher's output
        u(x, t, t) - sg v_T(x, t)           have its velocity
        X(x, t, s) - sg X'(T(x, t, q), q, s)    agree along its trajectory

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch], ``s >= t``.
        velocity: the teacher ``v_T``.
        trajectory: its average velocity ``(T(x, t, s) - x) / (s - t)``.
        target: the field ``u'`` of ``X'``, usually the average of the parameters; None:
            ``u``.
        delta: length of the teacher's step in the third term.
        velocity_weight: of the second term.
        consistency_weight: of the third term.
        penalty: applied to the three residuals.

    Returns:
        What the penalty returns, the loss of all parts added.

    References:
        TraFlow, arXiv:2502.16972; the three terms are those its abstract names, their
        weights are placeholders.
    """
    x, t, cond = path.x, path.t, path.cond
    one, of_map = jnp.ones_like(t), displaced(penalty=penalty)
    output = regression(u(x, t, one, cond), trajectory(x, t, one, cond), t, one)
    taught = path._replace(v=_sg(velocity(x, t, cond)))
    fraction = jnp.minimum(delta / jnp.maximum(s - t, delta), 1)
    along = semigroup(
        u,
        path,
        s,
        fraction=fraction,
        first=trajectory,
        second=u if target is None else target,
        penalty=of_map,
    )
    loss = plus(of_map(output), along, weight=consistency_weight)
    slope = flow_matching(diagonal(u), taught, penalty=penalty)
    return plus(loss, slope, weight=velocity_weight)


@checked
def flow_guided_distillation(
    v: VelocityField,
    path: Path,
    fraction: Time,
    *,
    velocity: VelocityField,
    weight: float = 1.0,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return SlimFlow's one-step distillation: the pair, and the student's two steps.

    ``x0 + v(x0, 0)`` is to be the data of its pair, and the end of a step of the
    student to ``fraction`` followed by one of the teacher.

    Args:
        v: the student's velocity field.
        path: linear paths between a teacher's starts and ends; only ``x0``, ``x1`` and
            ``cond`` are used.
        fraction: time [batch] at which the teacher takes over; U(0.2, 0.8) in the
            paper.
        velocity: the teacher.
        weight: of the second term.
        penalty: applied to both residuals.

    Returns:
        What the penalty returns, the loss of both parts added.

    References:
        Zhu et al. 2024, SlimFlow, arXiv:2407.12718.
    """
    zero = jnp.zeros_like(path.t)
    start = path._replace(x=path.x0, t=zero, v=path.x1 - path.x0)
    known = _once(v, path.x0, zero, path.cond)
    guide = semigroup(
        euler_step(known),
        start,
        jnp.ones_like(zero),
        fraction=fraction,
        first=euler_step(known),
        second=euler_step(velocity),
        penalty=penalty,
    )
    return plus(flow_matching(known, start, penalty=penalty), guide, weight=weight)


def _once(v: VelocityField, x: State, t: Time, cond: Condition) -> VelocityField:
    """Return ``v`` at the one point where it is asked for, evaluated once.

    Two passes at one point are merged by XLA, their gradients are not.
    """
    value = v(x, t, cond)
    return lambda x, t, cond=None: value


@checked
def self_corrected_distillation(
    key: PRNGKey,
    v: VelocityField,
    path: Path,
    *,
    velocity: VelocityField,
    interpolant: Interpolant,
    target: VelocityField | None = None,
    hop: float = 0.1,
    truncation: float = 0.4,
    backward_weight: float = 0.1,
    correction_weight: float = 0.1,
    penalty: Penalty | None = None,
) -> PerExample:
    """Return the endpoint consistencies and self-correction of SCFlow.

    All residuals are of the endpoint ``E(x, t) = x + (1 - t) v(x, t)``: against the
    target's endpoint after one step of the teacher towards the data (the data itself
    where that comes within ``truncation`` of it), against that after a step towards
    the noise, and against the student's own one-step sample ``E(x0, 0)`` as data. The
    adversarial term is `flowjax.objectives.adversarial`'s, on the same sample.

    Args:
        key: typed random key, for the two distances.
        v: the student's velocity field.
        path: points on linear paths.
        velocity: the teacher.
        interpolant: joins x0 to the student's own sample.
        target: the field of the endpoints aimed at, usually the average of the
            parameters; None: ``v``.
        hop: largest distance of the two neighbouring times.
        truncation: from ``1 - truncation`` on the data is the target.
        backward_weight: of the second term.
        correction_weight: of the third term.
        penalty: of the first two residuals; None: `penalties.pseudo_huber` of 0.01.

    Returns:
        The loss [batch].

    References:
        Dao et al. 2024, Self-Corrected Flow Distillation, arXiv:2412.16906.
    """
    x, t, cond = path.x, path.t, path.cond
    key_up, key_down = jax.random.split(key)
    huber = displaced(penalty=pseudo_huber(scale=0.01) if penalty is None else penalty)
    one, aim = jnp.ones_like(t), euler_step(v if target is None else target)
    reach = jnp.maximum(1 - t, jnp.finfo(t.dtype).tiny)
    up = jax.random.uniform(key_up, t.shape, t.dtype) * jnp.minimum(1 - t, hop)
    down = jax.random.uniform(key_down, t.shape, t.dtype) * jnp.minimum(t, hop)

    def near_data(y: State, m: Time, s: Time, cond: Condition = None, /) -> State:
        # The one average velocity from y to 1 that ends in the data.
        left = over_event(jnp.maximum(s - m, jnp.finfo(m.dtype).eps), y)
        exact = (path.x1 - y) / left
        return jnp.where(expand_like(m > 1 - truncation, y), exact, aim(y, m, s, cond))

    jump = partial(
        semigroup, euler_step(_once(v, x, t, cond)), path, one, penalty=huber
    )
    forward = jump(fraction=up / reach, first=euler_step(velocity), second=near_data)
    backward = jump(fraction=-down / reach, first=euler_step(velocity), second=aim)
    own = _sg(path.x0 + v(path.x0, jnp.zeros_like(t), cond))
    again = sample_path(interpolant, path.x0, own, t, cond)
    fit = regression(v(again.x, t, cond), again.v, t, one)
    correction = displaced()(fit)
    return forward + backward_weight * backward + correction_weight * correction
