"""Log-densities of flow models by the change of variables.

``log p(x1) = log p_source(x0) + log|det dx0/dx1|`` with ``x0`` reached from data ``x1``
by the flow back in time: by an ODE, or by a few jumps of a flow map. Probabilities of
discrete data follow from these in `flowjax.likelihood.dequantisation`.

Fields are differentiated in forward mode, and their rows must not depend on each other.
Call these under `jax.jit`.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import diffrax
import jax
import numpy as np
from jaxtyping import Array

from flowjax.contracts import checked
from flowjax.events import event_sum
from flowjax.likelihood.log_det import (
    Probes,
    check_probes,
    checked_divergence,
    few_step_log_det,
    ode_log_det,
)
from flowjax.sampling.inputs import grid_in, interval_in, start_state
from flowjax.sampling.ode import OdeStats
from flowjax.sampling.steps import Adaptive, AdaptiveOrGrid
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    PerExample,
    State,
    Time,
    VelocityField,
)


@runtime_checkable
class LogDensity(Protocol):
    """A log-density of states, in nats."""

    def __call__(self, x: State, /) -> PerExample:
        """Return the log-density at every row of ``x`` [batch]."""
        ...


@checked
def standard_normal(x: State) -> PerExample:
    """Return ``log N(x; 0, I) = -|x|^2 / 2 - (size / 2) log 2 pi`` for every row."""
    normalizer = math.prod(x.shape[1:]) / 2 * math.log(2 * math.pi)
    return -event_sum(x**2) / 2 - normalizer


@checked
def log_density(
    field: VelocityField,
    x1: State,
    *,
    cond: Condition = None,
    source: LogDensity = standard_normal,
    probes: Probes | None = None,
    steps: AdaptiveOrGrid = Adaptive(t0=1.0, t1=0.0),
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> tuple[PerExample, OdeStats]:
    """Return the log-density at ``x1`` of the samples that `ode` makes from noise.

    ``log p(x1) = log p_source(x0) - integral_0^1 div field(x_t, t) dt``, where ``x0``
    is reached from ``x1`` by the flow back in time.

    A flow-map model has the density of its diagonal, ``log_density(diagonal(u), x1)``.
    To train by maximum likelihood differentiate the mean of the result; with fresh
    ``probes`` at every step the gradient is unbiased too.

    Args:
        field: the velocity field.
        x1: data [batch, *event].
        cond: a pytree with leading axis batch, or None.
        source: the log-density of the noise, standard normal by default.
        probes: those of `draw_probes` for Hutchinson's unbiased estimate, or None for
            the exact divergence.
        steps: as in `ode_log_det`, backwards in time: from the time of ``x1``, 1 or
            less for the density of noisy data, to that of the source.
        solver: as in `ode`.
        adjoint: as in `ode_log_det`.

    Returns:
        The log-density in nats [batch], NaN where the solve failed, and the statistics.

    Raises:
        ValueError: as `ode_log_det`, if the solve would run forwards, or if ``source``
            does not return [batch].

    References:
        Lipman et al. 2022, arXiv:2210.02747, App. C; Song et al. 2020,
        arXiv:2011.13456, Sec. 4.3.
    """
    x1 = start_state(x1)
    if isinstance(steps, Adaptive):
        ends = interval_in(x1.dtype, steps.t0, steps.t1)
    else:
        ends = grid_in(x1.dtype, steps, "steps")
    _check_backwards(ends)
    x0, log_det, stats = ode_log_det(
        field,
        x1,
        cond=cond,
        probes=probes,
        steps=steps,
        solver=solver,
        adjoint=adjoint,
    )
    return source(x0).astype(x0.dtype) + log_det, stats


@checked
def few_step_log_density(
    u: AverageVelocityField,
    x1: State,
    *,
    cond: Condition = None,
    source: LogDensity = standard_normal,
    grid: Sequence[float] | np.ndarray | Array = (1.0, 0.0),
) -> PerExample:
    """Return the log-density at ``x1`` by jumps from data back to noise.

    It is the log-density of the source pulled back by these jumps, which integrates to
    one where they are one-to-one. The sampler with the same grid reversed has this
    density only as far as its jumps undo these: exactly for a perfect average velocity.
    The density of the sampler itself, at its own samples, is that of `few_step_log_det`
    from noise.

    Args:
        u: the average-velocity field, trained for ``s < t`` too.
        x1: data [batch, *event].
        cond: a pytree with leading axis batch, or None.
        source: the log-density of the noise.
        grid: strictly decreasing times, from that of ``x1`` to that of the source.

    Returns:
        The log-density in nats [batch].

    Raises:
        ValueError: as `few_step`, if ``grid`` runs forwards, or if ``source`` does not
            return [batch].
    """
    x1 = start_state(x1)
    _check_backwards(grid_in(x1.dtype, grid))
    x0, log_det = few_step_log_det(u, x1, cond=cond, grid=grid)
    return source(x0).astype(x0.dtype) + log_det


@checked
def end_time_derivative(
    field: VelocityField,
    x: State,
    t: Time,
    *,
    cond: Condition = None,
    source: LogDensity = standard_normal,
    probes: Probes | None = None,
) -> PerExample:
    """Return ``d log p(x1) / dt`` where ``t`` is the time at which the source sits.

    ``log p(x1) = log p_source(x) + log|det dx/dx1|`` with ``x`` reached from ``x1`` at
    time ``t``, so the derivative is ``grad log p_source(x) . field + div field`` there,
    at the cost of one evaluation and no solve. A continuous normalizing flow trained by
    likelihood may learn its end time by ascent along the mean of this, in turns with
    its parameters; the integration length is ``T = 1 - t``.

    Args:
        field: the velocity field.
        x: the states that `ode_log_det` reached from data [batch, *event].
        t: the times at which it did [batch].
        cond: a pytree with leading axis batch, or None.
        source: the log-density of the noise.
        probes: those of `draw_probes`, or None for the exact divergence.

    Returns:
        The derivative for every row [batch].

    Raises:
        ValueError: if shapes or dtypes do not fit.

    References:
        Du et al. 2022, TO-FLOW: Efficient Continuous Normalizing Flows with Temporal
        Optimization adjoint with Moving Speed, arXiv:2203.10335, on the clock 1 - t.
    """
    x = start_state(x)
    check_probes(probes, x)
    v, divergence = checked_divergence(field, x, t, cond, probes)
    _, along = jax.jvp(lambda x: source(x).astype(x.dtype), (x,), (v,))
    return along + divergence


def _check_backwards(times: np.ndarray) -> None:
    """Raise ValueError unless a checked grid or interval runs from data to noise."""
    if times[0] < times[-1]:
        raise ValueError(
            "a log-density runs back in time, from data to the source, as "
            "`Adaptive(t0=1.0, t1=0.0)` or the grid (1.0, 0.0); got times from "
            f"{times[0]} to {times[-1]}"
        )
