"""How near each method comes to the exact flow map of a mixture on the line.

    python -m benchmarks.mixture_maps --rows rows.json
    python -m benchmarks.mixture_maps --rows rows.json --steps 300 --only LSD

An `MLP`, Adam with a cosine schedule, the averaged parameters evaluated. In one
dimension the flow map is known, so every sample is compared with where its own noise
should have gone, on 2000 quantiles of the noise. One recipe for all, not tuned: a check
that nothing is broken, and of what is biased by design, not a ranking.

A row is a method of `experiments.methods` with options; model and road are those of an
experiment. A method whose further steps draw fresh noise is compared in one step only.

A finished training is one row of the JSON file; a run that was interrupted continues.
The rows are in `benchmarks.mixture_members`.
"""

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array

from benchmarks.mixture_members import LAW, LINEAR, ROWS, to_data
from experiments.data.points import Mixture
from experiments.engine.experiment import Experiment, Training
from experiments.engine.loop import make_model, open_teacher
from experiments.engine.model import Model
from experiments.engine.road import make_loss, make_prepare
from experiments.language.sentence import Use, use
from experiments.methods.few_steps import euler_steps, restarts
from flowjax import analytic, interpolants, metrics, sampling
from flowjax.fields import euler_step
from flowjax.networks import MLP
from flowjax.times import uniform_grid
from flowjax.training import LossFunction, ema, make_step
from flowjax.training.step import Prepare
from flowjax.typing import PRNGKey, VelocityField

FIGURES = ("1-step RMS", "2-step RMS", "4-step RMS", "1-step W1", "64-Euler W1")

# Quantiles of the noise: the same start for every field.
NOISE = jax.scipy.stats.norm.ppf((jnp.arange(2000.0) + 0.5) / 2000)[:, None]


def adam(steps_in_all: object, *, learning_rate: float = 2e-3) -> Any:
    """Adam whose learning rate falls along a cosine; nothing is clipped."""
    assert isinstance(steps_in_all, int)
    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps_in_all))


def model_of(method: Use, steps: int, batch: int, width: int) -> Model:
    """Return the model of a row: one recipe, but for what a method can't do without."""
    recipe = method.thing.recipe
    network = use(MLP, width=width, depth=3)
    # One that samples by jumps of a velocity needs a network that sees one time.
    if "times" in recipe.get("network", {}):
        network = network.vary(times=recipe["network"]["times"])
    return make_model(
        Experiment(
            data=use(Mixture),
            path=recipe.get("path", use(interpolants.linear)),
            method=method,
            network=network,
            optimizer=use(adam),
            ema=use(ema.half_life, steps=100.0, ramp_up=0.1),
            training=use(Training, steps=steps, batch_size=batch),
        )
    )


def road(model: Model) -> tuple[Prepare, LossFunction]:
    """Return the road of a batch; pairs are drawn afresh at every step."""
    usual = make_prepare(model)

    def paired(key: PRNGKey, batch: Any) -> Any:
        x0 = model.noise(jax.random.split(key)[0], len(batch["index"]))
        return usual(key, {"x0": x0, "x1": to_data(x0)})

    prepare = paired if model.method.from_pairs else usual
    return prepare, make_loss(model, open_teacher(model), None)


def train(model: Model) -> Callable[[int], Any]:
    """Return ``seed -> averaged parameters``, compiled once for all seeds."""
    prepare, loss = road(model)
    decay, training = model.experiment.ema.build(), model.experiment.training
    step = make_step(loss, model.optimizer(), ema_decay=decay, prepare=prepare)
    batch = {"index": jnp.arange(training["batch_size"])}

    @jax.jit
    def run(seed: Array) -> Any:
        state = model.init(jax.random.key(seed))
        steps = training["steps"]
        state, _ = jax.lax.scan(lambda s, _: step(s, batch), state, length=steps)
        return state.ema_params

    return lambda seed: run(jnp.asarray(seed))


def evaluate(model: Model, params: Any) -> dict[str, float]:
    """Return the figures that mean something for the method."""
    functions, method = model.functions(params), model.method

    def along(few_step: Any) -> Callable[[np.ndarray], Array]:
        start = (jax.random.key(0), functions, lambda field: field, NOISE, None)
        return lambda grid: few_step(*start, grid, model.path)[0]

    # After its first jump a restart has fresh noise: no map of the start any more.
    counts = (1,) if method.few_step is restarts else (1, 2, 4)
    slow = along(euler_steps) if method.velocity else None
    return compare(along(method.few_step), counts, slow)


def compare(
    few: Callable[[np.ndarray], Array],
    counts: Sequence[int],
    slow: Callable[[np.ndarray], Array] | None,
) -> dict[str, float]:
    """Compare samples with the exact map.

    Args:
        few: ``grid -> samples`` in few steps.
        counts: of the steps to take.
        slow: ``grid -> samples`` along the velocity; None where there is none.
    """
    exact, figures = to_data(NOISE), {}
    for n in counts:
        x1 = few(uniform_grid(n))
        figures[f"{n}-step RMS"] = float(jnp.sqrt(jnp.square(x1 - exact).mean()))
        if n == 1:
            figures["1-step W1"] = _wasserstein(x1, exact)
    if slow is not None:
        figures["64-Euler W1"] = _wasserstein(slow(uniform_grid(64)), exact)
    return figures


def exact_velocity(v: VelocityField) -> dict[str, float]:
    """Return what an exact velocity and Euler steps reach: the floor of many."""

    def steps(grid: np.ndarray) -> Array:
        return sampling.few_step(euler_step(v), NOISE, grid=grid)

    return compare(steps, (1, 2, 4), steps)


def _wasserstein(x: Array, y: Array) -> float:
    """Return the distance of order 1, NaN after a training that diverged."""
    if not bool(jnp.isfinite(x).all()):
        return math.nan
    return float(metrics.wasserstein_1d(x[:, 0], y[:, 0]))


def markdown(name: str, rows: list[dict[str, float]]) -> str:
    """Return one line: means over the seeds, and the first figure of each."""

    def cell(figure: str) -> str:
        values = [row[figure] for row in rows if figure in row]
        return f"{np.mean(values):.3f}" if values else "-"

    each = ", ".join(f"{row[FIGURES[0]]:.3f}" for row in rows)
    return f"| {name} | {' | '.join(map(cell, FIGURES))} | {each} |"


def main(
    rows: Path,
    steps: int = 3000,
    seeds: tuple[int, ...] = (0, 1),
    batch: int = 512,
    width: int = 128,
    only: tuple[str, ...] = (),
) -> None:
    """Train what is not yet in ``rows`` and print the table.

    Args:
        rows: JSON file of finished rows.
        steps: optimiser steps of each training.
        seeds: one training for each.
        batch: rows per step, a multiple of 16.
        width: of the network.
        only: names of rows; none: all.
    """
    done = json.loads(rows.read_text()) if rows.is_file() else {}
    print(f"jax {jax.__version__}, Python {platform.python_version()}, float32")
    print(f"{steps} steps of {batch} rows, width {width}, seeds {seeds}\n")
    print(f"| objective | {' | '.join(FIGURES)} | {FIGURES[0]} by seed |")
    print("|---" * (len(FIGURES) + 2) + "|")
    floor = exact_velocity(analytic.velocity(LAW, LINEAR))
    print(markdown("exact velocity, Euler", [floor]))
    for name in only or ROWS:
        model, found = model_of(ROWS[name], steps, batch, width), []
        fit = train(model)
        for seed in seeds:
            label = f"{name} {steps} {batch} {width} {seed}"
            if label not in done:
                start = time.perf_counter()
                done[label] = evaluate(model, fit(seed))
                done[label]["seconds"] = time.perf_counter() - start
                partly = rows.with_suffix(".partly")
                partly.write_text(json.dumps(done, indent=1))
                partly.replace(rows)
            found.append(done[label])
        print(markdown(name, found), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
