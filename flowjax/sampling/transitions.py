"""Random steps with a density: the policy of reinforcement learning and of search.

The steps are the Gaussian kernels of `flowjax.sampling.kernels`. `sample_chain` takes
one per interval of a grid and keeps the path, `sample_transition` takes a single one,
and `transition_log_density` evaluates steps that were taken. Call them under `jax.jit`;
they have both modes of differentiation.

The noise of a row depends on the key, the step and the row's place in the batch alone.

References:
    Song et al. 2020, arXiv:2011.13456; Liu et al. 2025, Flow-GRPO, arXiv:2505.05470.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import expand_like, flatten_event
from flowjax.fields import convert
from flowjax.sampling.inputs import grid_in, start_state
from flowjax.sampling.kernels import Kernel, Transition
from flowjax.times import uniform_grid
from flowjax.typing import (
    Condition,
    Count,
    PerExample,
    PRNGKey,
    State,
    Time,
    Values,
    VelocityField,
)

LastStep: TypeAlias = Literal["mean", "euler", "denoise", "noisy"]
"""What to do in the last interval [t, s] of a grid.

- ``"mean"``: the mean of the random step; of Euler-Maruyama it is
  ``x + h (v + g^2 / 2 score)``.
- ``"euler"``: a step of the ODE, ``x + h v``.
- ``"denoise"``: the posterior mean ``E[x1 | x_t = x]``; for grids that end at 1.
- ``"noisy"``: a step like the others.
"""

GridOrSteps: TypeAlias = Count | Sequence[float] | np.ndarray | Array
"""Increasing times in [0, 1], or the number of equal steps from 0 to 1."""


class Chain(NamedTuple):
    """A path of random steps.

    Attributes:
        times: those of the grid [n + 1].
        states: the states there [n + 1, batch, *event].
        log_densities: of each step given the state before [n, batch]; 0 for
            deterministic steps, which have none.
    """

    times: Float[Array, "time"]
    states: Float[Array, "time batch *event"]
    log_densities: Float[Array, "step batch"]


@checked
def sample_chain(
    key: PRNGKey,
    v: VelocityField,
    x0: State,
    *,
    kernel: Kernel,
    grid: GridOrSteps,
    cond: Condition = None,
    last_step: LastStep = "mean",
) -> Chain:
    """Take a random step per interval of ``grid`` and keep the whole path.

    Euler-Maruyama steps end where `flowjax.sampling.sde` does with the same key and
    `diffrax.Euler()`. One evaluation of ``v`` per step.

    Args:
        key: typed random key.
        v: the velocity field; ``t`` reaches it as [batch], in the state's dtype.
        x0: states at the start [batch, *event]: noise where the grid starts at 0. They
            are kept in at least float32.
        kernel: the random step, from `flowjax.sampling.kernels`.
        grid: increasing times in [0, 1], known before tracing, or the number of equal
            steps from 0 to 1.
        cond: a pytree with leading axis batch, handed on to ``v``, or None.
        last_step: what to do in the grid's last interval, see `LastStep`.

    Returns:
        The path; a row that is not finite stays so to its end.

    Raises:
        ValueError: if shapes, times or options do not fit.
    """
    x0 = start_state(x0)
    times = forward_times(x0.dtype, grid, last_step)
    noisy = jnp.asarray(times if last_step == "noisy" else times[:-1])

    def step(x: State, inputs: tuple[Array, ...]) -> tuple[State, tuple[Array, Array]]:
        index, *interval = inputs
        t, s = (jnp.broadcast_to(time, (len(x),)) for time in interval)
        law = kernel.transition(v, x, t, s, cond)
        y, log_density = _draw_from(jax.random.fold_in(key, index), law)
        return y, (y, log_density)

    intervals = jnp.arange(len(noisy) - 1), noisy[:-1], noisy[1:]
    x, (states, log_densities) = jax.lax.scan(step, x0, intervals)
    parts = [x0[None], states]
    if last_step != "noisy":
        parts.append(finish(v, x, times[-2:], cond, kernel, last_step)[None])
        none = jnp.zeros((1, len(x)), log_densities.dtype)
        log_densities = jnp.concatenate([log_densities, none])
    return Chain(jnp.asarray(times), jnp.concatenate(parts), log_densities)


@checked
def sample_transition(
    key: PRNGKey,
    v: VelocityField,
    x: State,
    t: Time,
    s: Time,
    cond: Condition = None,
    *,
    kernel: Kernel,
) -> tuple[State, PerExample]:
    """Draw one random step from ``(x, t)`` to time ``s``; rows may differ in time.

    Args:
        key: typed random key.
        v: the velocity field, evaluated once.
        x: states at ``t`` [batch, *event].
        t: start times [batch].
        s: later times [batch].
        cond: a pytree with leading axis batch, or None.
        kernel: the random step.

    Returns:
        The next states [batch, *event] and their `transition_log_density` [batch].

    Raises:
        ValueError: if shapes do not fit or, where times are known, unless ``t < s``.
    """
    x, t, s = _check_step(x, t, s)
    return _draw_from(key, kernel.transition(v, x, t, s, cond))


@checked
def transition_log_density(
    v: VelocityField,
    x: State,
    t: Time,
    s: Time,
    y: State,
    cond: Condition = None,
    *,
    kernel: Kernel,
) -> PerExample:
    """Return ``log p(y | x)``, the log-density of a step from ``(x, t)`` to ``(y, s)``.

    A sum over the event, differentiable in the parameters bound to ``v``. At those with
    which the step was drawn it is the value that came with the step, so that ratios
    start at 1. Rows may be at different times: a `Chain` is one batch.

    Args:
        v: the velocity field.
        x: states at ``t`` [batch, *event].
        t: start times [batch].
        s: later times [batch].
        y: states at ``s`` [batch, *event].
        cond: a pytree with leading axis batch, or None.
        kernel: the random step.

    Returns:
        The log-density [batch]; 0 without gradient where the step is deterministic
        (``std = 0``) and has no density.

    Raises:
        ValueError: if shapes do not fit or, where times are known, unless ``t < s``.
    """
    x, t, s = _check_step(x, t, s)
    return _log_density(y.astype(x.dtype), kernel.transition(v, x, t, s, cond))


@checked
def finish(
    v: VelocityField,
    x: Values,
    interval: np.ndarray,
    cond: Condition,
    kernel: Kernel,
    last_step: LastStep,
) -> State:
    """Take the last step, over ``interval``, by one of the rules without noise."""
    t, s = (jnp.broadcast_to(jnp.asarray(time), (len(x),)) for time in interval)
    if last_step == "mean":
        return kernel.transition(v, x, t, s, cond).mean
    value = v(x, t, cond).astype(x.dtype)
    if last_step == "euler":
        return x + expand_like(s - t, x) * value
    return convert(value, x, t, kernel.interpolant, source="velocity", target="x1")


@checked
def forward_times(
    dtype: DTypeLike, grid: GridOrSteps, last_step: LastStep
) -> np.ndarray:
    """Return the increasing times of ``grid`` in ``dtype``.

    Raises:
        ValueError: if they decrease or do not suit ``last_step``.
    """
    times = grid_in(dtype, uniform_grid(grid) if isinstance(grid, int) else grid)
    if times[0] > times[-1]:
        raise ValueError(
            f"`grid` must increase, from noise to data; got {times.tolist()}"
        )
    if last_step not in get_args(LastStep):
        raise ValueError(
            f"`last_step` must be one of {get_args(LastStep)}; got {last_step!r}"
        )
    if last_step == "denoise" and times[-1] != 1:
        raise ValueError(
            f"`last_step='denoise'` leads to time 1; `grid` ends at {times[-1]}"
        )
    return times


def _check_step(x: State, t: Time, s: Time) -> tuple[State, Time, Time]:
    """Return the arguments of one step in the state's dtype.

    Raises:
        ValueError: if they do not fit or, where times are known, unless ``t < s``.
    """
    x = start_state(x)
    known = not (isinstance(t, Tracer) or isinstance(s, Tracer))
    if known and not (np.asarray(t) < np.asarray(s)).all():
        raise ValueError(f"`s` must be later than `t`; got t={t} and s={s}")
    return x, t.astype(x.dtype), s.astype(x.dtype)


def _draw_from(key: PRNGKey, law: Transition) -> tuple[State, PerExample]:
    """Draw the next state and return it with its log-density."""
    noise = jax.random.normal(key, law.mean.shape, law.mean.dtype)
    y = law.mean + expand_like(law.std, noise) * noise
    return y, _log_density(y, law)


def _log_density(y: State, law: Transition) -> PerExample:
    """Return ``log N(y; mean, std^2 I)``, and 0 where ``std`` is 0."""
    # A NaN is no deterministic step: it stays.
    std = jnp.where(law.std == 0, jnp.ones_like(law.std), law.std)
    z = flatten_event((y - law.mean) / expand_like(std, y))
    constant = z.shape[1] * math.log(2 * math.pi) / 2
    value = -(z**2).sum(axis=1) / 2 - z.shape[1] * jnp.log(std) - constant
    return jnp.where(law.std == 0, jnp.zeros_like(value), value)
