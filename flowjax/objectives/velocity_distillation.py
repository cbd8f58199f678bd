"""Distillation by a teacher's velocity: MDT-dist, and the push of one-step samples."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.fields import TotalDerivative, difference_quotient
from flowjax.interpolants import Interpolant, Path, sample_path
from flowjax.objectives.mean_flow import mean_flow
from flowjax.objectives.penalties import Loss, Terms, mean_square, with_value
from flowjax.objectives.residuals import eulerian_residual
from flowjax.typing import AverageVelocityField, Condition, State, Time, VelocityField

_sg = jax.lax.stop_gradient
_QUOTIENT = partial(difference_quotient, step=0.01)


@checked
def velocity_matching(
    u: AverageVelocityField,
    path: Path,
    *,
    velocity: VelocityField,
    derivative: TotalDerivative = _QUOTIENT,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return MDT-dist's velocity matching: `mean_flow` to s = 1 by finite differences.

    ``u(x, t, 1) - sg[v_T + (1 - t) D]`` with the difference quotient D along the
    teacher: off the truth by the order of its step. The paper also normalises D, which
    moves the fixed point; this does not.

    Args:
        u: the average-velocity field to train.
        path: points on conditional paths, times at most 1 less the step.
        velocity: the teacher.
        derivative: how the total derivative is computed.
        penalty: from the residual to the loss.

    References:
        MDT-dist, arXiv:2509.04406.
    """
    return mean_flow(
        u,
        path,
        jnp.ones_like(path.t),
        velocity=velocity,
        derivative=derivative,
        penalty=penalty,
    )


@checked
def pushed(
    u: AverageVelocityField,
    x0: State,
    direction: State,
    cond: Condition = None,
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return a loss whose gradient moves the one-step sample against ``direction``.

    The residual of ``u(x0, 0, 1)`` has the value ``direction``: descent moves
    ``x0 + u(x0, 0, 1)`` along ``-direction``. Distribution matching (velocity
    distillation, TwinFlow's rectification) takes for it the difference of two
    velocities at a noised own sample.

    Args:
        u: the average-velocity field to train.
        x0: noise [batch, *event].
        direction: without gradient [batch, *event].
        cond: a pytree with leading axis batch, or None.
        penalty: from the residual to the loss.
    """
    zero, one = jnp.zeros(len(x0), x0.dtype), jnp.ones(len(x0), x0.dtype)
    residual = with_value(u(x0, zero, one, cond), direction)
    return penalty(Terms(residual, zero, one, jnp.zeros_like(residual)))


@checked
def velocity_distillation(
    u: AverageVelocityField,
    x0: State,
    noise: State,
    t: Time,
    cond: Condition = None,
    *,
    velocity: VelocityField,
    interpolant: Interpolant,
    derivative: TotalDerivative = _QUOTIENT,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return MDT-dist's velocity distillation: `velocity_matching` of own samples.

    The residual of `velocity_matching` at a noised own sample is the direction in which
    the one-step sample is `pushed`.

    Args:
        u: the average-velocity field to train.
        x0: noise of the one-step samples [batch, *event].
        noise: what they are noised with [batch, *event].
        t: times of the noised samples [batch].
        cond: a pytree with leading axis batch, or None.
        velocity: the teacher.
        interpolant: joins the noise to the samples.
        derivative: how the total derivative is computed.
        penalty: from the residual to the loss.

    References:
        MDT-dist, arXiv:2509.04406.
    """
    zero = jnp.zeros_like(t)
    own = _sg(x0 + u(x0, zero, jnp.ones_like(t), cond))
    path = sample_path(interpolant, noise, own, t, cond)
    matching = eulerian_residual(
        u, path, jnp.ones_like(t), velocity=velocity, derivative=derivative
    )
    return pushed(u, x0, _sg(matching.residual), cond, penalty=penalty)
