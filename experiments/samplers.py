"""Sampling from a run folder: named samplers over one trained field."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build, choices, solver_files
from experiments.choices import Guidance
from experiments.members import MEMBERS
from experiments.run import Trained
from flowjax import guidance, interpolants, objectives, sampling, times
from flowjax.fields import diagonal, euler
from flowjax.sampling.multistep import multistep


class Samples(NamedTuple):
    """What one sampler gave.

    Attributes:
        x: samples [n, *event].
        evaluations: network evaluations per sample; the adaptive solver's are the
            largest over the batches.
    """

    x: np.ndarray
    evaluations: int


Sampler = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""``(params, key, x0, labels) -> (x1, evaluations)``, traceable."""


NO_GUIDANCE = Guidance()


def jumps(
    trained: Trained, steps: int | np.ndarray, guide: Guidance = NO_GUIDANCE
) -> Sampler:
    """Return the sampler of one evaluation per step, ``steps`` equal ones or a grid.

    How a step is taken is the member's: jumps of the flow map, Euler steps along the
    velocity, or jumps to the data with fresh noise in between.
    """
    grid = times.uniform_grid(steps) if isinstance(steps, int) else steps
    kind = MEMBERS[trained.config.objective.name].sampler

    def sample(params: Any, key: Any, x0: Any, labels: Any) -> tuple[Any, Any]:
        u, cost = guided_field(trained, params, guide)
        if kind == "euler":
            u = euler(diagonal(u))
        if kind == "acceleration":
            functions = trained.functions(params)
            v0 = functions["velocity"](x0, jnp.zeros(len(x0)), labels)
            field = objectives.constant_acceleration_field(
                functions["acceleration"], v0
            )
            return sampling.few_step(field, x0, cond=labels, grid=grid), len(grid)
        if kind == "restart":
            path = run_path(trained)
            x = sampling.restart(
                key, u, x0, cond=labels, grid=grid, gamma=1.0, interpolant=path
            )
        else:
            x = sampling.few_step(u, x0, cond=labels, grid=grid)
        return x, cost * (len(grid) - 1)

    return sample


def adaptive(
    trained: Trained, tolerance: float, guide: Guidance = NO_GUIDANCE
) -> Sampler:
    """Return the sampler that integrates the velocity u(x, t, t) with Tsit5."""

    def sample(params: Any, key: Any, x0: Any, labels: Any) -> tuple[Any, Any]:
        u, cost = guided_field(trained, params, guide)
        x, stats = sampling.ode(
            diagonal(u), x0, cond=labels, rtol=tolerance, atol=tolerance
        )
        return x, cost * stats.nfe

    return sample


def tuned(
    trained: Trained, entry: solver_files.Entry, guide: Guidance = NO_GUIDANCE
) -> Sampler:
    """Return the sampler of a file of `experiments.solver_files`."""

    def sample(params: Any, key: Any, x0: Any, labels: Any) -> tuple[Any, Any]:
        u, cost = guided_field(trained, params, guide)
        if "jumps" in entry:
            grid = entry["jumps"]
            x = sampling.few_step(u, x0, cond=labels, grid=grid)
            return x, cost * (len(grid) - 1)
        solver = entry["solver"]
        x = multistep(diagonal(u), x0, solver, cond=labels)
        return x, cost * len(solver.times)

    return sample


def on_grid(
    trained: Trained,
    method: str,
    grid: np.ndarray,
    diffusion: choices.DiffusionName,
    guide: Guidance,
) -> Sampler:
    """Return a named method on a grid: jumps, sde, or one of `choices.SOLVERS`.

    Raises:
        ValueError: if the run leaves no velocity for the method to follow.
    """
    if method == "jumps":
        return jumps(trained, grid, guide)
    name = trained.config.objective.name
    if not MEMBERS[name].velocity:
        raise ValueError(f"{name} leaves no velocity for {method} to follow")
    if method == "sde":
        return stochastic(trained, grid, diffusion, guide)
    solver = choices.SOLVERS[method].on(grid, run_path(trained))
    return tuned(trained, {"name": method, "solver": solver}, guide)


def stochastic(
    trained: Trained,
    grid: np.ndarray,
    diffusion: choices.DiffusionName,
    guide: Guidance = NO_GUIDANCE,
) -> Sampler:
    """Return the sampler of the SDE with a diffusion and ShARK's two evaluations."""
    path = run_path(trained)

    def sample(params: Any, key: Any, x0: Any, labels: Any) -> tuple[Any, Any]:
        u, cost = guided_field(trained, params, guide)
        x, stats = sampling.sde(
            key,
            diagonal(u),
            x0,
            interpolant=path,
            diffusion=choices.DIFFUSIONS[diffusion](),
            cond=labels,
            grid=grid,
        )
        return x, cost * stats.nfe

    return sample


def run_path(trained: Trained) -> interpolants.Interpolant:
    """Return the interpolant of a run."""
    return getattr(interpolants, trained.config.objective.interpolant)()


def guided_field(
    trained: Trained, params: Any, guide: Guidance = NO_GUIDANCE
) -> tuple[Any, int]:
    """Return the (guided) field and its network evaluations per call."""
    u = trained.functions(params)["field"]
    if trained.config.network.guidance:
        if guide._replace(scale=1.0) != NO_GUIDANCE:
            raise ValueError(
                "this run's network knows the guidance scale; a rule or an interval "
                "can't be chosen beside it"
            )
        return build.at_guidance(u, guide.scale), 1
    if guide.scale == 1.0:
        return u, 1
    if trained.num_classes is None:
        raise ValueError("guidance needs labels, and this run was trained without")
    null = trained.num_classes
    return guidance.classifier_free(u, null=null, **guide.options()), 2


def draw(
    trained: Trained,
    sampler: Sampler,
    labels: Sequence[int] | np.ndarray | None,
    *,
    count: int,
    seed: int,
    batch_size: int,
) -> Samples:
    """Draw ``count`` samples, ``batch_size`` at a time.

    The noise that sample i starts from depends on the seed and i alone: samplers are
    compared on the same noise, whatever the batch size. A sampler that draws more on
    its way draws it per batch.

    Raises:
        ValueError: if a label is out of range or the run has none.
        FloatingPointError: if a sample is not finite, as after a failed solve.
    """
    if labels is not None:
        labels = np.asarray(labels, np.int32)
        if trained.num_classes is None:
            raise ValueError("this run was trained without labels; got labels")
        if not ((labels >= 0) & (labels < trained.num_classes)).all():
            raise ValueError(
                f"labels must lie in 0..{trained.num_classes - 1}; got {labels}"
            )
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(
        jnp.arange(count)
    )
    normal = jax.jit(jax.vmap(partial(jax.random.normal, shape=trained.event)))
    compiled = jax.jit(sampler)
    parts, evaluations = [], 0
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        cond = None if labels is None else jnp.asarray(labels[rows])
        key = jax.random.fold_in(keys[start], 1)
        x, nfe = compiled(trained.params, key, normal(keys[rows]), cond)
        if not np.isfinite(x).all():
            raise FloatingPointError(
                f"samples {rows.start} to {rows.stop - 1} are not all finite: the "
                "solver failed or the network diverged"
            )
        parts.append(np.asarray(x))
        evaluations = max(evaluations, int(nfe))
    return Samples(np.concatenate(parts), evaluations)
