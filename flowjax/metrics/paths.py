"""How far and how straight a sampler travels, measured on the states it passed through.

The measures take states, not a field: whatever produced them (a fixed-step scheme, an
adaptive solver that saved its states, jumps of a flow map) is measured as it ran. The
path is the polygon through the states. For Euler steps that is the sampler's own path
and the numbers are exact; on states of a smooth curve they converge from below at
second order in the step.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.checks import check_grid
from flowjax.contracts import checked
from flowjax.metrics.sample_sets import check_finite
from flowjax.typing import Condition, PerExample, Positive, State, VelocityField

Times = Sequence[float] | np.ndarray | Array
States = Float[Array, "time batch *event"]
Pieces = Float[Array, "piece batch *event"]


@checked
def path_energy(states: States, times: Times) -> PerExample:
    """Return the kinetic energy ``E = int ||dz/dt||^2 |dt|`` of every trajectory.

    ``E = sum_k ||z_{k+1} - z_k||^2 / |t_{k+1} - t_k|``, summed (not averaged) over the
    axes of the event. ``E >= ||z_n - z_0||^2 / |t_n - t_0|``, with equality if and only
    if the path is straight and run at constant speed.

    Args:
        states: points of the trajectories [time, batch, *event].
        times: their times, strictly monotone in [0, 1] and known before tracing [time].

    Raises:
        ValueError: if shapes or times do not fit, or a state is not finite.

    References:
        Tong et al. 2023, Improving and Generalizing Flow-Based Generative Models with
        Minibatch Optimal Transport, arXiv:2302.00482 (path energy).
    """
    widths = _check_path(states, times)
    return _integrate(_slopes(states, widths), widths)


@checked
def straightness(states: States, times: Times) -> PerExample:
    """Return how much every trajectory deviates from its own chord; 0 is straight.

    ``S = int ||(z_n - z_0) / (t_n - t_0) - dz/dt||^2 |dt|``, which equals
    ``path_energy - ||z_n - z_0||^2 / |t_n - t_0|`` and is computed without that
    difference of large numbers. Summed over the axes of the event.

    This is Liu's measure S(Z) of the *simulated* process Z. It is not the S(X) of the
    training pairs, the irreducible flow-matching loss, which is positive for crossing
    pairs even where the learned trajectories are straight.

    Args:
        states: points of the trajectories [time, batch, *event].
        times: their times, strictly monotone in [0, 1] and known before tracing [time].

    Raises:
        ValueError: if shapes or times do not fit, or a state is not finite.

    References:
        Liu et al. 2022, Flow Straight and Fast, arXiv:2209.03003, Section 2.2.
    """
    widths = _check_path(states, times)
    velocity = _slopes(states, widths)
    # The chord's velocity is the mean over time of the pieces' velocities.
    chord = jnp.tensordot(
        jnp.asarray(widths / widths.sum(), velocity.dtype),
        velocity,
        axes=1,
        precision=jax.lax.Precision.HIGHEST,
    )
    return _integrate(velocity - chord[None], widths)


@checked
def normalized_path_energy(energy: PerExample, distance: Positive) -> Float[Array, ""]:
    """Return ``NPE = |mean(E) - W2^2| / W2^2``, the excess over optimal transport.

    Args:
        energy: path energies over the whole of [0, 1] [batch].
        distance: W2 (not squared) between source and target, as from `wasserstein2`.

    Raises:
        ValueError: if ``distance`` is not positive, or an energy is not finite.

    References:
        Tong et al. 2023, arXiv:2302.00482 (normalized path energy).
    """
    if not 0 < distance < float("inf"):
        raise ValueError(f"`distance` must be positive and finite; got {distance}")
    check_finite("energy", energy)
    return jnp.abs(energy.mean() - distance**2) / distance**2


@checked
def trajectory(
    field: VelocityField, x0: State, *, cond: Condition = None, grid: Times
) -> States:
    """Integrate ``dx/dt = v(x, t, cond)`` by midpoint steps and return every state.

    A plain reference integrator of second order for these diagnostics. It never
    evaluates the field at the last time of the grid, where some fields are singular.

    Args:
        field: the velocity ``v(x, t, cond)``.
        x0: the states at the first time of the grid [batch, *event].
        cond: a pytree with leading axis batch, or None.
        grid: times to step through, strictly monotone in [0, 1] [time].

    Returns:
        The states at the times of the grid, the first of them x0. All are kept in
        memory: measure large events a batch at a time.

    Raises:
        ValueError: if shapes, times or the output of the field do not fit.
    """
    times = check_grid(grid)
    # Times in bfloat16 would merge neighbouring steps.
    dtype = np.promote_types(x0.dtype, np.float32)
    widths = np.diff(times)

    def velocity(x: State, t: Float[Array, ""]) -> State:
        return field(x, jnp.full(len(x), t), cond).astype(x.dtype)

    def step(x: State, time: tuple[Array, Array]) -> tuple[State, State]:
        t, h = time
        h_state = h.astype(x.dtype)
        middle = x + (h_state / 2) * velocity(x, t)
        x = x + h_state * velocity(middle, t + h / 2)
        return x, x

    steps = jnp.asarray(times[:-1], dtype), jnp.asarray(widths, dtype)
    _, states = jax.lax.scan(step, x0, steps)
    return jnp.concatenate([x0[None], states])


def _check_path(states: States, times: Times) -> np.ndarray:
    """Check the arguments and return the signed widths of the steps."""
    if not jnp.issubdtype(states.dtype, jnp.floating):
        raise ValueError(f"`states` must have a floating dtype; got {states.dtype}")
    grid = check_grid(times, "times")
    if states.ndim < 3 or states.size == 0 or len(states) != len(grid):
        raise ValueError(
            f"`states` must have shape [time={len(grid)}, batch, *event]; "
            f"got {states.shape}"
        )
    check_finite("states", states)
    return np.diff(grid)


def _slopes(states: States, widths: np.ndarray) -> Pieces:
    """Return the velocity on every piece of the polygon, at least in float32."""
    states = states.astype(np.promote_types(states.dtype, np.float32))
    shape = (-1,) + (1,) * (states.ndim - 1)
    return jnp.diff(states, axis=0) / jnp.asarray(widths, states.dtype).reshape(shape)


def _integrate(velocity: Pieces, widths: np.ndarray) -> PerExample:
    """Return the sum over pieces of ``||velocity||^2 |width|`` for every example."""
    squared = jnp.sum(velocity**2, axis=tuple(range(2, velocity.ndim)))
    weights = jnp.asarray(np.abs(widths), velocity.dtype)[:, None]
    return jnp.sum(weights * squared, axis=0)
