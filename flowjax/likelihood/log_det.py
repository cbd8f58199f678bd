"""What a flow does to volumes: ``log|det dy/dx|`` along with the state ``y``.

Along an ODE it is the integral of the divergence, exact or by Hutchinson's estimate
with noise that is fixed for the whole solve. Of a few jumps with a flow map it is the
log-determinant of the Jacobian. Either direction of time will do: from noise to data it
gives the log-density of a sample, ``log p(x1) = log p_source(x0) - log|det dx1/dx0|``,
from data to noise that of data (`flowjax.likelihood.log_density`).

Fields are differentiated in forward mode, and their rows must not depend on each other.
Call these under `jax.jit`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import flatten_event
from flowjax.fields import velocity_and_divergence
from flowjax.sampling.few_step import few_step
from flowjax.sampling.inputs import start_state
from flowjax.sampling.ode import OdeStats, ode
from flowjax.sampling.steps import Adaptive, AdaptiveOrGrid, worst_row
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Count,
    PerExample,
    PRNGKey,
    State,
    Time,
    VelocityField,
)

Probes: TypeAlias = Float[Array, "batch probe *event"]
"""Fixed vectors of Hutchinson's estimate of a divergence; see `draw_probes`."""


@checked
def draw_probes(
    key: PRNGKey,
    x: State,
    number: Count = 1,
    *,
    law: Literal["rademacher", "normal"] = "rademacher",
) -> Probes:
    """Draw the vectors of Hutchinson's estimate, ``E[e e^T] = I``, once for a solve.

    With ``S`` the symmetric part of ``dv/dx`` the variance of ``e . (dv/dx) e`` is
    ``2 sum_{i != j} S_ij^2`` for Rademacher and ``2 sum_ij S_ij^2`` for normal probes.

    Args:
        key: typed random key.
        x: the states they are for [batch, *event]; only shape and dtype matter.
        number: probes per row, at least 1.
        law: ``"rademacher"`` (entries -1 and 1) or ``"normal"``.

    Returns:
        The probes [batch, number, *event], in the dtype of ``x`` but at least float32.

    Raises:
        ValueError: for an unknown law, no probes, or an ``x`` that does not fit.

    References:
        Grathwohl et al. 2018, FFJORD, arXiv:1810.01367, Sec. 3.1.
    """
    x = start_state(x)
    shape = (len(x), number, *x.shape[1:])
    match law:
        case "rademacher":
            return jax.random.rademacher(key, shape, x.dtype)
        case "normal":
            return jax.random.normal(key, shape, x.dtype)
    raise ValueError(f"`law` must be 'rademacher' or 'normal'; got {law!r}")


@checked
def ode_log_det(
    field: VelocityField,
    x0: State,
    *,
    cond: Condition = None,
    probes: Probes | None = None,
    steps: AdaptiveOrGrid = Adaptive(),
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> tuple[State, PerExample, OdeStats]:
    """Integrate as `ode` does and return ``log|det dx/dx0|`` with the state.

    The state and ``d log|det| / dt = div field(x, t)`` are one ODE, solved together;
    both have to meet the tolerances in every row.

    Args:
        field: the velocity field.
        x0: states at the start of the solve [batch, *event].
        cond: a pytree with leading axis batch, or None.
        probes: those of `draw_probes` [batch, probe, *event]: the divergence is then
            ``mean_k e_k . (dv/dx) e_k``, unbiased, and the same smooth function of
            ``x`` and ``t`` in the whole solve. None: the exact divergence.
        steps: as in `ode`; ``error_norm`` sees [batch, size + 1]: the flattened event
            and then the log-determinant.
        solver: as in `ode`.
        adjoint: as in `ode`; gradients need the default, `diffrax.DirectAdjoint` or, in
            forward mode, `diffrax.ForwardMode`.

    Returns:
        The states at the end [batch, *event], the log-determinant [batch], both NaN
        where the solve failed, and the statistics. Each of the ``nfe`` evaluations of
        the field comes with one Jacobian-vector product per probe, or per dimension of
        the event without probes.

    Raises:
        ValueError: as `ode`, and if ``probes`` do not fit.

    References:
        Chen et al. 2018, Neural ODEs, arXiv:1806.07366, Theorem 1; Grathwohl et al.
        2018, FFJORD, arXiv:1810.01367, Sec. 3.1.
    """
    x0 = start_state(x0)
    check_probes(probes, x0)

    def joint_slope(state: State, t: Time, cond: Condition = None) -> State:
        x = state[:, :-1].reshape(x0.shape)
        v, divergence = checked_divergence(field, x, t, cond, probes)
        return jnp.concatenate([flatten_event(v), divergence[:, None]], axis=1)

    start = jnp.concatenate(
        [flatten_event(x0), jnp.zeros_like(x0, shape=(len(x0), 1))], axis=1
    )
    if isinstance(steps, Adaptive) and steps.error_norm is None:
        steps = dataclasses.replace(steps, error_norm=_worst_part)
    end, stats = ode(
        joint_slope, start, cond=cond, steps=steps, solver=solver, adjoint=adjoint
    )
    return end[:, :-1].reshape(x0.shape), end[:, -1], stats


@checked
def few_step_log_det(
    u: AverageVelocityField,
    x0: State,
    *,
    cond: Condition = None,
    grid: Sequence[float] | np.ndarray | Array = (0.0, 1.0),
) -> tuple[State, PerExample]:
    """Jump as `few_step` does and return ``log|det dx/dx0|`` with the state.

    The determinant is that of the full Jacobian: as many Jacobian-vector products as
    the event has dimensions, and memory for its square. ``log p_source(x0)`` less this
    is the log-density of the sample that ``x0`` turns into, where the jumps are
    one-to-one.

    Args:
        u: the average-velocity field.
        x0: states at ``grid[0]`` [batch, *event].
        cond: a pytree with leading axis batch, or None.
        grid: as in `few_step`.

    Returns:
        The states at ``grid[-1]`` [batch, *event] and the log-determinant [batch],
        -inf where the jumps lose a dimension.

    Raises:
        ValueError: as `few_step`.
    """
    x0 = start_state(x0)
    jumps = functools.partial(few_step, u, cond=cond, grid=grid)
    x, push = jax.linearize(jumps, x0)
    # The first axis runs over inputs: the transposed Jacobian of every row.
    columns = jax.lax.map(lambda e: flatten_event(push(_broadcast(e, x))), _basis(x))
    return x, jnp.linalg.slogdet(jnp.moveaxis(columns, 1, 0))[1]


def checked_divergence(
    field: VelocityField, x: State, t: Time, cond: Condition, probes: Probes | None
) -> tuple[State, PerExample]:
    """Return `velocity_and_divergence` of a field whose values are checked."""

    def checked(x: State, t: Time, cond: Condition = None, /) -> State:
        return field(x, t, cond).astype(x.dtype)

    return velocity_and_divergence(checked, x, t, cond, probes)


def _basis(x: State) -> Float[Array, "size *event"]:
    """Return the unit vectors of one event of ``x``."""
    event = x.shape[1:]
    return jnp.eye(math.prod(event), dtype=x.dtype).reshape((-1, *event))


def _broadcast(direction: Float[Array, "*event"], x: State) -> State:
    """Return ``direction`` once for every row of ``x``."""
    return jnp.broadcast_to(direction, x.shape)


def _worst_part(error: Float[Array, "batch packed"]) -> Float[Array, ""]:
    """Return the larger of the errors of the state and of the log-determinant.

    One mean over both would let the single entry of the log-determinant be off by the
    square root of the dimension.
    """
    return jnp.maximum(worst_row(error[:, :-1]), worst_row(error[:, -1:]))


def check_probes(probes: Probes | None, x: State) -> None:
    """Raise ValueError unless ``probes`` are None, or some in the dtype of ``x``."""
    if probes is None:
        return
    if not probes.shape[1]:
        raise ValueError(
            f"`probes` must hold one per row or more; got shape {probes.shape}"
        )
    if probes.dtype != x.dtype:
        raise ValueError(
            f"`probes` must have the dtype of the state, {x.dtype}; got {probes.dtype}"
        )
