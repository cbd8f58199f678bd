"""What `sampling.ode` and `sampling.multistep` cost over a hand-written Euler loop.

    python -m benchmarks.sampling                  # an MLP and a small DiT, for a CPU
    python -m benchmarks.sampling --large          # DiT-B/4 on 32 x 32 x 4, bfloat16

The floor. n Euler steps evaluate the network n times, so no sampler takes less than n
forward passes; everything else (the update of the state, the bookkeeping of the steps,
the statistics) reads the state a few times per step. The loop to compare with is a
jitted `jax.lax.scan` of ``x + (s - t) v(x, t)`` and nothing else.

The default adjoint only decides what is kept for a backward pass that is not there;
`diffrax.ForwardMode` is timed as well, to see that nothing is paid for it.

`sampling.multistep` runs Euler's method as a table of numbers, and UniPC, which takes
as many evaluations and remembers the last few of them.

Times are medians of interleaved calls in one process, so that a busy machine slows all
alike; the ratio is the median of the ratios of neighbouring calls.
"""

import statistics
import time
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
from flowjax import sampling
from flowjax.fields import diagonal
from flowjax.networks import MLP, DiT
from flowjax.sampling import MultistepSolver, solvers

SCAN, ODE, FORWARD_MODE = "lax.scan", "sampling.ode", "sampling.ode, ForwardMode"
TABLE, UNIPC, FLOOR = "multistep, Euler", "multistep, UniPC", "one forward"
Sampler = Callable[[Any, Array, Array], Array]


def make_samplers(network: nn.Module, steps: int) -> dict[str, Sampler]:
    """Return the compared samplers, functions of (params, x0, labels)."""
    grid = np.linspace(0, 1, steps + 1, dtype=np.float32)
    apply: Any = network.apply

    def by_scan(params: Any, x0: Array, labels: Array) -> Array:
        def step(x: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
            t, s = interval
            row_t = jnp.full(len(x), t)
            return x + (s - t) * apply(params, x, row_t, row_t, labels), None

        ends = (jnp.asarray(grid[:-1]), jnp.asarray(grid[1:]))
        return jax.lax.scan(step, x0, ends)[0]

    def by_ode(
        params: Any, x0: Array, labels: Array, adjoint: diffrax.AbstractAdjoint | None
    ) -> Array:
        v = diagonal(partial(apply, params))
        options = {"solver": diffrax.Euler(), "steps": grid, "adjoint": adjoint}
        return sampling.ode(v, x0, cond=labels, **options)[0]

    def by_table(
        params: Any, x0: Array, labels: Array, solver: MultistepSolver
    ) -> Array:
        v = diagonal(partial(apply, params))
        return sampling.multistep(v, x0, solver, cond=labels)

    forward_mode = partial(by_ode, adjoint=diffrax.ForwardMode())
    return {
        SCAN: by_scan,
        ODE: partial(by_ode, adjoint=None),
        FORWARD_MODE: forward_mode,
        TABLE: partial(by_table, solver=solvers.euler(grid)),
        UNIPC: partial(by_table, solver=solvers.unipc(grid)),
    }


def measure(
    network: nn.Module, event: tuple[int, ...], batch: int, steps: int, repeats: int
) -> None:
    """Print a table of compile and run times for one network."""
    x0 = jax.random.normal(jax.random.key(0), (batch, *event))
    labels, t = jnp.arange(batch) % 10, jnp.zeros(batch)
    params = network.init(jax.random.key(1), x0, t, t, labels)
    # Away from the initial value, at which the network's output is zero.
    params = jax.tree.map(
        lambda p: p + 0.02 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
    )

    def forward(params: Any, x: Array, labels: Array) -> Array:
        return network.apply(params, x, t, t, labels)  # type: ignore

    calls: dict[str, Callable[[], Any]] = {}
    compile_time = {}
    for name, function in {FLOOR: forward, **make_samplers(network, steps)}.items():
        start = time.perf_counter()
        program = jax.jit(function).lower(params, x0, labels).compile()
        compile_time[name] = time.perf_counter() - start
        calls[name] = blocking(program, params, x0, labels)
    for name in (ODE, FORWARD_MODE, TABLE):
        np.testing.assert_allclose(calls[name](), calls[SCAN](), rtol=1e-3, atol=1e-3)
    once = calls[FLOOR]
    calls[FLOOR] = lambda: [once() for _ in range(steps)]
    seconds = take_turns(calls, repeats)

    print(f"\n{type(network).__name__}, batch {batch} of {event}, {steps} steps\n")
    print("| | compile s | run ms (median) | ratio to scan |\n|---|---|---|---|")
    for name, values in seconds.items():
        label = f"floor: {steps} x one forward" if name == FLOOR else name
        print(
            f"| {label} | {compile_time[name]:.2f} "
            f"| {1e3 * statistics.median(values):.2f} "
            f"| {ratio(values, seconds[SCAN]):.3f} |"
        )


def main(
    large: bool = False,
    batch_size: int = 16,
    steps: int = 16,
    repeats: int = 20,
    cores: int | None = None,
) -> None:
    """Print the tables.

    Args:
        large: DiT-B/4 on 32 x 32 x 4 latents in bfloat16 only.
        batch_size: rows of the DiT; the MLP gets 16 times as many.
        steps: Euler steps.
        repeats: timed calls of each program.
        cores: that the process may use; all by default.
    """
    if cores is not None:
        limit_cores(cores)
    describe_machine("jax", "diffrax", "flax")
    if large:
        dit = DiT(4, 768, 12, 12, num_classes=1000, dtype=jnp.bfloat16)
        measure(dit, (32, 32, 4), batch_size, steps, repeats)
    else:
        measure(MLP(256, 3, num_classes=10), (2,), 16 * batch_size, steps, repeats)
        dit = DiT(2, 96, 3, 3, num_classes=10)
        measure(dit, (16, 16, 1), batch_size, steps, repeats)


if __name__ == "__main__":
    tyro.cli(main)
