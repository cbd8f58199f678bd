"""What `sampling.ode` costs over a hand-written Euler loop.

    python -m benchmarks.sampling                  # an MLP and a small DiT, for a CPU
    python -m benchmarks.sampling --large          # DiT-B/4 on 32 x 32 x 4, bfloat16

The floor. n Euler steps evaluate the network n times, so no sampler takes less than n
forward passes; everything else (the update of the state, the bookkeeping of the steps,
the statistics) reads the state a few times per step. The loop to compare with is a
jitted `jax.lax.scan` of ``x + (s - t) v(x, t)`` and nothing else.

The default adjoint only decides what is kept for a backward pass that is not there;
`diffrax.ForwardMode` is timed as well, to see that nothing is paid for it.

Times are medians of interleaved calls in one process, so that a busy machine slows all
alike; the ratio is the median of the ratios of neighbouring calls.
"""

import platform
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

from flowjax import sampling
from flowjax.fields import diagonal
from flowjax.networks import MLP, DiT

SCAN, ODE, FORWARD_MODE = "lax.scan", "sampling.ode", "sampling.ode, ForwardMode"
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
        options = {"solver": diffrax.Euler(), "grid": grid, "adjoint": adjoint}
        return sampling.ode(v, x0, cond=labels, **options)[0]

    forward_mode = partial(by_ode, adjoint=diffrax.ForwardMode())
    return {
        SCAN: by_scan,
        ODE: partial(by_ode, adjoint=None),
        FORWARD_MODE: forward_mode,
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

    programs, compile_time, results = {}, {}, {}
    contenders = {"one forward": forward, **make_samplers(network, steps)}
    for name, function in contenders.items():
        start = time.perf_counter()
        programs[name] = jax.jit(function).lower(params, x0, labels).compile()
        compile_time[name] = time.perf_counter() - start
        results[name] = programs[name](params, x0, labels)
    for name in (ODE, FORWARD_MODE):
        np.testing.assert_allclose(results[name], results[SCAN], rtol=1e-3, atol=1e-3)

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(params, x0, labels))
            seconds[name].append(time.perf_counter() - start)
    seconds["one forward"] = [steps * s for s in seconds["one forward"]]

    print(f"\n{type(network).__name__}, batch {batch} of {event}, {steps} steps\n")
    print("| | compile s | run ms (median) | ratio to scan |\n|---|---|---|---|")
    for name, values in seconds.items():
        ratio = statistics.median(np.divide(values, seconds[SCAN]).tolist())
        label = f"floor: {steps} x one forward" if name == "one forward" else name
        print(
            f"| {label} | {compile_time[name]:.2f} "
            f"| {1e3 * statistics.median(values):.2f} | {ratio:.3f} |"
        )


def main(
    large: bool = False, batch_size: int = 64, steps: int = 16, repeats: int = 20
) -> None:
    """Print the tables.

    Args:
        large: DiT-B/4 on 32 x 32 x 4 latents in bfloat16 only.
        batch_size: rows per call.
        steps: Euler steps.
        repeats: timed calls of each program.
    """
    device = jax.devices()[0].device_kind
    print(f"{device} x {jax.device_count()}, {platform.machine()}")
    print(
        f"jax {jax.__version__}, diffrax {diffrax.__version__}, "
        f"Python {platform.python_version()}, {repeats} repeats"
    )
    if large:
        dit = DiT(4, 768, 12, 12, num_classes=1000, dtype=jnp.bfloat16)
        measure(dit, (32, 32, 4), batch_size, steps, repeats)
    else:
        measure(MLP(256, 3, num_classes=10), (2,), 16 * batch_size, steps, repeats)
        dit = DiT(2, 96, 3, 3, num_classes=10)
        measure(dit, (16, 16, 1), batch_size, steps, repeats)


if __name__ == "__main__":
    tyro.cli(main)
