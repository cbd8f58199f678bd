"""FlowTurbo: Heun steps, steps with one evaluation, steps with a small refiner.

The velocity changes little late on the way. After a few Heun steps (H) each step reuses
the slope of the one before (P, one evaluation); at the end a small network corrects the
last slope instead of evaluating the large one (R).

References:
    Zhao et al. 2024, FlowTurbo: Towards Real-time Flow-Based Image Generation with
    Velocity Refiner, arXiv:2409.18128.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.contracts import checked
from flowjax.events import event_mean, over_event
from flowjax.sampling.inputs import grid_in, start_state
from flowjax.sampling.multistep import (
    MultistepSolver,
    advance,
    check_solver,
    empty_memory,
)
from flowjax.sampling.solvers import pseudo_corrector
from flowjax.typing import Condition, Natural, PerExample, State, Time, VelocityField


@runtime_checkable
class Refiner(Protocol):
    """What is missing from a nearby velocity, ``v(x, t) - velocity``, approximately."""

    def __call__(
        self, x: State, velocity: State, t: Time, cond: Condition = None, /
    ) -> State:
        """Return the correction at ``x`` [batch, *event] and ``t`` [batch]."""
        ...


@checked
def flow_turbo(
    field: VelocityField,
    refiner: Refiner,
    x0: State,
    *,
    grid: Sequence[float] | np.ndarray | Array,
    heun_steps: Natural = 1,
    refiner_steps: Natural,
    cond: Condition = None,
) -> State:
    """Sample with `solvers.pseudo_corrector` first and refined steps at the end.

    A refined step is a Heun step with the slopes

        d0 = c + refiner(x, c, t),    d1 = d0 + refiner(x + h d0, d0, s),

    c the slope kept from the step before (its d1; after a refined step its d0, so that
    the refiner always looks one step back, as in training). With the exact refiner
    ``v - velocity`` it is Heun's.

    Args:
        field: the velocity field, evaluated ``n - refiner_steps + heun_steps`` times.
        refiner: evaluated ``2 refiner_steps`` times.
        x0: states at ``grid[0]`` [batch, *event].
        grid: n + 1 strictly monotone times, known before tracing.
        heun_steps: number of Heun steps at the start, at least 1.
        refiner_steps: number of refined steps at the end, in 0..n - heun_steps.
        cond: a pytree with leading axis batch, handed on to both, or None.

    Returns:
        States at ``grid[-1]`` [batch, *event], in the dtype of ``x0`` but at least
        float32.

    Raises:
        ValueError: if shapes, ``grid`` or the numbers of steps do not fit.

    References:
        arXiv:2409.18128. The authors' code exists in two forms; in the other
        one the refiner's second call is given c but added to d0, which is not what it
        was trained for.
    """
    x0 = start_state(x0)
    times = grid_in(x0.dtype, grid)
    switch = len(times) - 1 - refiner_steps
    if not (refiner_steps >= 0 and switch >= heun_steps):
        raise ValueError(
            f"`refiner_steps` must lie in 0..{len(times) - 1 - heun_steps}; got "
            f"{refiner_steps}"
        )
    table = pseudo_corrector(times[: switch + 1], heun_steps=heun_steps)
    solver = check_solver(table, x0)

    def linear(
        carry: tuple[State, Array], row: MultistepSolver
    ) -> tuple[tuple[State, Array], None]:
        return advance(field, *carry, row, cond), None

    def slope(x: State, velocity: State, t: Array) -> State:
        t = jnp.broadcast_to(t, (len(x),))
        correction = refiner(x, velocity, t, cond)
        return velocity + correction.astype(x.dtype)

    def refined(
        carry: tuple[State, State], ends: tuple[Array, Array]
    ) -> tuple[tuple[State, State], None]:
        x, kept = carry
        t, s = ends
        d0 = slope(x, kept, t)
        d1 = slope(x + (s - t) * d0, d0, s)
        return (x + (s - t) / 2 * (d0 + d1), d0), None

    (x, memory), _ = jax.lax.scan(linear, (x0, empty_memory(solver, x0)), solver)
    late = jnp.asarray(times[switch:])
    return jax.lax.scan(refined, (x, memory[0]), (late[:-1], late[1:]))[0][0]


@checked
def refiner_loss(
    refiner: Refiner,
    field: VelocityField,
    x: State,
    t: Time,
    s: Time,
    cond: Condition = None,
) -> PerExample:
    """Return ``|v + refiner(y, v, s) - field(y, s)|^2 / dim``, ``v = field(x, t)``.

    ``y = x + (s - t) v`` is one Euler step ahead. ``field`` has no gradient.

    Args:
        refiner: to be trained.
        field: the velocity field that it completes.
        x: points on the path at ``t`` [batch, *event].
        t: times [batch].
        s: times ahead [batch]; ``s - t ~ U(0, 0.12)``, no later than 1, in the paper.
        cond: a pytree with leading axis batch, handed on to both, or None.

    Returns:
        The loss [batch].

    Raises:
        ValueError: if shapes do not fit.
    """
    v = field(x, t, cond).astype(x.dtype)
    y = jax.lax.stop_gradient(x + over_event(s - t, x) * v)
    target = field(y, s, cond).astype(x.dtype)
    missing = jax.lax.stop_gradient(target - v)
    correction = refiner(y, jax.lax.stop_gradient(v), s, cond)
    residual = correction.astype(x.dtype) - missing
    return event_mean(jnp.square(residual))
