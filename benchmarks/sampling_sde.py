"""What `sampling.sde` and `sampling.sample_chain` cost over hand-written loops.

    python -m benchmarks.sampling_sde

The floor. n steps of Euler-Maruyama take n forward passes and n draws of normal noise
of the shape of the state; ShARK takes two of each per step. The loops to compare with
are jitted `jax.lax.scan`s of just that, with the drift and the noise level of this one
diffusion written out. They draw from the same keys, and that they end at the same
samples is checked. `sample_chain` returns all states with the log-density of every
step: it has a loop that does so too.

Data path ``x_t = t x1 + (1 - t) x0`` and ``g^2 = 0.2``, with which the drift is
``v - 0.1 (x - t v) / (1 - t)``; the grid ends at 0.98, where nothing must be held.

Every round times all loops once; the ratio is the median of those within a round.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from benchmarks._timing import (
    blocking,
    describe_machine,
    limit_cores,
    ratio,
    take_turns,
)
from benchmarks.sampling_memory import start
from flowjax import interpolants, sampling
from flowjax.fields import diagonal
from flowjax.networks import MLP, DiT
from flowjax.sampling import diffusions, kernels

LINEAR, HALF = interpolants.linear(), 0.1  # half of g^2
DIFFUSION = diffusions.constant(HALF)
LEVEL = math.sqrt(2 * HALF)
EULER, SHARK = "Euler-Maruyama, bare scan", "ShARK, bare scan"
CHAIN = "Euler-Maruyama with densities, bare scan"


def drift(v: Any, x: Array, t: Array) -> Array:
    """Return ``v + g^2 / 2 score`` on the linear path."""
    value = v(x, jnp.full(len(x), t))
    return value - HALF * (x - t * value) / (1 - t)


def normal(key: Array, index: Array | int, x: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)


def euler_step(v: Any, key: Array, x: Array, row: Any) -> tuple[Array, None]:
    i, t, s = row
    noise = normal(key, i, x)
    return x + (s - t) * drift(v, x, t) + LEVEL * jnp.sqrt(s - t) * noise, None


def chain_step(v: Any, key: Array, x: Array, row: Any) -> tuple[Array, Any]:
    i, t, s = row
    noise, std = normal(key, i, x), LEVEL * jnp.sqrt(s - t)
    y = x + (s - t) * drift(v, x, t) + std * noise
    squares = (noise**2).reshape(len(x), -1).sum(1) / 2
    size = noise[0].size
    return y, (y, -squares - size * (jnp.log(std) + math.log(2 * math.pi) / 2))


def shark_step(
    v: Any, key: Array, x: Array, row: Any, *, steps: int
) -> tuple[Array, None]:
    i, t, s = row
    h = s - t
    w = LEVEL * jnp.sqrt(h) * normal(key, i, x)
    area = LEVEL * jnp.sqrt(h / 12) * normal(key, i + steps, x)
    first = drift(v, x + area, t)
    later = x + area + 5 / 6 * (h * first + w)
    return x + h * (0.4 * first + 0.6 * drift(v, later, t + 5 / 6 * h)) + w, None


def make_samplers(steps: int) -> dict[str, tuple[str, Callable[..., Any]]]:
    """Return ``name -> (its bare loop, (v, key, x0) -> samples or path)``."""
    grid = np.linspace(0, 0.98, steps + 1)
    common: Any = {"interpolant": LINEAR, "diffusion": DIFFUSION, "grid": grid}
    common |= {"last_step": "noisy"}
    kernel = kernels.euler_maruyama(LINEAR, DIFFUSION)

    def bare(step: Any, v: Any, key: Array, x0: Array) -> Any:
        ends = jnp.asarray(np.stack([grid[:-1], grid[1:]]), x0.dtype)
        rows = (jnp.arange(steps), *ends)
        x1, path = jax.lax.scan(partial(step, v, key), x0, rows)
        return x1 if path is None else path

    def by_sde(solver: Any, v: Any, key: Array, x0: Array) -> Array:
        return sampling.sde(key, v, x0, solver=solver, **common)[0]

    def by_chain(v: Any, key: Array, x0: Array) -> Any:
        chain = sampling.sample_chain(
            key, v, x0, kernel=kernel, grid=grid, last_step="noisy"
        )
        return chain.states[1:], chain.log_densities

    return {
        EULER: (EULER, partial(bare, euler_step)),
        "sde, Euler": (EULER, partial(by_sde, diffrax.Euler())),
        CHAIN: (CHAIN, partial(bare, chain_step)),
        "sample_chain, euler_maruyama": (CHAIN, by_chain),
        SHARK: (SHARK, partial(bare, partial(shark_step, steps=steps))),
        "sde, ShARK": (SHARK, partial(by_sde, diffrax.ShARK())),
    }


def measure(network: nn.Module, x0: Array, steps: int, repeats: int) -> None:
    """Print the table of one network."""
    params, apply, key = start(network, x0), network.apply, jax.random.key(2)

    def run(sampler: Any, params: Any, key: Array, x0: Array) -> Any:
        field: Any = partial(apply, params)
        return sampler(diagonal(field), key, x0)

    def floor(v: Any, key: Array, x0: Array) -> Array:
        return v(x0, jnp.full(len(x0), x0.ravel()[0])) + normal(key, steps, x0)

    samplers = make_samplers(steps)
    functions = {name: sampler for name, (_, sampler) in samplers.items()}
    calls = {
        name: blocking(
            jax.jit(partial(run, function)).lower(params, key, x0).compile(),
            params,
            key,
            x0,
        )
        for name, function in {"floor": floor, **functions}.items()
    }
    for name, (bare, _) in samplers.items():
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
        jax.tree.map(close, calls[name](), calls[bare]())
    once = calls["floor"]
    calls["floor"] = lambda: [once() for _ in range(steps)]
    seconds = take_turns(calls, repeats)

    print(f"\n{type(network).__name__}, batch {x0.shape}, {steps} steps\n")
    print("| sampler | ms | time / its bare scan | time / floor |\n|---|---|---|---|")
    for name, (bare, _) in samplers.items():
        own, evaluations = seconds[name], 2 if bare == SHARK else 1
        least = evaluations * np.asarray(seconds["floor"])
        print(
            f"| {name} | {1e3 * statistics.median(own):.1f} "
            f"| {ratio(own, seconds[bare]):.3f} | {ratio(own, least):.2f} |"
        )


def main(batch: int = 1024, steps: int = 16, repeats: int = 7, cores: int = 1) -> None:
    """Print the tables.

    Args:
        batch: rows of the MLP; the DiT gets 1/64 of them.
        steps: of every loop.
        repeats: timed rounds.
        cores: that the process may use.
    """
    limit_cores(cores)
    describe_machine("jax", "diffrax", "flax")
    x0 = jax.random.normal(jax.random.key(0), (batch, 2))
    measure(MLP(256, 3), x0, steps, repeats)
    images = jax.random.normal(jax.random.key(0), (batch // 64, 16, 16, 1))
    measure(DiT(2, 96, 3, 3), images, steps, repeats)


if __name__ == "__main__":
    tyro.cli(main)
