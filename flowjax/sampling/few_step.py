"""Few-step sampling with an average velocity: one evaluation per jump."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.interpolants import (
    Interpolant,
    linear,
    noise_level,
    noise_variance,
    time_of_ratio,
)
from flowjax.sampling.inputs import grid_in, start_state
from flowjax.typing import AverageVelocityField, Condition, PRNGKey, Share, State


@checked
def few_step(
    u: AverageVelocityField,
    x0: State,
    *,
    cond: Condition = None,
    grid: Sequence[float] | np.ndarray | Array = (0.0, 1.0),
) -> State:
    """Jump along ``grid`` with the flow map: ``x <- x + (s - t) u(x, t, s, cond)``.

    The default is one-step generation, ``x1 = x0 + u(x0, 0, 1)``, and ``(1.0, 0.0)`` is
    one-step inversion, from data to noise. A perfect average velocity gives the same
    sample on every grid, and the inverse map on the reversed one.

    Args:
        u: the average-velocity field; ``t`` and ``s`` reach it as [batch].
        x0: states at ``grid[0]`` [batch, *event]: noise where the grid starts at 0.
        cond: a pytree with leading axis batch, handed on to ``u``, or None.
        grid: n + 1 strictly monotone times in [0, 1], in either direction, known
            before tracing.

    Returns:
        States at ``grid[-1]`` [batch, *event] after n evaluations of ``u``, in the
        dtype of ``x0`` but at least float32.

    Raises:
        ValueError: if ``x0``, ``cond``, ``grid`` or the shape of ``u``'s result do not
            fit.

    References:
        Geng et al. 2025, Mean Flows for One-step Generative Modeling, arXiv:2505.13447,
        Eq. 12, on the clock ``1 - t``.
    """
    x0 = start_state(x0)
    times = jnp.asarray(grid_in(x0.dtype, grid))

    def step(x: State, interval: tuple[Array, Array]) -> tuple[State, None]:
        return _jump(u, x, *interval, cond), None

    return jax.lax.scan(step, x0, (times[:-1], times[1:]))[0]


@checked
def restart(
    key: PRNGKey,
    u: AverageVelocityField,
    x0: State,
    *,
    cond: Condition = None,
    grid: Sequence[float] | np.ndarray | Array = (0.0, 1.0),
    gamma: Share = 1.0,
    interpolant: Interpolant | None = None,
) -> State:
    """Jump past every time of ``grid`` with the flow map and back with fresh noise.

    To step from a to b, jump to the time ``c >= b`` at which the ratio of noise to data
    is ``sigma_c / alpha_c = sqrt(1 - gamma^2) sigma_b / alpha_b``, then return to b by
    ``x_b = (alpha_b / alpha_c) x_c + gamma sigma_b eps``, ``eps ~ N(0, I)``. With a
    perfect average velocity every ``x_b`` follows the law of the path at b. For the
    linear path ``c = b / (b + sqrt(1 - gamma^2) (1 - b))``.

    ``gamma = 0`` is `few_step`. ``gamma = 1`` is the multi-step sampling of consistency
    models, ``c = 1`` always: a field that is only defined for ``s = 1`` will do.

    Args:
        key: typed random key; ``gamma = 0`` does not use it.
        u: the average-velocity field; ``t`` and ``s`` reach it as [batch].
        x0: states at ``grid[0]`` [batch, *event]: noise where the grid starts at 0.
        cond: a pytree with leading axis batch, handed on to ``u``, or None.
        grid: n + 1 strictly increasing times in [0, 1], known before tracing.
        gamma: share of the standard deviation of the noise that is drawn anew in each
            step, in [0, 1]. A path that is still noisy at t=1 limits it.
        interpolant: the path ``u`` was learned on, by default the linear one, with
            ``sigma / alpha`` decreasing (the latent noise counts as sigma) and a
            standard normal source independent of the data.

    Returns:
        States at ``grid[-1]`` [batch, *event] after n evaluations of ``u``, in the
        dtype of ``x0`` but at least float32.

    Raises:
        ValueError: as `few_step`, and if ``gamma`` lies outside [0, 1] or ``grid``
            decreases.

    References:
        Kim et al. 2023, Consistency Trajectory Models, arXiv:2310.02279
        (gamma-sampling); Song et al. 2023, arXiv:2303.01469, Alg. 1 (gamma = 1).
    """
    x0 = start_state(x0)
    times = grid_in(x0.dtype, grid)
    if times[0] > times[-1]:
        raise ValueError(f"`grid` must increase; got {times.tolist()}")
    if gamma == 0:
        return few_step(u, x0, cond=cond, grid=times)
    line = linear() if interpolant is None else interpolant
    starts, returns = jnp.asarray(times[:-1]), _overshoot(line, times[1:], gamma)

    def step(x: State, plan: tuple[Array, ...]) -> tuple[State, None]:
        key, t, c, scale, std = plan
        x = _jump(u, x, t, c, cond)
        return scale * x + std * jax.random.normal(key, x.shape, x.dtype), None

    keys = jax.random.split(key, len(starts))
    return jax.lax.scan(step, x0, (keys, starts, *returns))[0]


def _jump(
    u: AverageVelocityField,
    x: State,
    t: Float[Array, ""],
    s: Float[Array, ""],
    cond: Condition,
) -> State:
    """Return the flow map ``x + (s - t) u(x, t, s, cond)`` of a whole batch."""
    start, end = (jnp.broadcast_to(time, (len(x),)) for time in (t, s))
    return x + (s - t) * u(x, start, end, cond).astype(x.dtype)


def _overshoot(
    interpolant: Interpolant, b: np.ndarray, gamma: float
) -> tuple[Float[Array, "steps"], Float[Array, "steps"], Float[Array, "steps"]]:
    """Return where to jump to in order to reach ``b``, and how to return.

    The time ``c``, the factor ``alpha_b / alpha_c`` and the standard deviation of the
    noise to add, ``sqrt(sigma_b^2 - (alpha_b / alpha_c)^2 sigma_c^2)``.
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        t = jnp.asarray(b, jnp.float64)
        ratio = np.asarray(noise_level(interpolant, t) / interpolant.alpha(t))
    later = time_of_ratio(interpolant, math.sqrt((1 - gamma) * (1 + gamma)) * ratio)
    # Rounding must not put c before b.
    end, c = jnp.asarray(b), jnp.asarray(np.maximum(later, b).astype(b.dtype))
    scale = interpolant.alpha(end) / interpolant.alpha(c)
    # From c as it was rounded: then the sum of both variances is that of b.
    left = noise_variance(interpolant, end) - scale**2 * noise_variance(interpolant, c)
    return c, scale, jnp.sqrt(jnp.maximum(left, 0))
