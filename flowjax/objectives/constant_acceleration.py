"""Constant acceleration flow: a velocity and an acceleration per coordinate.

The paths are parabolas in time: an initial velocity is learned first, then, given it,
the acceleration that ends in the data, both on a teacher's pairs of noise and data.

References:
    Park et al. 2024, Constant Acceleration Flow, arXiv:2411.00322.
"""

from collections.abc import Callable
from typing import Annotated, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.events import over_event
from flowjax.interpolants import Path, accelerated_line, sample_path
from flowjax.objectives.flow_matching import flow_matching
from flowjax.objectives.penalties import Loss, Terms, mean_square
from flowjax.objectives.residuals import regression
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Range,
    State,
    Time,
    VelocityField,
)

_sg = jax.lax.stop_gradient


@runtime_checkable
class Acceleration(Protocol):
    """The acceleration of constant acceleration flow, given the initial velocity."""

    def __call__(
        self, x: State, t: Time, v0: State, cond: Condition = None, /
    ) -> State:
        """Return the acceleration at ``x``, ``t`` for the initial velocity ``v0``."""
        ...


@checked
def constant_acceleration_velocity(
    v0: VelocityField,
    path: Path,
    *,
    ratio: Annotated[float, Range(0, 2)] = 1.5,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return the penalty of ``v0(x_t, t) - h (x1 - x0)``, CAF's first stage.

    ``x_t`` runs along `accelerated_line` of ``h = ratio``. Zero at the initial velocity
    where pairs do not cross.

    Args:
        v0: the initial velocity to train; the sampler reads it at t = 0.
        path: pairs of a teacher; only ``x0``, ``x1``, ``t`` and ``cond`` are read.
        ratio: h, above 1 a decelerating path.
        penalty: from the residual to the loss.

    Returns:
        What the penalty returns, by default the loss [batch].

    Raises:
        ValueError: unless ``0 <= ratio <= 2``.

    References:
        Park et al. 2024, Constant Acceleration Flow, arXiv:2411.00322.
    """
    line = accelerated_line(ratio)
    bent = sample_path(line, path.x0, path.x1, path.t, path.cond)
    return flow_matching(
        v0, bent._replace(v=ratio * (path.x1 - path.x0)), penalty=penalty
    )


@checked
def constant_acceleration(
    acceleration: Acceleration,
    path: Path,
    *,
    velocity: VelocityField,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return the penalty of ``a(x_t, t, v0) - 2 (x1 - x0 - v0)``, CAF's second stage.

    The initial velocity ``v0 = sg velocity(x0, 0)`` is that of the first stage, and
    ``x_t = x0 + v0 t + (x1 - x0 - v0) t^2`` ends in x1 whatever it is: the acceleration
    makes good the error of the velocity.

    Args:
        acceleration: the field to train, ``(x, t, v0, cond)``.
        path: pairs of a teacher; only ``x0``, ``x1``, ``t`` and ``cond`` are read.
        velocity: the trained first stage.
        penalty: from the residual to the loss.

    Returns:
        What the penalty returns, by default the loss [batch].

    References:
        Park et al. 2024, Constant Acceleration Flow, arXiv:2411.00322.
    """
    t, cond = path.t, path.cond
    v0 = _sg(velocity(path.x0, jnp.zeros_like(t), cond))
    time = over_event(t, path.x0)
    half = path.x1 - path.x0 - v0
    x = path.x0 + v0 * time + half * time**2
    return penalty(regression(acceleration(x, t, v0, cond), 2 * half, t, t))


@checked
def constant_acceleration_field(
    acceleration: Acceleration, v0: State
) -> AverageVelocityField:
    """Return CAF's sampler as a field, ``u(x, t, s) = v0 + (t + s) / 2 a(x, t, v0)``.

    ``x_s = x_t + v0 (s - t) + a (s^2 - t^2) / 2``, exact where the acceleration is
    constant. One step needs two evaluations: ``v0 = velocity(x0, 0)`` and this field in
    `flowjax.sampling.few_step`.

    Args:
        acceleration: the trained second stage.
        v0: the initial velocities of the states to be moved [batch, *event].
    """

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        middle = over_event((t + s) / 2, x)
        return v0 + middle * acceleration(x, t, v0, cond)

    return u
