"""Solvers as data: their order on flows that are not affine, and what they must equal.

The oracle is a mixture on the line, whose flow map is known; on Gaussian data some
methods gain an order by cancellation.
"""

import functools
import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, times
from flowjax.interpolants import Interpolant
from flowjax.sampling import solvers
from flowjax.sampling.multistep import MultistepSolver, multistep, multistep_path
from tests.tables import ALL_INTERPOLANTS, MIXTURES

pytestmark = pytest.mark.usefixtures("x64")

X0 = np.linspace(-1.5, 1.5, 7)[:, None]
PATHS = {
    name: ALL_INTERPOLANTS[name]()
    for name in (
        "linear",
        "trigonometric",
        "variance_preserving",
        "linear_variance_preserving",
        "minimum_noise",
        "smooth_latent",
    )
}
LINEAR, LATENT = PATHS["linear"], PATHS["smooth_latent"]


@jax.jit
def velocity(x, t, cond=None):
    return analytic.velocity(MIXTURES["near_modes"](), LINEAR)(x, t)


def wavy(x, t, cond=None):
    shift = 0.0 if cond is None else cond[:, None]
    return jnp.sin(x) + t[:, None] + shift


class Member(NamedTuple):
    """A solver, its order, and the evaluations of N steps.

    ``order_at_ends`` is that on grids which reach an infinite log-SNR.
    """

    make: object
    order: int
    evaluations: object
    order_at_ends: int | None = None
    grids: tuple = ("uniform", "quadratic", "log_snr")


ab, pc, snr = solvers.adams_bashforth, solvers.pseudo_corrector, ("log_snr",)
SOLVERS = {
    "euler": Member(solvers.euler, 1, lambda n: n),
    "midpoint": Member(solvers.midpoint, 2, lambda n: 2 * n),
    "heun": Member(solvers.heun, 2, lambda n: 2 * n),
    "ralston": Member(solvers.ralston, 2, lambda n: 2 * n),
    "rk4": Member(solvers.rk4, 4, lambda n: 4 * n),
    "fireflow": Member(solvers.fireflow, 2, lambda n: n + 1),
    "pc": Member(pc, 2, lambda n: n + 1),
    "pc_3": Member(partial(pc, heun_steps=3), 2, lambda n: n + 3),
    "ab_2": Member(ab, 2, lambda n: n),
    "ab_3": Member(partial(ab, order=3), 3, lambda n: n + 2),
    "ab_4": Member(partial(ab, order=4), 4, lambda n: n + 6),
    "ab_4_rising": Member(
        partial(ab, order=4, start="rising"), 2, lambda n: n, grids=("uniform",)
    ),
    # In the log-SNR both ends of [0, 1] are infinitely far, so that the order is lower.
    "dpm_1": Member(partial(solvers.dpm_solver, order=1), 1, lambda n: n),
    "dpm_2": Member(solvers.dpm_solver, 2, lambda n: n, grids=snr),
    "unipc_2": Member(solvers.unipc, 3, lambda n: n, 2, grids=snr),
    "unipc_3": Member(partial(solvers.unipc, order=3), 3, lambda n: n, 2, grids=snr),
}
EXPONENTIAL = ["dpm_1", "dpm_2", "unipc_2", "unipc_3"]


def grid_between(kind, start, end, n):
    q = np.arange(n + 1) / n
    if kind == "log_snr":
        first, last = (math.log(t / (1 - t)) for t in (start, end))
        return 1 / (1 + np.exp(-(first + q * (last - first))))
    if kind == "quadratic":
        q = (q + q**2) / 2
    return (1 - q) * start + q * end


def padded(solver, rows, width):
    """The same solver with rows that do nothing: one program for a table of solvers."""
    more, wider = rows - len(solver.times), width - solver.weights.shape[1]
    fill = {"times": 0.5, "state": 0.0, "slope": 0.0, "scale": 1.0}
    leaves = {k: np.append(getattr(solver, k), [v] * more) for k, v in fill.items()}
    return MultistepSolver(
        **leaves, weights=np.pad(solver.weights, ((0, more), (0, wider)))
    )


@jax.jit
def run(solver):
    return multistep(velocity, jnp.asarray(X0), solver)


def observed_order(make, kind, start, end, n=100):
    t, s = (jnp.full(len(X0), time) for time in (start, end))
    truth = analytic.flow_map(MIXTURES["near_modes"](), LINEAR)(jnp.asarray(X0), t, s)
    errors = []
    for steps in (n, 2 * n):
        solver = make(grid_between(kind, start, end, steps))
        x = run(padded(solver, rows=8 * n, width=10))
        errors.append(float(jnp.sqrt(jnp.mean((x - truth) ** 2))))
    return math.log2(errors[0] / errors[1])


INSIDE = [
    (name, grid, *ends)
    for name, member in SOLVERS.items()
    for grid in member.grids
    for ends in ((0.02, 0.98), (0.98, 0.02))
]


@pytest.mark.parametrize(("name", "kind", "start", "end"), INSIDE)
def test_order_of_convergence(name, kind, start, end):
    make, order, *_ = SOLVERS[name]
    slope = observed_order(make, kind, start, end)
    assert slope > order - 0.1
    # The first step alone limits the third order of UniPC-3, and by very little: its
    # error is still that of the fourth on most grids.
    assert slope < order + (1.3 if name == "unipc_3" else 0.2)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)], ids=["forward", "backward"])
@pytest.mark.parametrize("name", SOLVERS)
def test_order_from_end_to_end(name, ends):
    make, order, _, at_ends, _ = SOLVERS[name]
    n, order = 100, at_ends or order
    # Next to both ends the steps of the log-SNR are as 1, 1/2, 1/3, ..., whatever n is,
    # and their errors of order h^2 / k add up to h^2 log n.
    logarithm = math.log2(math.log(2 * n) / math.log(n)) if name == "dpm_2" else 0.0
    assert observed_order(make, "uniform", *ends, n) > order - 0.1 - logarithm


@pytest.mark.parametrize("grid", [times.uniform_grid(6), times.edm_grid(6)[::-1]])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_field_sees_as_many_times_as_the_solver_has_rows(name, grid):
    seen = []

    def field(x, t, cond):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t)
        return -x

    solver = SOLVERS[name].make(grid)
    jax.block_until_ready(multistep(field, jnp.ones((2, 1)), solver))
    jax.effects_barrier()
    assert len(seen) == SOLVERS[name].evaluations(6) == len(solver.times)
    np.testing.assert_array_equal(sorted(seen), sorted(solver.times))
    assert min(seen) >= 0
    assert max(seen) <= 1
    for leaf in solver:
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype == np.float64


def at(x, t):
    return velocity(x, jnp.full(len(x), t))


def loop(step):
    """A solver written out as a loop over the steps of a grid."""

    def run(grid, x):
        memory = None
        for t, s in itertools.pairwise(grid):
            x, memory = step(x, t, s, memory)
        return x

    return run


def rf_solver(x, t, s, _):
    h, v = s - t, at(x, t)
    derivative = (at(x + h / 2 * v, t + h / 2) - v) / (h / 2)
    return x + h * v + h**2 / 2 * derivative, None


def heun_step(x, t, s, _):
    v = at(x, t)
    return x + (s - t) / 2 * (v + at(x + (s - t) * v, s)), None


def ralston_step(x, t, s, _):
    h, v = s - t, at(x, t)
    return x + h * (v / 4 + 3 / 4 * at(x + 2 / 3 * h * v, t + 2 / 3 * h)), None


def rk4_step(x, t, s, _):
    h, a = s - t, at(x, t)
    b = at(x + h / 2 * a, t + h / 2)
    c = at(x + h / 2 * b, t + h / 2)
    d = at(x + h * c, t + h)
    return x + h / 6 * (a + 2 * b + 2 * c + d), None


def fireflow_step(x, t, s, last):
    h = s - t
    middle = at(x + h / 2 * (at(x, t) if last is None else last), t + h / 2)
    return x + h * middle, middle


def pseudo_corrector_step(x, t, s, last):
    last = at(x, t) if last is None else last
    new = at(x + (s - t) * last, s)
    return x + (s - t) / 2 * (last + new), new


def ab2_step(x, t, s, last):
    h, v = s - t, at(x, t)
    slope = v if last is None else v + h / (2 * last[0]) * (v - last[1])
    return x + h * slope, (h, v)


def turbo(grid, x):
    x = loop(heun_step)(grid[:3], x)
    return loop(pseudo_corrector_step)(grid[2:], x)


def log_snr(t):
    with np.errstate(divide="ignore"):
        return np.log(t) - np.log1p(-t)


def dpm_step(x, t, s, last):
    """DPM-Solver++(2M) on the linear path, in its published form."""
    d, h = x + (1 - t) * at(x, t), log_snr(s) - log_snr(t)
    mean = d
    if last is not None and np.isfinite(h):
        r = (log_snr(t) - log_snr(last[0])) / h
        mean = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * last[1]
    x = (1 - s) / (1 - t) * x - s * np.expm1(-h) * mean
    return x, (t, d)


def unipc_loop(grid, x, order, base):
    """UniPC on the linear path as published: B(h) and its equations R rho = b."""

    def update(x, t, s, values, r):
        h = log_snr(s) - log_snr(t)
        phi = np.expm1(-h)
        scale = phi if base == "bh2" else -h
        rows, right, term, factorial = [], [], phi / -h - 1, 1
        for k in range(1, len(r) + 1):
            rows.append(np.array(r) ** (k - 1))
            right.append(term * factorial / scale)
            factorial *= k + 1
            term = term / -h - 1 / factorial
        # One difference has the weight 1/2, with either B(h) that of "bh2" here.
        rho = np.linalg.solve(rows, right) if len(r) > 1 else [phi / scale / 2] * len(r)
        differences = [(v - values[0]) / q for v, q in zip(values[1:], r, strict=True)]
        mean = phi * values[0] + scale * sum(map(np.multiply, rho, differences))
        return (1 - s) / (1 - t) * x - s * mean

    seen, corrected = [], None
    for t, s in itertools.pairwise(grid):
        d = x + (1 - t) * at(x, t)
        if seen:
            (before, newest), *older = seen[:order]
            h = log_snr(t) - log_snr(before)
            r = [(log_snr(time) - log_snr(before)) / h for time, _ in older]
            values = [newest, *(value for _, value in older), d]
            x = update(corrected, before, t, values, [*r, 1.0])
        seen, corrected = [(t, d), *seen], x
        h = log_snr(s) - log_snr(t)
        r = [(log_snr(time) - log_snr(t)) / h for time, _ in seen[1:order]]
        values = [value for _, value in seen[:order]]
        x = update(x, t, s, values, r)
    return x


FULL, INNER = times.power_grid(7), grid_between("quadratic", 0.03, 0.95, 7)
# name: solver, the method written out, grids
LOOPS = {
    "rf_solver": (solvers.midpoint, loop(rf_solver), (FULL, FULL[::-1])),
    "heun": (solvers.heun, loop(heun_step), (FULL, FULL[::-1])),
    "ralston": (solvers.ralston, loop(ralston_step), (FULL, FULL[::-1])),
    "rk4": (solvers.rk4, loop(rk4_step), (FULL, FULL[::-1])),
    "fireflow": (solvers.fireflow, loop(fireflow_step), (FULL, FULL[::-1])),
    "pc": (pc, loop(pseudo_corrector_step), (FULL, FULL[::-1])),
    "pc_3": (partial(pc, heun_steps=3), turbo, (FULL, FULL[::-1])),
    "pc_all": (partial(pc, heun_steps=7), loop(heun_step), (FULL, FULL[::-1])),
    "ab_2": (ab, loop(ab2_step), (FULL, FULL[::-1])),
    "ddim": (partial(solvers.dpm_solver, order=1), None, (FULL, FULL[::-1])),
    "dpm_2": (solvers.dpm_solver, loop(dpm_step), (FULL, INNER, INNER[::-1])),
    **{
        f"unipc_{order}_{base}": (
            partial(solvers.unipc, order=order),
            partial(unipc_loop, order=order, base=base),
            (INNER, INNER[::-1]),
        )
        for order in (2, 3)
        for base in ("bh1", "bh2")
    },
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_solver_is_the_method_written_out(name):
    make, method, grids = LOOPS[name]
    for grid in grids:
        solver = make(grid)
        # DDIM on the linear path is Euler's method.
        expected = (
            run(padded(solvers.euler(grid), rows=32, width=10))
            if method is None
            else method(grid, jnp.asarray(X0))
        )
        x = run(padded(solver, rows=32, width=10))
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12)


CLASSICAL = {
    2: np.array([3, -1]) / 2,
    3: np.array([23, -16, 5]) / 12,
    4: np.array([55, -59, 37, -9]) / 24,
}


@pytest.mark.parametrize("order", CLASSICAL)
def test_adams_bashforth_on_equal_and_on_unequal_steps(order):
    solver = ab(times.uniform_grid(8), order=order)
    expected = CLASSICAL[order] / 8
    np.testing.assert_allclose(solver.weights[-1, :order], expected, rtol=1e-12)
    # On any grid the steps after the start are exact for powers of t below the order.
    grid, power = times.power_grid(8, power=1.7), order - 1
    solver = ab(grid, order=order)
    path = multistep_path(
        lambda x, t, c: t[:, None] ** power + 0 * x, jnp.zeros((1, 1)), solver
    )
    last = path[-4:, 0, 0]
    np.testing.assert_allclose(np.diff(last), np.diff(grid[-4:] ** order) / order)


def noise(path, t):
    """The standard deviation of the noise, written so that its derivative is finite."""
    return (1 - t) * jnp.sqrt(1 + t**2) if path is LATENT else path.sigma(t)


def to_linear(path, t):
    """A path is ``scale`` times the linear path at another time."""
    scale = path.alpha(t) + noise(path, t)
    return scale, path.alpha(t) / scale


@functools.cache
def points_on(name):
    """The compiled `multistep_path` of one curve, told in the terms of a path."""
    path = PATHS[name]

    def field(x, t, cond=None):
        at_t, rate = jax.jvp(partial(to_linear, path), (t,), (jnp.ones_like(t),))
        (scale, time), (d_scale, d_time) = at_t, rate
        y = x / scale[:, None]
        return d_scale[:, None] * y + (scale * d_time)[:, None] * wavy(y, time)

    return jax.jit(partial(multistep_path, field))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", EXPONENTIAL)
def test_exponential_solvers_see_the_log_snr_alone(solver, path, backward):
    make, grid = SOLVERS[solver].make, times.power_grid(6, power=1.3)
    if backward:
        finite = path not in ("variance_preserving", "linear_variance_preserving")
        grid = grid[::-1][0 if finite else 1 :]
    scale, on_the_line = map(np.asarray, to_linear(PATHS[path], jnp.asarray(grid)))
    here, there = make(grid, interpolant=PATHS[path]), make(on_the_line)
    here = points_on(path)(X0 * scale[0], padded(here, rows=8, width=4))[: len(grid)]
    there = points_on("linear")(X0, padded(there, rows=8, width=4))[: len(grid)]
    np.testing.assert_allclose(here / scale[:, None, None], there, rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", [FULL, INNER, INNER[::-1]])
@pytest.mark.parametrize("name", EXPONENTIAL)
def test_exponential_solvers_are_exact_for_one_data_point(name, grid):
    path, x1 = PATHS["trigonometric"], 1.7
    field = analytic.velocity(analytic.mixture([1.0], [[x1]], 0.0), path)
    ends = jnp.asarray(grid[[0, -1]])
    (a, b), (c, d) = path.alpha(ends), path.sigma(ends)
    start = a * x1 + c * jnp.asarray(X0)
    x = multistep(field, start, SOLVERS[name].make(grid, interpolant=path))
    np.testing.assert_allclose(x, b * x1 + d * X0, rtol=1e-12, atol=1e-12)


def test_chained_solvers_run_one_after_the_other():
    grid = times.uniform_grid(8)
    parts = solvers.rk4(grid[:4]), solvers.unipc(grid[3:6]), ab(grid[5:], order=3)
    x = jnp.asarray(X0)
    for part in parts:
        x = multistep(velocity, x, part)
    chained = multistep(velocity, jnp.asarray(X0), solvers.chain(*parts))
    np.testing.assert_allclose(chained, x, rtol=1e-14)


def test_any_tableau():
    kutta = {"a": [[0, 0, 0], [0.5, 0, 0], [-1, 2, 0]], "b": [1 / 6, 2 / 3, 1 / 6]}
    make = partial(solvers.runge_kutta, **kutta)
    assert 2.9 < observed_order(make, "uniform", 0.02, 0.98) < 3.1


@jax.jit
def wavy_points(x, solver, cond):
    return multistep_path(wavy, x, solver, cond=cond)


@jax.jit
def wavy_end(x, solver, cond=None):
    return multistep(wavy, x, solver, cond=cond)


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_are_apart_and_nan_is_kept(name):
    solver = padded(SOLVERS[name].make(times.uniform_grid(6)), rows=32, width=10)
    x, cond = jnp.asarray(X0), jnp.linspace(0, 1, len(X0))
    clean = wavy_end(x, solver, cond)
    spoiled = wavy_end(x, solver, cond.at[2].set(jnp.nan))
    assert jnp.isfinite(clean).all()
    assert jnp.isnan(spoiled[2]).all()
    np.testing.assert_array_equal(np.delete(spoiled, 2, 0), np.delete(clean, 2, 0))
    alone = wavy_end(x[3:4], solver, cond[3:4])
    np.testing.assert_allclose(alone, clean[3:4], rtol=1e-14)
    path = wavy_points(x, solver, cond)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_allclose(path[-1], clean, rtol=1e-14)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_dtypes(name, dtype, expected):
    solver = SOLVERS[name].make(times.uniform_grid(5))

    def field(x, t, cond):
        assert (x.dtype, t.dtype, t.shape) == (expected, expected, (3,))
        return -x

    out = jax.eval_shape(lambda x: multistep(field, x, solver), jnp.ones((3, 2), dtype))
    assert out.dtype == expected


@pytest.mark.parametrize("name", SOLVERS)
def test_single_precision_is_enough(name):
    # Half a unit in the last place, 6e-8, in some thirty sums of terms up to about ten.
    solver = SOLVERS[name].make(times.uniform_grid(6))
    solver = padded(solver, rows=32, width=10)
    x, exact = (wavy_end(jnp.asarray(X0, dtype), solver) for dtype in ("f4", "f8"))
    assert (x.dtype, exact.dtype) == ("float32", "float64")
    np.testing.assert_allclose(x, exact, atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", ["fireflow", "ab_4", "unipc_3"])
def test_gradient_of_the_numbers(name):
    solver = jax.tree.map(jnp.asarray, SOLVERS[name].make(times.uniform_grid(5)))

    def total(solver):
        return wavy_end(jnp.asarray(X0), solver).sum()

    gradient = jax.jit(jax.grad(total))(solver)
    direction = jax.tree.map(
        lambda a: jnp.cos(jnp.linspace(1.0, 9.0, a.size)).reshape(a.shape), solver
    )
    near = [
        total(jax.tree.map(lambda a, d, e=e: a + e * d, solver, direction))
        for e in (1e-6, -1e-6)
    ]
    along = sum(
        jax.tree.leaves(jax.tree.map(lambda a, d: (a * d).sum(), gradient, direction))
    )
    assert all(jnp.isfinite(leaf).all() for leaf in gradient)
    np.testing.assert_allclose(along, (near[0] - near[1]) / 2e-6, rtol=1e-7)


def test_one_program_serves_all_solvers_of_a_shape():
    traces = []

    @jax.jit
    def sample(x, solver):
        traces.append(None)
        return multistep(wavy, x, solver)

    grids = times.uniform_grid(5), times.power_grid(5), times.circular_grid(5)
    for grid in grids:
        sample(jnp.asarray(X0), ab(grid))
        sample(jnp.asarray(X0), solvers.dpm_solver(grid))
    assert len(traces) == 1


def test_solvers_are_made_inside_a_compiled_function_too():
    options = {"interpolant": PATHS["trigonometric"]}
    grid = times.log_snr_grid(5, **options)

    @jax.jit
    def sample(x):
        inside = times.log_snr_grid(5, **options)
        return multistep(wavy, x, solvers.unipc(inside, **options))

    with jax.enable_x64(False):
        x = jnp.asarray(X0, jnp.float32)
        out = sample(x)
        solver = solvers.unipc(grid, **options)
        np.testing.assert_array_equal(
            out, jax.jit(lambda x: multistep(wavy, x, solver))(x)
        )


THREE = times.uniform_grid(3)
BAD = [
    (lambda: solvers.euler([0.0, 0.7, 0.5]), "strictly monotone"),
    (lambda: solvers.unipc([0.0, 0.7, 0.5]), "strictly monotone"),
    (lambda: solvers.heun([0.0, 1.2]), r"lie in \[0, 1\]"),
    (lambda: ab(THREE, order=5), "`order` must be 2, 3 or 4; got 5"),
    (lambda: ab(THREE, order=4), "order 4 needs at least 4 steps; got 3"),
    (lambda: ab(THREE, start="rk"), "`start` must be one of .*; got 'rk'"),
    (lambda: solvers.dpm_solver(THREE, order=3), "`order` must be 1 or 2; got 3"),
    (lambda: solvers.dpm_solver([0.0, 1.0]), "order 2 needs at least 2 steps; got 1"),
    (lambda: solvers.unipc(THREE, order=1), "`order` must be 2 or 3; got 1"),
    (lambda: solvers.unipc([0.0, 0.5, 1.0], order=3), "at least 3 steps; got 2"),
    (lambda: pc(THREE, heun_steps=0), r"`heun_steps` must lie in 1\.\.3; got 0"),
    (lambda: pc(THREE, heun_steps=4), r"`heun_steps` must lie in 1\.\.3; got 4"),
    (lambda: solvers.runge_kutta(THREE, a=[[1]], b=[1]), "zero on and above"),
    (lambda: solvers.runge_kutta(THREE, a=[[0]], b=[0.5]), "`b` must have the sum 1"),
    (lambda: solvers.runge_kutta(THREE, a=[[0]], b=[0, 1]), r"`a` \[stages, stages\]"),
    (
        lambda: solvers.runge_kutta(THREE, a=[[0, 0], [2, 0]], b=[0.75, 0.25]),
        r"rows of `a` sums in \[0, 1\]",
    ),
    *(
        (
            lambda path=path: solvers.unipc(THREE[::-1], interpolant=PATHS[path]),
            "at t=1.0 the velocity",
        )
        for path in ("variance_preserving", "linear_variance_preserving")
    ),
    (
        lambda: solvers.dpm_solver(THREE, interpolant=interpolants.polynomial(2)),
        "at t=0.0 the velocity",
    ),
    (
        lambda: solvers.dpm_solver(
            THREE, interpolant=Interpolant(lambda t: 1 - t, lambda t: t)
        ),
        "log-SNR of `interpolant` must rise",
    ),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("untyped")
def test_bad_solvers_are_refused():
    solver, x = solvers.euler(THREE), jnp.ones((2, 1))
    for bad, message in (
        (solver._replace(scale=np.ones(2)), r"`solver.scale` must have shape \[n\]"),
        (solver._replace(weights=np.ones(3)), "`solver.weights` must have shape"),
        (solver._replace(weights=np.ones((3, 0))), r"weights \[n, w\] of an eval"),
        (
            MultistepSolver(*(np.ones(0) for _ in range(4)), np.ones((0, 1))),
            r"weights \[n, w\] of an evaluation",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            multistep(wavy, x, bad)
    with pytest.raises(ValueError, match="`field` must return shape"):
        multistep(lambda x, t, c: x[:1], x, solver)
    with pytest.raises(ValueError, match="leading axis batch=2"):
        multistep(wavy, x, solver, cond=jnp.ones(3))
