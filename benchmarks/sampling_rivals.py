"""Samples per second of `flowjax.sampling` and of the torch samplers in use.

    pip install 'flowjax-matching[bench]'
    python -m benchmarks.sampling_rivals             # MLP 3 x 256, batch 4096 of (2,)
    python -m benchmarks.sampling_rivals --wide      # MLP 3 x 1024, batch 1024 of (64,)

The floor. A sampler evaluates the network as often as its method says, so that it takes
no less than that number of forward passes. "x floor" is the time over that of as many
single forward passes in the same framework, which leaves out what the framework makes
of a product of matrices; the ratio to torchdiffeq has both.

The network is the perceptron of [x, t] that TorchCFM samples from, trained for a moment
on eight Gaussians; both frameworks have the same weights, and their fields are compared
first. torchdiffeq is called as TorchCFM does to measure its FID (`odeint` from 0 to 1
without gradients), flow_matching by its `ODESolver`.

Adaptive solves have the same tolerances, but not the same meaning of them: torchdiffeq
bounds the root mean square error of the batch, `sampling.ode` that of its worst row.
With Dopri5 and the norm of the batch it does what torchdiffeq does. "error" is the
largest root mean square of a row against 256 steps of RK4, among the first 256 rows; a
row at ten times the tolerance is there to compare at more nearly equal errors.

Both frameworks have the same cores. Every round times all samplers once; times are
medians, ratios the medians of those within a round.
"""

import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array

from benchmarks._timing import describe_machine, limit_cores, ratio, take_turns
from benchmarks._torch_samplers import torch_field, torch_forward, torch_samplers
from flowjax import interpolants, objectives, sampling, times
from flowjax.sampling import solvers

Params = list[tuple[Array, Array]]


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        method: rows of one method are compared with each other.
        name: whose sampler it is.
        framework: "jax" or "torch".
        call: ``() -> (samples, evaluations)``, done when it returns.
    """

    method: str
    name: str
    framework: str
    call: Callable[[], tuple[Any, int]]


def velocity(params: Params, x: Array, t: Array, cond: Any = None) -> Array:
    """Return the perceptron of [x, t]."""
    h = jnp.concatenate([x, t[:, None]], axis=1)
    for weight, bias in params[:-1]:
        h = jax.nn.silu(h @ weight + bias)
    weight, bias = params[-1]
    return h @ weight + bias


def train(key: Array, dim: int, width: int, steps: int) -> Params:
    """Return the weights after ``steps`` of Adam on eight Gaussians."""
    key_centres, key_weights, key_steps = jax.random.split(key, 3)
    centres = 2 * jax.random.normal(key_centres, (8, dim))
    sizes = [dim + 1, width, width, width, dim]
    shapes = list(itertools.pairwise(sizes))
    params = [
        (jax.random.normal(k, shape) / shape[0] ** 0.5, jnp.zeros(shape[1]))
        for k, shape in zip(jax.random.split(key_weights, 4), shapes, strict=True)
    ]
    adam = optax.adam(1e-3)

    def loss(params: Params, key: Array) -> Array:
        key_source, key_data, key_label, key_time = jax.random.split(key, 4)
        x0, noise = (jax.random.normal(k, (256, dim)) for k in (key_source, key_data))
        x1 = centres[jax.random.randint(key_label, (256,), 0, 8)] + 0.3 * noise
        t = times.uniform(key_time, 256)
        path = interpolants.sample_path(interpolants.linear(), x0, x1, t)
        return objectives.flow_matching(partial(velocity, params), path).mean()

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = adam.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key_steps, steps)
    return jax.jit(partial(jax.lax.scan, step))((params, adam.init(params)), keys)[0][0]


def batch_norm(error: Array) -> Array:
    """Return the root mean square over the whole batch, as torchdiffeq does."""
    return jnp.sqrt(jnp.mean(error**2))


def jax_rows(params: Params, x0: Array, steps: int, tolerance: float) -> list[Row]:
    """Return the rows of this library and of a bare `jax.lax.scan`."""
    grid, half = times.uniform_grid(steps), times.uniform_grid(steps // 2)

    def adaptive(factor: float = 1.0, norm: Any = None, **options: Any) -> Any:
        allowed = factor * tolerance
        chosen = sampling.Adaptive(rtol=allowed, atol=allowed, error_norm=norm)
        return partial(sampling.ode, steps=chosen, **options)

    def table(solver: sampling.MultistepSolver) -> Any:
        return lambda v, x: (sampling.multistep(v, x, solver), len(solver.times))

    members = {
        ("adaptive", "ode, Tsit5"): adaptive(),
        ("adaptive", "ode, Tsit5, 10 x tolerance"): adaptive(10.0),
        ("adaptive", "ode, Dopri5, norm of the batch"): adaptive(
            norm=batch_norm, solver=diffrax.Dopri5()
        ),
        ("Euler", "bare lax.scan"): partial(by_scan, grid=grid),
        ("Euler", "ode"): partial(sampling.ode, solver=diffrax.Euler(), steps=grid),
        ("Euler", "multistep"): table(solvers.euler(grid)),
        ("midpoint", "ode"): partial(
            sampling.ode, solver=diffrax.Midpoint(), steps=half
        ),
        ("midpoint", "multistep"): table(solvers.midpoint(half)),
    }
    return [
        Row(method, name, "jax", compiled(sampler, params, x0))
        for (method, name), sampler in members.items()
    ]


def by_scan(v: Any, x0: Array, grid: np.ndarray) -> tuple[Array, int]:
    """Return Euler's steps, written by hand."""

    def step(x: Array, ends: Array) -> tuple[Array, None]:
        t, s = ends
        return x + (s - t) * v(x, jnp.full(len(x), t)), None

    ends = jnp.asarray(np.stack([grid[:-1], grid[1:]], axis=1), x0.dtype)
    return jax.lax.scan(step, x0, ends)[0], len(ends)


def compiled(
    sampler: Callable[[Any, Array], Any], params: Params, x0: Array
) -> Callable[[], tuple[Array, int]]:
    """Return a call that is compiled already."""

    def sample(params: Params, x0: Array) -> Any:
        x1, cost = sampler(partial(velocity, params), x0)
        return x1, getattr(cost, "nfe", cost)

    program = jax.jit(sample).lower(params, x0).compile()

    def call() -> tuple[Array, int]:
        x1, nfe = jax.block_until_ready(program(params, x0))
        return x1, int(nfe)

    return call


def worst_row(x: Any, exact: Array) -> float:
    """Return the largest root mean square of a row of the difference."""
    difference = np.asarray(x)[: len(exact)] - np.asarray(exact)
    return float(np.sqrt((difference**2).mean(axis=1)).max())


def measure(
    dim: int,
    width: int,
    batch: int,
    steps: int,
    tolerance: float,
    repeats: int,
    torch_compile: bool,
) -> None:
    """Print the table of one network."""
    params = train(jax.random.key(0), dim, width, 300)
    x0 = jax.random.normal(jax.random.key(1), (batch, dim))
    weights = [(np.array(weight), np.array(bias)) for weight, bias in params]
    one = jax.jit(lambda params, x, t: velocity(params, x, jnp.full(len(x), t)))
    floors: dict[str, Callable[[], Any]] = {
        "jax": lambda: jax.block_until_ready(one(params, x0, 0.5))
    }
    rows = jax_rows(params, x0, steps, tolerance)
    field = torch_field(weights, torch_compile)
    if field is not None:
        forward = torch_forward(field, np.array(x0))
        np.testing.assert_allclose(forward(), floors["jax"](), rtol=1e-5, atol=1e-5)
        floors["torch"] = forward
        members = torch_samplers(field, np.array(x0), steps, tolerance)
        rows += [Row(*names, "torch", call) for names, call in members.items()]
    rows.sort(key=lambda row: ("adaptive", "Euler", "midpoint").index(row.method))

    fine = solvers.rk4(times.uniform_grid(256))
    exact = jax.jit(lambda x: sampling.multistep(partial(velocity, params), x, fine))
    print(f"\nMLP 3 x {width}, batch {batch} of {dim}, {repeats} rounds")
    report(rows, floors, exact(x0[:256]), repeats)


def ten_times(forward: Callable[[], Any]) -> None:
    for _ in range(10):
        forward()


def check_equal(rows: list[Row], results: dict[str, tuple[Any, int]]) -> None:
    """Raise AssertionError unless the same fixed steps lead to the same samples."""
    first: dict[str, np.ndarray] = {}
    for row, (x1, _) in zip(rows, results.values(), strict=True):
        if row.method != "adaptive":
            reference = first.setdefault(row.method, np.asarray(x1))
            np.testing.assert_allclose(x1, reference, rtol=1e-3, atol=1e-3)


def report(
    rows: list[Row],
    floors: dict[str, Callable[[], Any]],
    exact: Array,
    repeats: int,
) -> None:
    """Time the rows and print the table."""
    calls = {f"{row.method} {row.name}": row.call for row in rows}
    results = {name: call() for name, call in calls.items()}
    check_equal(rows, results)
    # As many passes as a short sampler makes, that the floor is not a single moment.
    tenfold = {name: partial(ten_times, forward) for name, forward in floors.items()}
    seconds = take_turns({**tenfold, **calls}, repeats)
    print()
    for name in floors:
        forward = 1e2 * statistics.median(seconds[name])
        print(f"One forward pass in {name}: {forward:.2f} ms.")
    columns = ("method", "sampler", "evaluations", "error", "ms", "samples / s")
    print("\n|", " | ".join(columns), "| x floor | time / torchdiffeq |")
    print("|" + 8 * "---|")
    for row, (name, (x1, nfe)) in zip(rows, results.items(), strict=True):
        own, base = seconds[name], seconds.get(f"{row.method} torchdiffeq")
        median = statistics.median(own)
        floor = ratio(own, nfe / 10 * np.asarray(seconds[row.framework]))
        against = "" if base is None else f"{ratio(own, base):.2f}"
        print(
            f"| {row.method} | {row.name} | {nfe} | {worst_row(x1, exact):.1e} "
            f"| {1e3 * median:.1f} | {len(x1) / median:.0f} | {floor:.2f} "
            f"| {against} |"
        )


def main(
    wide: bool = False,
    steps: int = 16,
    tolerance: float = 1e-5,
    repeats: int = 5,
    cores: int = 1,
    torch_compile: bool = False,
) -> None:
    """Print the table.

    Args:
        wide: MLP 3 x 1024 on 64 dimensions instead of 3 x 256 on 2.
        steps: evaluations of the methods with fixed steps, even.
        tolerance: relative and absolute, of the adaptive ones.
        repeats: timed rounds.
        cores: for both frameworks.
        torch_compile: compile torch's network; needs a C++ compiler on a CPU.
    """
    limit_cores(cores)
    describe_machine("jax", "diffrax", "torch", "torchdiffeq", "flow_matching")
    if wide:
        measure(64, 1024, 1024, steps, tolerance, repeats, torch_compile)
    else:
        measure(2, 256, 4096, steps, tolerance, repeats, torch_compile)


if __name__ == "__main__":
    tyro.cli(main)
