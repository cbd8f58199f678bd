"""How near each objective comes to the exact flow map of a mixture on the line.

    python -m benchmarks.mixture_maps --rows rows.json
    python -m benchmarks.mixture_maps --rows rows.json --steps 300 --only LSD

An `MLP`, Adam with a cosine schedule, the averaged parameters evaluated. In one
dimension the flow map is known, so every sample is compared with where its own noise
should have gone, on 2000 quantiles of the noise. One recipe for all, not tuned: a check
that nothing is broken, and of what is biased by design, not a ranking.

A finished training is one row of the JSON file; a run that was interrupted continues.
The members are in `benchmarks.mixture_members`.
"""

import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array

from benchmarks.mixture_members import (
    DEVIATION,
    FLOW_MAP,
    MEMBERS,
    MIXTURE,
    VELOCITY,
    Draw,
    Member,
)
from flowjax import analytic, metrics, objectives, sampling, times
from flowjax.fields import diagonal, euler
from flowjax.networks import MLP
from flowjax.training import ema, init_state, make_step

FIGURES = ("1-step RMS", "2-step RMS", "4-step RMS", "1-step W1", "64-Euler W1")


def train(member: Member, steps: int, batch: int, width: int) -> Callable[[int], Any]:
    """Return ``seed -> field``, compiled once for all seeds."""
    network: Any = MLP(width=width, depth=3)

    def loss(params: Any, key: Any, index: Any, state: Any) -> Any:
        key_source, key_data, key = jax.random.split(key, 3)
        draw = Draw(
            partial(network.apply, params),
            partial(network.apply, state.ema_params),
            jax.random.normal(key_source, (batch, 1)),
            analytic.sample(key_data, MIXTURE, batch),
            key,
            state.step,
            steps,
        )
        return member.loss(draw), {}

    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    step = make_step(loss, optimizer, ema_decay=ema.half_life(100, ramp_up=0.1))
    index, zero = jnp.arange(batch), jnp.zeros((1,))

    @jax.jit
    def run(seed: Array) -> Any:
        key_params, key_training = jax.random.split(jax.random.key(seed))
        params = network.init(key_params, jnp.zeros((1, 1)), zero, zero)
        state = init_state(key_training, params, optimizer)
        state, _ = jax.lax.scan(lambda s, _: step(s, index), state, length=steps)
        return state.ema_params

    return lambda seed: partial(network.apply, run(jnp.asarray(seed)))


def evaluate(u: Any, sampler: str, has_diagonal: bool) -> dict[str, float]:
    """Return the figures that mean something for this sampler."""
    # Quantiles of the noise: the same start for every field.
    x0 = jax.scipy.stats.norm.ppf((jnp.arange(2000.0) + 0.5) / 2000)[:, None]
    exact = FLOW_MAP(x0, jnp.zeros(2000), jnp.ones(2000))
    figures, start, field = {}, x0, u
    if sampler == "angle":
        field = objectives.trigonometric_field(u, sigma_data=DEVIATION)
        start = DEVIATION * x0
    elif sampler == "euler":
        field = euler(diagonal(u))
    for n in (1,) if sampler in ("one", "angle") else (1, 2, 4):
        x1 = sampling.few_step(field, start, grid=times.uniform_grid(n))
        figures[f"{n}-step RMS"] = float(jnp.sqrt(jnp.square(x1 - exact).mean()))
        if n == 1:
            figures["1-step W1"] = _wasserstein(x1, exact)
    if has_diagonal:
        x1 = sampling.few_step(euler(diagonal(u)), x0, grid=times.uniform_grid(64))
        figures["64-Euler W1"] = _wasserstein(x1, exact)
    return figures


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
        only: names of members; none: all.
    """
    done = json.loads(rows.read_text()) if rows.is_file() else {}
    print(f"jax {jax.__version__}, Python {platform.python_version()}, float32")
    print(f"{steps} steps of {batch} rows, width {width}, seeds {seeds}\n")
    print(f"| objective | {' | '.join(FIGURES)} | {FIGURES[0]} by seed |")
    print("|---" * (len(FIGURES) + 2) + "|")
    # What the exact velocity and Euler steps reach, the floor of many small steps.
    baseline = evaluate(euler(VELOCITY), "map", True)
    print(markdown("exact velocity, Euler", [baseline]))
    for name in only or MEMBERS:
        member, found = MEMBERS[name], []
        fit = train(member, steps, batch, width)
        for seed in seeds:
            label = f"{name} {steps} {batch} {width} {seed}"
            if label not in done:
                start = time.perf_counter()
                done[label] = evaluate(fit(seed), member.sampler, member.diagonal)
                done[label]["seconds"] = time.perf_counter() - start
                partly = rows.with_suffix(".partly")
                partly.write_text(json.dumps(done, indent=1))
                partly.replace(rows)
            found.append(done[label])
        print(markdown(name, found), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
