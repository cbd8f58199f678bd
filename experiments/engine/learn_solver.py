"""Fine solutions of a run's ODE, and the solvers that are learned from them."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.engine.model import Guidance
from experiments.engine.run import Trained
from experiments.engine.sampling import Tuned
from experiments.engine.solver_files import Entry
from flowjax import sampling, times
from flowjax.sampling import bespoke, solver_search, solvers, step_choice
from flowjax.sampling.multistep import MultistepSolver, multistep

FINE = times.uniform_grid(100)
USES = ("choose", "held out", "learn", "costs")


class Batch(NamedTuple):
    """Noise, conditions (or None) and where the fine solution leads."""

    x0: Any
    cond: Any
    exact: Any


class Bench:
    """A run's velocity, compiled once for every use.

    Attributes:
        trained: the run.
    """

    def __init__(
        self, trained: Trained, guidance: float, tolerance: float, seed: int
    ) -> None:
        """Prepare, without computing anything.

        Raises:
            ValueError: if the run's field leaves no velocity for a solver to follow.
        """
        trained.need_velocity("a solver to follow")
        self.trained = trained
        self._guidance, self._seed = Guidance(guidance), seed
        steps = sampling.Adaptive(rtol=tolerance, atol=tolerance)
        few = dataclasses.replace(steps, max_steps=256)
        self._solve = jax.jit(partial(self._ode, sampling.ode, steps=steps))
        self._dense = jax.jit(partial(self._ode, sampling.ode_dense, steps=few))
        # The table is an argument: one compilation for all of a shape.
        self._run = jax.jit(
            lambda params, x0, cond, table: multistep(
                self.velocity(params), x0, table, cond=cond
            )
        )

    def velocity(self, params: Any) -> Any:
        """Return the (guided) velocity field."""
        return self.trained.model.field(params, self._guidance).velocity("a solver")

    def _ode(self, solve: Any, params: Any, x0: Any, cond: Any, **options: Any) -> Any:
        v = self.velocity(params)
        return solve(v, x0, cond=cond, **options)

    def noise(self, use: str, count: int, part: int = 0) -> tuple[Any, Any]:
        """Return noise and conditions, independent for every use and part."""
        key = jax.random.fold_in(jax.random.key(self._seed), USES.index(use))
        model = self.trained.model
        x0 = model.noise(jax.random.fold_in(key, part), count)
        named = self.trained.conditions.rows(np.arange(count))
        return x0, model.example.conditions.join(jax.tree.map(jnp.asarray, named))

    def draw(self, use: str, count: int) -> Batch:
        """Return noise and where it leads.

        Raises:
            FloatingPointError: if the fine solution fails.
        """
        x0, cond = self.noise(use, count)
        return Batch(x0, cond, self._checked(self._solve, x0, cond))

    @cached_property
    def paths(self) -> list[tuple[Any, Any]]:
        """Some fine solutions of 64 samples as functions of time, with conditions."""
        parts = (self.noise("learn", 64, part) for part in range(8))
        return [(self._checked(self._dense, x0, y), y) for x0, y in parts]

    def _checked(self, solve: Any, x0: Any, cond: Any) -> Any:
        solution, stats = solve(self.trained.params, x0, cond)
        if not stats.success:
            raise FloatingPointError(
                f"the fine solution failed ({stats.result}); choose another tolerance"
            )
        return solution

    @cached_property
    def costs(self) -> np.ndarray:
        """BOSS's costs on the uniform grid of 100 steps, of 128 samples."""
        x0, cond = self.noise("costs", 128)

        @jax.jit
        def measure(params: Any) -> Any:
            v = self.velocity(params)
            return step_choice.boss_costs(v, x0, FINE, cond=cond)

        return np.asarray(measure(self.trained.params))

    def error(self, entry: Entry, batch: Batch) -> float:
        """Return the root mean square distance to the fine solution, or infinity."""
        x0, params = batch.x0, self.trained.params
        if "jumps" in entry:
            model, sampler = self.trained.model, Tuned(entry)

            @jax.jit
            def jump(params: Any, x0: Any, cond: Any) -> Any:
                field = model.field(params, self._guidance)
                return sampler(field, jax.random.key(0), x0, cond)[0]

            x = jump(params, x0, batch.cond)
        else:
            table = jax.tree.map(partial(jnp.asarray, dtype=x0.dtype), entry["solver"])
            x = self._run(params, x0, batch.cond, table)
        distance = float(jnp.sqrt(jnp.mean((x - batch.exact) ** 2)))
        return distance if np.isfinite(distance) else float("inf")


Learner = Callable[..., Iterator[tuple[str, MultistepSolver]]]
"""``(bench, nfe, *, steps) -> pairs of a description and a solver``."""


def choose_steps(
    bench: Bench, nfe: int, *, steps: int
) -> Iterator[tuple[str, MultistepSolver]]:
    """Yield Euler and Adams-Bashforth steps on BOSS's grid."""
    if nfe < len(FINE):
        grid = step_choice.boss_grid(FINE, bench.costs, nfe)
        yield "euler", solvers.euler(grid)
        if nfe > 1:
            yield "adams-bashforth 2", solvers.adams_bashforth(grid)


def learn_variables(
    bench: Bench, nfe: int, *, steps: int
) -> Iterator[tuple[str, MultistepSolver]]:
    """Yield Bespoke solvers."""
    orders: tuple[tuple[Literal[1, 2], str], ...] = ((1, "euler"), (2, "midpoint"))
    for order, base in orders:
        if nfe % order == 0:
            loss = partial(bespoke.bespoke_loss, order=order)
            params = fit(bench, loss, bespoke.bespoke_identity(nfe), steps=steps)
            yield base, bespoke.bespoke_solver(params, order=order)


def search(
    bench: Bench, nfe: int, *, steps: int
) -> Iterator[tuple[str, MultistepSolver]]:
    """Yield searched solvers."""
    grid = times.uniform_grid(nfe)
    start = solver_search.search_start(grid, order=2 if nfe > 1 else 1)
    params = fit(bench, solver_search.search_loss, start, steps=steps)
    yield "from adams-bashforth 2", solver_search.searched_solver(params)


LEARNERS: dict[str, Learner] = {
    "boss": choose_steps,
    "bespoke": learn_variables,
    "search": search,
}


def fit(
    bench: Bench,
    loss: Callable[..., Any],
    params: Any,
    *,
    steps: int,
    rate: float = 0.02,
) -> Any:
    """Return the parameters after steps of Adam that fall to 0 along a cosine."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
    )

    @jax.jit
    def step(
        params: Any, state: Any, weights: Any, path: Any, cond: Any
    ) -> tuple[Any, Any]:
        v = bench.velocity(weights)

        def objective(params: Any) -> Any:
            return loss(params, v, path, cond=cond).mean()

        updates, state = optimizer.update(jax.grad(objective)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for k in range(steps):
        path, cond = bench.paths[k % len(bench.paths)]
        params, state = step(params, state, bench.trained.params, path, cond)
    return params
