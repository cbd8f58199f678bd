"""Ways to draw samples, by name in `SAMPLERS`, and what they are made of."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
from jaxtyping import Array, Int

from experiments.language.sentence import Use, table, use
from experiments.methods.base import Functions, Guide, Method
from flowjax import sampling, times
from flowjax.fields import diagonal
from flowjax.guidance import rules
from flowjax.interpolants import Interpolant
from flowjax.sampling import diffusions, solvers
from flowjax.sampling.multistep import MultistepSolver
from flowjax.typing import Condition, PRNGKey, State, VelocityField


@dataclasses.dataclass(frozen=True)
class Field:
    """A trained field, ready to be sampled.

    Attributes:
        method: how it was learned.
        functions: what its modules mean, with parameters.
        guide: from each of these functions to the guided one.
        cost: evaluations of the network per guided evaluation.
        path: the interpolant that it was learned on.
    """

    method: Method
    functions: Functions
    guide: Guide
    cost: int
    path: Interpolant

    def velocity(self, purpose: str) -> VelocityField:
        """Return the guided velocity.

        Raises:
            ValueError: if the method leaves none.
        """
        need_velocity(self.method, purpose)
        return diagonal(self.guide(self.functions.u))


def need_velocity(method: Method, purpose: str) -> None:
    """Raise ValueError unless the method leaves a velocity at every time."""
    if not method.velocity:
        name = type(method).__name__
        raise ValueError(f"{name} leaves no velocity for {purpose}")


Count: TypeAlias = int | Int[Array, ""]
"""Evaluations of the network, known before or counted on the way."""


class Sampler(Protocol):
    """A way to draw samples; traceable."""

    def __call__(
        self, field: Field, key: PRNGKey, x0: State, cond: Condition, /
    ) -> tuple[State, Count]:
        """Return the samples and the network's evaluations."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jumps:
    """Few steps in the method's own way, one evaluation each.

    Attributes:
        grid: where the steps lie.
    """

    grid: Use = use(times.uniform_grid, steps=1)

    def __call__(
        self, field: Field, key: PRNGKey, x0: State, cond: Condition, /
    ) -> tuple[State, Count]:
        """Return the samples and the network's evaluations."""
        grid = self.grid.build(interpolant=field.path)
        few = field.method.few_step
        x, count = few(key, field.functions, field.guide, x0, cond, grid, field.path)
        return x, field.cost * count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ode:
    """The adaptive solver Tsit5 along the velocity.

    Attributes:
        tolerance: rtol and atol.
    """

    tolerance: float = 1e-5

    def __call__(
        self, field: Field, key: PRNGKey, x0: State, cond: Condition, /
    ) -> tuple[State, Count]:
        """Return the samples and the network's evaluations."""
        v, error = field.velocity("the ODE"), self.tolerance
        steps = sampling.Adaptive(rtol=error, atol=error)
        x, stats = sampling.ode(v, x0, cond=cond, steps=steps)
        return x, field.cost * stats.nfe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sde:
    """The same marginals along random paths, two evaluations per step (ShARK).

    Attributes:
        grid: where the steps lie.
        diffusion: how much noise is added on the way.
    """

    grid: Use = use(times.uniform_grid, steps=50)
    diffusion: Use = use(diffusions.sigma)

    def __call__(
        self, field: Field, key: PRNGKey, x0: State, cond: Condition, /
    ) -> tuple[State, Count]:
        """Return the samples and the network's evaluations."""
        x, stats = sampling.sde(
            key,
            field.velocity("the SDE"),
            x0,
            interpolant=field.path,
            diffusion=self.diffusion.build(),
            cond=cond,
            grid=self.grid.build(interpolant=field.path),
        )
        return x, field.cost * stats.nfe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multistep:
    """A solver that is a table of numbers, along the velocity.

    Attributes:
        solver: which one, on which grid.
    """

    solver: Use = use(solvers.heun, grid=use(times.uniform_grid, steps=10))

    def __call__(
        self, field: Field, key: PRNGKey, x0: State, cond: Condition, /
    ) -> tuple[State, Count]:
        """Return the samples and the network's evaluations."""
        return _along(self.solver.build(interpolant=field.path), field, x0, cond)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a solver's file holds: a solver, or times to jump."""

    entry: dict[str, Any]

    def __call__(
        self, field: Field, key: PRNGKey, x0: State, cond: Condition, /
    ) -> tuple[State, Count]:
        """Return the samples and the network's evaluations."""
        if "solver" in self.entry:
            return _along(self.entry["solver"], field, x0, cond)
        grid = self.entry["jumps"]
        u = field.guide(field.functions.u)
        x = sampling.few_step(u, x0, cond=cond, grid=grid)
        return x, field.cost * (len(grid) - 1)


def _along(
    solver: MultistepSolver, field: Field, x0: State, cond: Condition
) -> tuple[State, int]:
    x = sampling.multistep(field.velocity("a solver"), x0, solver, cond=cond)
    return x, field.cost * len(solver.times)


SAMPLERS = table(Jumps, Ode, Sde, Multistep)

GRIDS: dict[str, Callable[..., np.ndarray]] = table(
    times.uniform_grid,
    times.shifted_grid,
    times.power_grid,
    times.circular_grid,
    times.log_snr_grid,
    times.edm_grid,
)

SOLVERS = table(
    solvers.euler,
    solvers.midpoint,
    solvers.heun,
    solvers.ralston,
    solvers.rk4,
    solvers.fireflow,
    solvers.pseudo_corrector,
    solvers.adams_bashforth,
    solvers.dpm_solver,
    solvers.unipc,
)

DIFFUSIONS = table(
    diffusions.zero,
    diffusions.constant,
    diffusions.sigma,
    diffusions.linearly_decreasing,
    diffusions.memoryless,
    diffusions.decreasing,
    diffusions.increasing_decreasing,
    diffusions.quartic,
    diffusions.flow_grpo,
    diffusions.dance_grpo,
)

RULES = table(rules.extrapolation, rules.optimal_scale, rules.rescaled)
