"""Bespoke solvers, solver search and their files, against flows in closed form."""

import itertools
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.engine import solver_files
from flowjax import interpolants, times
from flowjax.sampling import bespoke, solver_search, solvers
from flowjax.sampling.multistep import MultistepSolver, multistep, multistep_path
from tests.line_flow import (
    V,
    euler,
    gaussian,
    gaussian_reference,
    midpoint,
    noise,
    reference,
    rms,
    run,
    velocity,
)

pytestmark = pytest.mark.usefixtures("x64")

ROOT = Path(__file__).parents[1]
BASES = {1: euler, 2: midpoint}


def perturbed(params, seed, size=0.3):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        a + size * jax.random.normal(k, a.shape, float)
        for a, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


# Bespoke solvers


@pytest.mark.parametrize("order", [1, 2])
def test_bespoke_solvers_start_as_their_base(order):
    solver = bespoke.bespoke_solver(bespoke.bespoke_identity(6), order=order)
    expected = BASES[order](velocity(), noise(0), np.linspace(0, 1, 6 // order + 1))
    np.testing.assert_allclose(run(noise(0), solver), expected, atol=1e-13)


@pytest.mark.parametrize("order", [1, 2])
def test_bespoke_steps_are_those_of_the_changed_equation(order):
    """Any parameters: the base, written out, in the variables (y, r)."""
    n = 6
    params = perturbed(bespoke.bespoke_identity(n), 1)
    change = bespoke.scale_time(params)

    def changed(y, r, cond=None):
        """The field of y(r), which knows the change at the base's points alone."""
        k = round(float(r[0]) * n)
        t, dt, s, ds = (leaf[k] for leaf in change)
        x = y / s
        return ds * x + dt * s * velocity()(x, jnp.full(len(y), t))

    grid = np.linspace(0, 1, n // order + 1)
    expected = BASES[order](changed, noise(0), grid) / change.scales[-1]
    solver = bespoke.bespoke_solver(params, order=order)
    np.testing.assert_allclose(run(noise(0), solver), expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_bespoke_contains_the_change_of_path(order):
    """Steps on the trigonometric path, with the linear path's field."""
    path, n = interpolants.trigonometric(), 6

    def scale(r):
        return path.alpha(r) + path.sigma(r)

    params = bespoke.bespoke_sampled(lambda r: path.alpha(r) / scale(r), scale, n)
    solver = bespoke.bespoke_solver(params, order=order)
    expected = BASES[order](velocity(path), noise(0), np.linspace(0, 1, n // order + 1))
    np.testing.assert_allclose(run(noise(0), solver), expected, atol=1e-13)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 2])
def test_bespoke_keeps_the_order_of_its_base_for_smooth_changes(order, seed):
    a, b = np.random.default_rng(seed).uniform(-0.6, 0.6, 2)

    def time(r):  # from 0 to 1, its slope at least 1 - 0.6
        return r + a * r * (1 - r)

    def scale(r):
        return jnp.exp(b * jnp.sin(3 * r) + a * r)

    x0 = noise(0)
    exact, errors = reference(x0)(jnp.ones(())), []
    for n in (80, 160):
        params = bespoke.bespoke_sampled(time, scale, n)
        solver = bespoke.bespoke_solver(params, order=order)
        errors.append(rms(run(x0, solver) - exact))
    slope = np.log2(errors[0] / errors[1])
    assert abs(slope - order) < 0.15


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_bespoke_loss_bounds_the_error(order, seed):
    x0, size = noise(seed, 64), 8
    params = perturbed(bespoke.bespoke_identity(size), seed, 0.1)
    # The field is affine: its slope at any state is its Lipschitz constant.
    clock = jnp.linspace(0, 1, 1001)
    slopes = (0.4**2 * clock - (1 - clock)) / ((0.4 * clock) ** 2 + (1 - clock) ** 2)
    largest = float(jnp.abs(slopes).max())
    bound = jax.jit(
        lambda p, x: bespoke.bespoke_loss(
            p, gaussian, gaussian_reference(x), order=order, lipschitz=largest
        )
    )(params, x0)
    solver = bespoke.bespoke_solver(params, order=order)
    exact = gaussian_reference(x0)(jnp.ones(()))
    error = jnp.abs(multistep(gaussian, x0, solver) - exact)[:, 0]
    assert bound.shape == (64,)
    assert (bound >= error).all()


@pytest.mark.parametrize("order", [1, 2])
def test_the_growth_of_a_linear_field_is_attained(order):
    """For v = c x, s' >= 0 and c > 0 the bound of a step is its factor exactly."""
    n, c = 4, 1.7
    params = perturbed(bespoke.bespoke_identity(n), 3)
    params = params._replace(scale_rates=jnp.abs(params.scale_rates))
    solver = bespoke.bespoke_solver(params, order=order)
    points = multistep_path(lambda x, t, cond=None: c * x, jnp.ones((1, 1)), solver)
    factors = (points[order::order] / points[:-order:order])[:, 0, 0]
    growth = bespoke._growth(bespoke.scale_time(params), order, c)
    np.testing.assert_allclose(growth, factors, rtol=1e-13)


def test_bespoke_loss_weighs_a_step_by_the_growth_of_later_ones():
    """One step with an error, the others exact: a field that is 0 but at t = 1/4."""
    rates = jnp.array([3.0, 0.5, 2.0, 4.0])
    params = bespoke.bespoke_identity(4)._replace(log_time_rates=jnp.log(rates))

    def still(t):
        return jnp.full((2, 1), 3.0)

    def field(x, t, cond=None):
        return jnp.where(jnp.abs(t - 0.25) < 1e-9, 1.0, 0.0)[:, None] + 0 * x

    loss = bespoke.bespoke_loss(params, field, still, order=1, lipschitz=2.0)
    expected = 0.25 * 0.5 * (1 + 0.25 * 2 * 2) * (1 + 0.25 * 4 * 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_reference_points_move_with_the_velocity():
    x0 = noise(0, 8)

    @jax.jit
    def at(inner):
        grid = jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)])
        return solver_search.reference_points(
            gaussian, gaussian_reference(x0), grid, None
        )

    inner = jnp.array([0.2, 0.6])
    points, rate = jax.jvp(at, (inner,), (jnp.ones(2),))
    for k, t in enumerate((0.0, 0.2, 0.6, 1.0)):
        np.testing.assert_allclose(points[k], gaussian_reference(x0)(jnp.asarray(t)))
        expected = gaussian(points[k], jnp.full(8, t)) if 0 < t < 1 else 0 * points[k]
        np.testing.assert_allclose(rate[k], expected, atol=1e-14)


def test_a_step_without_error_has_a_finite_gradient():
    """A constant field: every loss is 0 at the start, and so is its gradient."""

    def line(t):
        return jnp.full((2, 1), 1.0) * t

    def field(x, t, cond=None):
        return jnp.ones_like(x)

    for loss, params in (
        (bespoke.bespoke_loss, bespoke.bespoke_identity(4)),
        (solver_search.search_loss, solver_search.search_start(np.linspace(0, 1, 5))),
    ):
        value, slope = jax.jit(
            jax.value_and_grad(lambda p, f=loss: f(p, field, line).sum())
        )(params)
        assert value == pytest.approx(0, abs=1e-12)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


# Solver search


@pytest.mark.parametrize("grid", [np.linspace(0, 1, 7), times.power_grid(6)])
def test_a_search_starts_as_euler_or_adams_bashforth(grid):
    for order, memory in ((1, None), (1, 0), (2, None), (2, 1)):
        solver = solver_search.searched_solver(
            solver_search.search_start(grid, memory=memory, order=order)
        )
        x, old = noise(0), None
        for i, (t, s) in enumerate(itertools.pairwise(grid)):
            v = velocity()(x, jnp.full(len(x), t))
            ratio = (s - t) / (grid[i] - grid[i - 1]) if i else 0
            x = x + (s - t) * (
                v if old is None or order == 1 else v + ratio / 2 * (v - old)
            )
            old = v
        np.testing.assert_allclose(run(noise(0), solver), x, atol=1e-13)


def test_searched_rows_sum_to_the_step_and_look_back_only():
    params = perturbed(solver_search.search_start(np.linspace(0, 1, 6)), 0)
    solver = solver_search.searched_solver(params)
    steps = np.diff(np.append(solver.times, 1.0))
    np.testing.assert_allclose(solver.weights.sum(1), steps, atol=1e-14)
    assert solver.weights.shape == (5, 5)
    assert not np.triu(solver.weights, 1).any()


def test_search_loss_is_the_distance_at_its_own_times():
    """One row, written out: mean squares on the way, Huber at the end."""
    x0 = noise(0, 16)
    params = perturbed(solver_search.search_start(np.linspace(0, 1, 5)), 0)
    solver = solver_search.searched_solver(params)
    z = multistep_path(gaussian, x0, solver)
    exact = [gaussian_reference(x0)(t) for t in (*solver.times[1:], jnp.ones(()))]
    way = sum((z[i + 1] - exact[i]) ** 2 for i in range(3))[:, 0]
    end = np.abs(z[4] - exact[3])[:, 0]
    huber = np.where(end <= 1e-3, end**2 / 2, 1e-3 * (end - 5e-4))
    np.testing.assert_allclose(
        solver_search.search_loss(params, gaussian, gaussian_reference(x0)),
        way + 1000 * huber,
        rtol=1e-9,
    )


# Both learn


def fit(loss, params, steps=150, rate=0.02):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params, state, x0):
        slope = jax.grad(lambda p: loss(p, V, reference(x0)).mean())(params)
        with jax.numpy_dtype_promotion("standard"):  # within optax
            updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for k in range(steps):
        params, state = step(params, state, noise(1000 + k % 8, 64))
    return params


LEARNERS = {
    "bespoke_euler": (
        partial(bespoke.bespoke_loss, order=1),
        lambda n: bespoke.bespoke_identity(n),
        partial(bespoke.bespoke_solver, order=1),
    ),
    "bespoke_midpoint": (
        bespoke.bespoke_loss,
        lambda n: bespoke.bespoke_identity(n),
        bespoke.bespoke_solver,
    ),
    "search_from_euler": (
        solver_search.search_loss,
        lambda n: solver_search.search_start(np.linspace(0, 1, n + 1)),
        solver_search.searched_solver,
    ),
    "search_from_adams_bashforth": (
        solver_search.search_loss,
        lambda n: solver_search.search_start(np.linspace(0, 1, n + 1), order=2),
        solver_search.searched_solver,
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_learning_lowers_the_error_on_noise_not_seen(name):
    """Below its own start and, but for Euler steps, below all uniform base steps."""
    n, (loss, start, make) = 6, LEARNERS[name]
    x0 = noise(7, 2000)
    exact = reference(x0)(jnp.ones(()))
    error = (run(x0, make(fit(loss, start(n)))) - exact) ** 2
    others = [run(x0, make(start(n))), run(x0, solvers.euler(times.uniform_grid(n)))]
    if name != "bespoke_euler":
        others.append(run(x0, solvers.midpoint(times.uniform_grid(n // 2))))
    for other in others:
        gain = (other - exact) ** 2 - error
        # Four standard errors of the mean over the samples.
        assert gain.mean() > 4 * gain.std() / np.sqrt(len(x0))


# Files


def test_a_solver_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "solver.json"
    for make in (bespoke.bespoke_solver(bespoke.bespoke_identity(6)), odd_solver()):
        solver_files.save_solver(path, make)
        for old, new in zip(make, solver_files.load_solver(path), strict=True):
            np.testing.assert_array_equal(old, new)
    entries = {4: {"name": "a", "solver": odd_solver()}, 2: {"name": "b", "jumps": [0]}}
    solver_files.save_entries(path, entries)
    read = solver_files.load_entry(path, 4)
    np.testing.assert_array_equal(read["solver"].weights, odd_solver().weights)
    assert solver_files.load_entry(path, 2) == entries[2]


def odd_solver():
    """Numbers that no rounding leaves alone."""
    numbers = np.random.default_rng(0).uniform(size=(4, 3)) / 3
    return MultistepSolver(*numbers.T[[0, 1, 2, 0]], numbers)


BROKEN = [
    ("", "not JSON"),
    ("[1, 2]", "has the columns"),
    ('{"times": [0]}', "has the columns"),
    (lambda c: c.update(times=["a"]), "times is not made of numbers"),
    (lambda c: c["weights"].pop(), r"weights \[n, w\]"),
    (lambda c: c["weights"][0].pop(), "weights is not made of numbers"),
    (lambda c: c["scale"].append(1.0), r"weights \[n, w\]"),
    (lambda c: c["state"].__setitem__(0, float("nan")), "not finite"),
    (lambda c: c["times"].__setitem__(0, 1.5), r"lie in \[0, 1\]"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_a_damaged_file_says_so(damage, message, tmp_path):
    path = tmp_path / "solver.json"
    if isinstance(damage, str):
        path.write_text(damage)
    else:
        columns = solver_files.to_columns(odd_solver())
        damage(columns)
        path.write_text(json.dumps(columns))
    with pytest.raises(ValueError, match=f"solver.json holds no solver: .*{message}"):
        solver_files.load_solver(path)


def test_a_missing_sampler_says_so(tmp_path):
    path = tmp_path / "sampler.json"
    with pytest.raises(FileNotFoundError, match=r"run experiments\.tune_sampler"):
        solver_files.load_entry(path, 4)
    solver_files.save_entries(path, {8: {"name": "a", "jumps": [0, 1]}})
    with pytest.raises(ValueError, match="has samplers for 8 evaluations; got 4"):
        solver_files.load_entry(path, 4)
    path.write_text('{"4": {"name": "a"}}')
    with pytest.raises(ValueError, match="either a solver or jumps"):
        solver_files.load_entry(path, 4)


@pytest.mark.slow
def test_a_run_is_tuned_and_sampled(tmp_path):
    """A tiny run: the winner is the best of the table, and sampling uses it."""
    folder = tmp_path / "run"

    def call(module, *arguments):
        command = [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, text=True, capture_output=True, timeout=1200
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("train", "density_mean_flow", "--smoke", "--run", folder)
    flags = ["--bespoke", "--boss", "--search", "--learning-steps", 20, "--count", 64]
    call("tune_sampler", folder, "--nfe", 2, 4, *flags)
    tuning = json.loads((folder / "tuning.json").read_text())
    for nfe in ("2", "4"):
        errors, winner = tuning["errors"][nfe], tuning["winners"][nfe]
        kinds = {name.split(",")[0] for name in errors}
        assert {"euler", "midpoint", "jumps", "bespoke", "boss", "search"} <= kinds
        assert winner["error"] == min(errors.values()) == errors[winner["name"]]
        assert 0 < winner["held out"] < winner["uniform Euler, held out"]
    assert (folder / "tuning.png").read_bytes().startswith(b"\x89PNG")
    output = call("sample", folder, "--nfe", 4, "--count", 20)
    assert "with 4 evaluations each" in output
    assert np.load(folder / "samples_nfe_4.npz")["x"].shape == (20, 2)
    file = tmp_path / "mine.json"
    solver_files.save_solver(file, solvers.euler(times.uniform_grid(3)))
    assert "with 3 evaluations" in call("sample", folder, "--sampler-file", file)


# Errors


def raising():
    grid = np.linspace(0, 1, 5)
    identity, start = bespoke.bespoke_identity(4), solver_search.search_start(grid)
    solver = bespoke.bespoke_solver(identity)
    return {
        "at least 1": lambda: bespoke.bespoke_identity(0),
        "from 0 to 1": lambda: bespoke.bespoke_sampled(lambda r: r / 2, jnp.exp, 4),
        "multiple of 2": lambda: bespoke.bespoke_solver(bespoke.bespoke_identity(3)),
        "`params.scale_rates` must have": lambda: bespoke.bespoke_solver(
            identity._replace(scale_rates=jnp.zeros(3))
        ),
        r"one of \(1, 2\)": lambda: bespoke.bespoke_solver(identity, order=3),
        "a change for 4": lambda: bespoke.change_variables(
            solver, bespoke.scale_time(bespoke.bespoke_identity(3))
        ),
        "must run from 0": lambda: solver_search.search_start(grid[1:]),
        "needs memory 1": lambda: solver_search.search_start(grid, memory=0, order=2),
        "order` must be": lambda: solver_search.search_start(grid, order=3),
        "`params.coefficients` must have": lambda: solver_search.searched_solver(
            start._replace(step_logits=jnp.zeros(3))
        ),
    }


@pytest.mark.usefixtures("untyped")
def test_errors_say_what_was_expected():
    for message, call in raising().items():
        with pytest.raises(ValueError, match=message):
            call()
