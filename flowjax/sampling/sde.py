"""Stochastic sampling: the marginals of the flow, along random paths.

`sde` integrates ``dx = [v + g^2 / 2 score] dt + g dW`` from noise to data on a fixed
grid, with the solvers of diffrax that suit noise which does not depend on the state.
Call it under `jax.jit`. For steps with a density see `flowjax.sampling.transitions`.

The noise of a row depends on the key, the step and the row's place in the batch alone:
on one grid all solvers follow the same Brownian path.

References:
    Song et al. 2020, arXiv:2011.13456; Albergo et al. 2023, arXiv:2303.08797.
"""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array

from flowjax.contracts import checked
from flowjax.interpolants import Interpolant
from flowjax.sampling.diffusions import Diffusion, Rates, drift, rates_on, root
from flowjax.sampling.inputs import start_state
from flowjax.sampling.kernels import euler_maruyama
from flowjax.sampling.ode import OdeStats, finite_rows, how_it_ended, nan_unless
from flowjax.sampling.steps import plan_steps
from flowjax.sampling.transitions import GridOrSteps, LastStep, finish, forward_times
from flowjax.typing import Condition, PRNGKey, State, VelocityField

# Evaluations of the field per step. Other solvers are meant for noise that depends on
# the state, are one of these at a higher price, or converge slowly where g depends on
# time (SEA).
_EVALUATIONS: dict[type, int] = {diffrax.Euler: 1, diffrax.Heun: 2, diffrax.ShARK: 2}


@checked
def sde(
    key: PRNGKey,
    v: VelocityField,
    x0: State,
    *,
    interpolant: Interpolant,
    diffusion: Diffusion,
    cond: Condition = None,
    solver: diffrax.AbstractSolver | None = None,
    grid: GridOrSteps = 100,
    last_step: LastStep = "mean",
) -> tuple[State, OdeStats]:
    """Integrate ``dx = [v + g^2 / 2 score] dt + g dW`` and return the state at the end.

    The marginals are those of ``dx/dt = v`` for every diffusion. Where a diffusion is
    not finite at an end of the grid it is held; `flowjax.sampling.diffusions` says how.

    Args:
        key: typed random key.
        v: the velocity field; ``t`` reaches it as [batch], in the state's dtype.
        x0: states at the start [batch, *event]: noise where the grid starts at 0. They
            are kept in at least float32.
        interpolant: the path ``v`` belongs to, without gamma.
        diffusion: ``(t, c) -> g^2``, from `flowjax.sampling.diffusions`.
        cond: a pytree with leading axis batch, handed on to ``v``, or None.
        solver: `diffrax.ShARK` by default, of strong order 1.5 at two evaluations per
            step; or Heun (1 at two) or Euler (1 at one).
        grid: increasing times in [0, 1], known before tracing, or the number of equal
            steps from 0 to 1.
        last_step: what to do in the grid's last interval, see
            `flowjax.sampling.transitions.LastStep`. The default drops an amount of
            noise of first order in its length, and none to speak of where ``g`` is 0
            at the end.

    Returns:
        The states at the end [batch, *event], NaN where they are not finite, and the
        statistics, as of `flowjax.sampling.ode`. They have reverse-mode derivatives.

    Raises:
        ValueError: if shapes, times or options do not fit, or for another solver.

    References:
        Foster et al. 2023, arXiv:2210.17543, Eq. 6.1 (ShARK). Ma et al. 2024, SiT,
        arXiv:2401.08740 (the step to the mean at the end).
    """
    x = start_state(x0)
    times = forward_times(x.dtype, grid, last_step)
    solver = diffrax.ShARK() if solver is None else solver
    # diffrax's wrappers answer `isinstance` for what they wrap; their type does not.
    cost = _EVALUATIONS.get(type(solver))
    if cost is None:
        names = ", ".join(kind.__name__ for kind in _EVALUATIONS)
        raise ValueError(f"`solver` must be one of diffrax's {names}; got {solver}")
    noisy = times if last_step == "noisy" else times[:-1]
    if len(noisy) > 1:
        x = _march(key, v, x, noisy, interpolant, diffusion, cond, solver)
    nfe = cost * (len(noisy) - 1)
    if last_step != "noisy":
        kernel = euler_maruyama(interpolant, diffusion)
        x, nfe = finish(v, x, times[-2:], cond, kernel, last_step), nfe + 1
    finite = finite_rows(x)
    counts = (jnp.asarray(n, jnp.int32) for n in (nfe, len(times) - 1, 0))
    stats = how_it_ended(finite, diffrax.RESULTS.successful, *counts)
    return nan_unless(finite, x), stats


class GridNoise(diffrax.AbstractBrownianPath):
    """Brownian increments over the intervals of a grid, without a host callback.

    `diffrax.VirtualBrownianTree` checks times through one: programs with a callback are
    neither kept in JAX's persistent compilation cache nor exported. On a fixed grid no
    tree is needed, because a solver asks for whole intervals only.
    """

    key: PRNGKey
    times: Array
    like: jax.ShapeDtypeStruct
    levy_area: type = diffrax.SpaceTimeLevyArea

    @property
    def t0(self) -> Array:
        """The start of the grid."""
        return self.times[0]

    @property
    def t1(self) -> Array:
        """The end of the grid."""
        return self.times[-1]

    def evaluate(
        self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False
    ) -> Any:
        """Return ``W(t1) - W(t0)``, with its space-time Levy area if asked for."""
        middles = (self.times[:-1] + self.times[1:]) / 2
        index = jnp.searchsorted(middles, jnp.asarray(t0, middles.dtype))
        h = jnp.asarray(t1 - t0, self.like.dtype)

        def normal(index: Array) -> Array:
            key = jax.random.fold_in(self.key, index)
            return jax.random.normal(key, self.like.shape, self.like.dtype)

        increment = jnp.sqrt(h) * normal(index)
        if not use_levy:
            return increment
        # The area has its own keys, behind those of all the steps.
        area = jnp.sqrt(h / 12) * normal(index + len(middles))
        return diffrax.SpaceTimeLevyArea(dt=h, W=increment, H=area)


def _march(
    key: PRNGKey,
    v: VelocityField,
    x: State,
    times: np.ndarray,
    interpolant: Interpolant,
    diffusion: Diffusion,
    cond: Condition,
    solver: diffrax.AbstractSolver,
) -> State:
    """Return the state at the end of ``times``, each interval a step of ``solver``."""
    steps = plan_steps(x.dtype, solver, times)
    grid = jnp.asarray(times)
    rates_at = functools.partial(rates_on, grid, diffusion, interpolant)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    noise = GridNoise(key=key, times=grid, like=like)
    slope = functools.partial(_drift, v, interpolant, rates_at)
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(slope),
        diffrax.ControlTerm(functools.partial(_noise_level, rates_at), noise),
    )
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=steps.start,
        t1=steps.end,
        dt0=None,
        y0=x,
        args=cond,
        stepsize_controller=steps.controller,
        max_steps=steps.max_steps,
        throw=False,
    )
    assert solution.ys is not None
    return solution.ys[-1]


def _drift(
    v: VelocityField,
    interpolant: Interpolant,
    rates_at: Callable[[Array], Rates],
    t: Any,
    x: State,
    cond: Condition,
) -> State:
    """Evaluate the drift in diffrax's order of arguments."""
    time = jnp.broadcast_to(t, (len(x),))
    value = v(x, time, cond).astype(x.dtype)
    return drift(value, x, time, interpolant, rates_at(time).over_sigma)


def _noise_level(
    rates_at: Callable[[Array], Rates], t: Any, x: State, cond: Condition
) -> lineax.AbstractLinearOperator:
    """Return ``g(t)`` times the identity, as diffrax wants it."""
    g = root(rates_at(jnp.asarray(t, x.dtype)).squared)
    return lineax.DiagonalLinearOperator(jnp.full_like(x, g))
