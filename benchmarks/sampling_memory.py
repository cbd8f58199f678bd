"""Memory and time of gradients through a sampler, and of sampling in chunks.

    python -m benchmarks.sampling_memory

Gradients of a loss of the samples with respect to the network's parameters, n Euler
steps. The floor in time: the forward passes and their backward passes, twice as dear,
about 3 n forward passes (less by what the embedding of t needs no gradient for); a step
that is evaluated again adds one, 4 n for all that keeps only states. The floor in
memory: the activations of one step. To keep one state per step, as the scan with
`jax.checkpoint` does, adds n states; to keep all activations, as the bare scan does,
takes n times those of one step. With c checkpoints only c states are kept, and a step
is evaluated more than twice once n is large beside c.

`sampling.ode` refuses `diffrax.BacksolveAdjoint`, which would not see the parameters,
and `diffrax.ForwardMode` has no reverse mode: neither has a row.

Sampling in chunks. The floor in memory is what the rows of one chunk take by
themselves; in time, one batch in one piece, as the work is the same.

Bytes are what XLA sets aside beside arguments and results. Every round times all calls
once; ratios are medians of those within a round.
"""

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
    temporary_bytes,
)
from flowjax import sampling, times
from flowjax.fields import diagonal
from flowjax.networks import MLP, DiT
from flowjax.sampling import solvers

BARE = "bare lax.scan"
Sampler = Callable[[Any, Array], Array]


def make_samplers(steps: int) -> dict[str, Sampler]:
    """Return the compared ways through the same Euler steps, of (field, x0)."""
    grid = times.uniform_grid(steps)

    def by_scan(v: Any, x0: Array, *, checkpoint: bool) -> Array:
        def step(x: Array, ends: Array) -> tuple[Array, None]:
            t, s = ends
            return x + (s - t) * v(x, jnp.full(len(x), t)), None

        ends = jnp.asarray(np.stack([grid[:-1], grid[1:]], axis=1), x0.dtype)
        body = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
        return jax.lax.scan(body, x0, ends)[0]

    def by_ode(adjoint: diffrax.AbstractAdjoint | None) -> Sampler:
        options = {"solver": diffrax.Euler(), "steps": grid, "adjoint": adjoint}
        return lambda v, x0: sampling.ode(v, x0, **options)[0]

    eight = diffrax.RecursiveCheckpointAdjoint(checkpoints=8)
    return {
        BARE: partial(by_scan, checkpoint=False),
        "lax.scan, jax.checkpoint": partial(by_scan, checkpoint=True),
        "multistep": lambda v, x0: sampling.multistep(v, x0, solvers.euler(grid)),
        "ode, default (RecursiveCheckpoint)": by_ode(None),
        "ode, 8 checkpoints": by_ode(eight),
        "ode, DirectAdjoint": by_ode(diffrax.DirectAdjoint()),
    }


def start(network: nn.Module, x0: Array) -> Any:
    """Return parameters away from the initial ones, whose output is zero."""
    t = jnp.zeros(len(x0))
    params = network.init(jax.random.key(1), x0, t, t)
    return jax.tree.map(
        lambda p: p + 0.02 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
    )


def measure_gradients(network: nn.Module, x0: Array, steps: int, repeats: int) -> None:
    """Print the table of the gradients through ``steps`` steps."""
    params, apply = start(network, x0), network.apply

    def forward(params: Any, x0: Array) -> Any:
        t = jnp.full(len(x0), x0[0, 0])
        return apply(params, x0, t, t)

    def gradient(sampler: Sampler, params: Any, x0: Array) -> Any:
        def loss(params: Any) -> Array:
            field: Any = partial(apply, params)
            return jnp.mean(sampler(diagonal(field), x0) ** 2)

        return jax.grad(loss)(params)

    samplers = make_samplers(steps)
    functions = {name: partial(gradient, s) for name, s in samplers.items()}
    programs = {
        name: jax.jit(function).lower(params, x0).compile()
        for name, function in {"forward": forward, **functions}.items()
    }
    calls = {name: blocking(program, params, x0) for name, program in programs.items()}
    expected = calls[BARE]()
    for name in functions:
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
            calls[name](),
            expected,
        )
    once = calls["forward"]
    calls["forward"] = lambda: [once() for _ in range(steps)]
    seconds = take_turns(calls, repeats)
    floor = 3 * np.asarray(seconds["forward"])
    print(f"\n{steps} steps; states: {steps * x0.nbytes / 2**20:.2f} MiB\n")
    print("| gradient through | MiB | ms | time / bare scan | time / 3 n forward |")
    print("|---|---|---|---|---|")
    for name in functions:
        own = seconds[name]
        print(
            f"| {name} | {temporary_bytes(programs[name]) / 2**20:.2f} "
            f"| {1e3 * statistics.median(own):.1f} "
            f"| {ratio(own, seconds[BARE]):.2f} | {ratio(own, floor):.2f} |"
        )


def measure_chunks(network: nn.Module, x0: Array, steps: int, repeats: int) -> None:
    """Print the table of sampling in chunks."""
    params, grid = start(network, x0), times.uniform_grid(steps)

    def sample(params: Any, x0: Array) -> Array:
        field: Any = partial(network.apply, params)
        options = {"solver": diffrax.Euler(), "steps": grid}
        return sampling.ode(diagonal(field), x0, **options)[0]

    def chunked(chunks: int, params: Any, x0: Array) -> Any:
        return sampling.in_chunks(partial(sample, params), x0, chunks=chunks)

    whole = jax.jit(sample).lower(params, x0).compile()
    counts = [chunks for chunks in (1, 2, 4, 8, 16, 32) if len(x0) % chunks == 0]
    programs, alone = {}, {}
    for chunks in counts:
        function = partial(chunked, chunks)
        programs[chunks] = jax.jit(function).lower(params, x0).compile()
        rows = x0[: len(x0) // chunks]
        alone[chunks] = jax.jit(sample).lower(params, rows).compile()
    calls = {"whole": blocking(whole, params, x0)}
    calls |= {str(n): blocking(programs[n], params, x0) for n in counts}
    for call in calls.values():
        np.testing.assert_allclose(call(), calls["whole"](), rtol=1e-4, atol=1e-4)
    seconds = take_turns(calls, repeats)

    print(f"\nIn chunks: {type(network).__name__}, batch {x0.shape}, {steps} steps\n")
    print("| chunks | MiB | floor MiB | ms | time / one piece |\n|---|---|---|---|---|")
    for chunks in counts:
        own = seconds[str(chunks)]
        print(
            f"| {chunks} | {temporary_bytes(programs[chunks]) / 2**20:.2f} "
            f"| {temporary_bytes(alone[chunks]) / 2**20:.2f} "
            f"| {1e3 * statistics.median(own):.1f} "
            f"| {ratio(own, seconds['whole']):.2f} |"
        )


def main(
    steps: tuple[int, ...] = (8, 32, 128),
    batch: int = 64,
    repeats: int = 5,
    cores: int = 1,
) -> None:
    """Print the tables.

    Args:
        steps: Euler steps of the gradients, a table for each.
        batch: rows, of the MLP and of the DiT.
        repeats: timed rounds.
        cores: that the process may use.
    """
    limit_cores(cores)
    describe_machine("jax", "diffrax", "flax")
    x0 = jax.random.normal(jax.random.key(0), (batch, 16))
    print(f"\nGradients: MLP 3 x 128, batch {x0.shape}, {repeats} rounds")
    for count in steps:
        measure_gradients(MLP(128, 3), x0, count, repeats)
    images = jax.random.normal(jax.random.key(0), (batch, 16, 16, 1))
    measure_chunks(DiT(2, 96, 3, 3), images, 2, repeats)


if __name__ == "__main__":
    tyro.cli(main)
