"""Bespoke solvers: Euler and midpoint steps in learned variables.

A change of variables ``y(r) = s_r x(t_r)`` of scale and time, different for every step,
is learned for one field so that few base steps in (y, r) come close to its solution.

References:
    Shaul et al. 2023, Bespoke Solvers for Generative Flow Models, arXiv:2310.19075.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.interpolants import derivative
from flowjax.sampling import solvers
from flowjax.sampling.multistep import MultistepSolver, multistep
from flowjax.sampling.solver_search import (
    Reference,
    reference_points,
    softmax_times,
)
from flowjax.times import uniform_grid
from flowjax.typing import (
    Condition,
    Count,
    PerExample,
    Positive,
    State,
    TimeFunction,
    VelocityField,
)


class ScaleTime(NamedTuple):
    """A change of variables ``y(r) = s_r x(t_r)`` at the points r_0 < ... < r_n.

    Attributes:
        times: ``t_r`` [points], n + 1 of them.
        time_rates: its derivative in r at the first n points [n].
        scales: ``s_r``, positive [points].
        scale_rates: its derivative in r at the first n points [n].
    """

    times: Float[Array, "points"]
    time_rates: Float[Array, "n"]
    scales: Float[Array, "points"]
    scale_rates: Float[Array, "n"]


@checked
def change_variables(base: MultistepSolver, change: ScaleTime) -> MultistepSolver:
    """Return the solver that follows ``y(r) = s_r x(t_r)`` with ``base``, in x and t.

    From ``dy/dr = (s'/s) y + t' s v(y / s, t)``, with a, b the base's state and slope::

        a y + b dy/dr = (a s + b s') x + b t' s v(x, t)
        x_{k+1} = (s_k / s_{k+1}) scale_k x_k + sum_j weights_kj e_{k-j} / s_{k+1}

    Args:
        base: a solver of n evaluations in the variables (y, r).
        change: at the base's points: its n times and its end.

    Returns:
        A solver of n evaluations. It has the order of ``base`` where ``change`` samples
        smooth functions and their derivatives.

    Raises:
        ValueError: if the shapes do not fit.
    """
    n = len(base.times)
    shapes = [jnp.shape(leaf) for leaf in change]
    if shapes != [(n + 1,), (n,), (n + 1,), (n,)]:
        raise ValueError(
            f"a change for {n} evaluations needs shapes ({n + 1},), ({n},), "
            f"({n + 1},), ({n},); got {', '.join(map(str, shapes))}"
        )
    dtype = change.times.dtype
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), base)
    here, ahead = change.scales[:-1], change.scales[1:]
    return MultistepSolver(
        times=change.times[:-1],
        state=base.state * here + base.slope * change.scale_rates,
        slope=base.slope * change.time_rates * here,
        scale=base.scale * here / ahead,
        weights=base.weights / ahead[:, None],
    )


class Bespoke(NamedTuple):
    """The free parameters of a Bespoke solver of n evaluations; zeros: none changed.

    Attributes:
        time_logits: the steps between the times are their softmax [n].
        log_time_rates: ``log t'`` [n].
        log_scales: ``log s`` at all points but the first, where ``s = 1`` [n].
        scale_rates: ``s'`` [n].
    """

    time_logits: Float[Array, "n"]
    log_time_rates: Float[Array, "n"]
    log_scales: Float[Array, "n"]
    scale_rates: Float[Array, "n"]


@checked
def bespoke_identity(evaluations: Count) -> Bespoke:
    """Return the parameters with which a Bespoke solver is its base solver.

    Raises:
        ValueError: if ``evaluations`` is less than 1.
    """
    return Bespoke(*(jnp.zeros(evaluations) for _ in Bespoke._fields))


@checked
def bespoke_sampled(
    time: TimeFunction, scale: TimeFunction, evaluations: Count
) -> Bespoke:
    """Return the parameters of a change ``y(r) = scale(r) x(time(r))``.

    Another path through the same data and noise is such a change: from the linear path
    to ``(alpha, sigma)`` it is ``scale = alpha + sigma``, ``time = alpha / scale``.

    Args:
        time: increasing from 0 at r=0 to 1 at r=1.
        scale: positive; a constant factor is of no account.
        evaluations: n; the functions are sampled at ``k / n``.

    Raises:
        ValueError: if ``evaluations`` is less than 1 or ``time`` does not run from 0
            to 1, where that is known.
    """
    identity = bespoke_identity(evaluations)
    points = jnp.linspace(0.0, 1.0, evaluations + 1)
    t, s = time(points), scale(points)
    if not isinstance(t, Tracer):
        ends = np.asarray(t)[[0, -1]]
        if not np.allclose(ends, (0, 1), atol=1e-5):
            raise ValueError(f"`time` must run from 0 to 1; got {ends.tolist()}")
    return identity._replace(
        time_logits=jnp.log(jnp.diff(t)),
        log_time_rates=jnp.log(derivative(time, points)[:-1]),
        log_scales=jnp.log(s[1:] / s[0]),
        scale_rates=derivative(scale, points)[:-1] / s[0],
    )


@checked
def scale_time(params: Bespoke) -> ScaleTime:
    """Return the change of variables that the parameters stand for."""
    scales = jnp.exp(params.log_scales)
    return ScaleTime(
        softmax_times(params.time_logits),
        jnp.exp(params.log_time_rates),
        jnp.concatenate([jnp.ones_like(scales[:1]), scales]),
        params.scale_rates,
    )


@checked
def bespoke_solver(params: Bespoke, *, order: Literal[1, 2] = 2) -> MultistepSolver:
    """Return the Bespoke solver over Euler (order 1) or midpoint steps (order 2).

    `change_variables` of the base with uniform steps in r. All four numbers per point
    are free, so that consistency is learned, not built in: with ``s`` constant and
    ``s' != 0`` the steps follow another equation.

    Args:
        params: see `Bespoke`; their number n is that of evaluations.
        order: of the base solver; 2 needs an even n.

    Raises:
        ValueError: if shapes or ``order`` do not fit.
    """
    n = _check_bespoke(params, order)
    base = solvers.euler if order == 1 else solvers.midpoint
    return change_variables(base(uniform_grid(n // order)), scale_time(params))


@checked
def bespoke_loss(
    params: Bespoke,
    field: VelocityField,
    reference: Reference,
    *,
    cond: Condition = None,
    order: Literal[1, 2] = 2,
    lipschitz: Positive = 1.0,
) -> PerExample:
    """Return a bound of the error at t=1 from the errors of the single steps.

    With ``d_i`` the root mean square over the event of the error of step i from the
    reference at its start, the error obeys ``e_i <= d_i + L_i e_{i-1}``, hence::

        e_n <= sum_i d_i prod_{j > i} L_j
        L = (s_i / s_{i+1}) (1 + h l_i)                         order 1
        L = (s_i / s_{i+1}) (1 + h l_m (1 + h l_i / 2))         order 2, m between
        l_r = |s'_r| / s_r + t'_r lipschitz

    All steps are evaluated at once, each from the reference.

    Args:
        params: to be learned.
        field: the velocity field; gradients flow through it to ``params`` alone where
            its own parameters are not differentiated.
        reference: the solution through the batch's noise.
        cond: of the field.
        order: as in `bespoke_solver`.
        lipschitz: constant of ``field`` in x. A bound only where it is large enough;
            it weighs early steps against late ones.

    Returns:
        The bound [batch].

    Raises:
        ValueError: if shapes or ``order`` do not fit.
    """
    solver, change = bespoke_solver(params, order=order), scale_time(params)
    points = reference_points(field, reference, change.times[::order], cond)
    rows = jax.tree.map(lambda a: a.reshape((-1, order, *a.shape[1:])), solver)

    def step(x: State, row: MultistepSolver) -> State:
        return multistep(field, x, row, cond=cond)

    local = _root_mean_square(jax.vmap(step)(points[:-1], rows) - points[1:])
    growth = _growth(change, order, lipschitz).astype(local.dtype)
    later = jnp.concatenate([growth[1:], jnp.ones_like(growth[:1])])
    return (jnp.cumprod(later[::-1])[::-1, None] * local).sum(0)


def _growth(change: ScaleTime, order: int, lipschitz: float) -> Float[Array, "steps"]:
    """Return the Lipschitz constant of every step."""
    h = order / len(change.time_rates)
    field = jnp.abs(change.scale_rates) / change.scales[:-1]
    field = (field + change.time_rates * lipschitz).reshape((-1, order))
    inner = 1 + h * field[:, 0]
    if order == 2:
        inner = 1 + h * field[:, 1] * (1 + h / 2 * field[:, 0])
    scales = change.scales[::order]
    return scales[:-1] / scales[1:] * inner


def _root_mean_square(
    x: Float[Array, "step batch *event"],
) -> Float[Array, "step batch"]:
    square = jnp.square(x).reshape((*x.shape[:2], -1)).mean(-1)
    # A step without error has the gradient 0, not 0 / 0.
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _check_bespoke(params: Bespoke, order: int) -> int:
    """Return the number of evaluations."""
    n = len(params.time_logits)
    if n < 1 or n % order:
        raise ValueError(
            f"`params` of a Bespoke solver of order {order} must have a positive "
            f"multiple of {order} evaluations; got {n}"
        )
    return n
