"""Chosen grids and FlowTurbo, against flows known in closed form."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, objectives, sampling, times
from flowjax.sampling import step_choice
from tests.line_flow import (
    V,
    euler,
    gaussian_reference,
    heun,
    noise,
    reference,
    rms,
)

pytestmark = pytest.mark.usefixtures("x64")


# Choice of steps


def fine(x0, K):
    grid = np.linspace(0, 1, K + 1)
    points = [x0]
    for t, s in itertools.pairwise(grid):
        points.append(points[-1] + (s - t) * V(points[-1], jnp.full(len(x0), t)))
    return jnp.stack(points)


@pytest.mark.parametrize("grid", [np.linspace(0, 1, 10), times.power_grid(9)])
def test_boss_costs_are_the_errors_of_the_jumps(grid):
    x0 = jax.random.normal(jax.random.key(0), (5, 3, 2), float)

    def field(x, t, cond=None):
        return jnp.sin(3 * x + t[:, None, None]) + cond[:, None, None]

    cond = jnp.arange(5.0)
    costs = step_choice.boss_costs(field, x0, grid, cond=cond)
    points, slopes = [x0], []
    for t, s in itertools.pairwise(grid):
        slopes.append(field(points[-1], jnp.full(5, t), cond))
        points.append(points[-1] + (s - t) * slopes[-1])
    expected = np.zeros((10, 10))
    for i, j in itertools.combinations(range(10), 2):
        miss = points[i] + (grid[j] - grid[i]) * slopes[i] - points[j]
        expected[i, j] = (miss**2).sum((1, 2)).mean()
    np.testing.assert_allclose(costs, expected, atol=1e-14)
    # One jump is the fine solution itself, to the last bit.
    assert not np.diagonal(costs, 1).any()


def test_dynamic_programming_is_brute_force():
    grid = np.linspace(0, 1, 10)
    for seed in range(5):
        costs = np.random.default_rng(seed).uniform(size=(10, 10))
        chains = [(0, *c, 9) for c in itertools.combinations(range(1, 9), 3)]
        best = min(chains, key=lambda c: sum(costs[i, j] for i, j in pairs(c)))
        np.testing.assert_array_equal(
            step_choice.boss_grid(grid, costs, 4), grid[list(best)]
        )


def pairs(chain):
    return itertools.pairwise(chain)


def test_all_steps_are_the_whole_grid_and_one_step_is_one_jump():
    grid = np.linspace(0, 1, 13)
    costs = step_choice.boss_costs(V, noise(0), grid)
    np.testing.assert_array_equal(step_choice.boss_grid(grid, costs, 12), grid)
    assert step_choice.boss_grid(grid, costs, 1).tolist() == [0, 1]


@pytest.mark.parametrize("n", [3, 4, 6])
def test_boss_grids_are_better_than_uniform_ones_on_noise_not_seen(n):
    grid, x0 = np.linspace(0, 1, 61), noise(7, 2000)
    costs = jax.jit(lambda x: step_choice.boss_costs(V, x, grid))(noise(0))
    exact = reference(x0)(jnp.ones(()))
    chosen = euler(V, x0, step_choice.boss_grid(grid, costs, n))
    uniform = euler(V, x0, np.linspace(0, 1, n + 1))
    assert rms(chosen - exact) < rms(uniform - exact)


def test_fine_tuning_is_stationary_at_the_exact_jumps():
    grid, x0 = np.array([0.0, 0.3, 0.7, 1.0]), noise(0, 12)
    points = jnp.stack([gaussian_reference(x0)(jnp.asarray(t)) for t in grid])
    jump = jnp.arange(12) % 3
    path = step_choice.jump_path(points, grid, jump, cond=jnp.arange(12))
    np.testing.assert_array_equal(path.t, grid[np.asarray(jump)])
    np.testing.assert_array_equal(path.cond, np.arange(12))
    data = analytic.gaussian(jnp.array([0.7]), jnp.array([0.4]))
    transport = analytic.average_velocity(data, interpolants.linear())

    def student(shift, x, t, cond=None):
        s = jnp.asarray(grid)[jnp.searchsorted(jnp.asarray(grid), t) + 1]
        return transport(x, t, s) + shift

    @jax.jit
    def loss(shift):
        return objectives.flow_matching(partial(student, shift), path).mean()

    assert loss(0.0) < 1e-20
    assert abs(jax.grad(loss)(0.0)) < 1e-10
    assert jax.grad(loss)(0.1) > 0.1
    # The student's Euler steps lead where the teacher went.
    np.testing.assert_allclose(
        euler(partial(student, 0.0), x0, grid), points[-1], atol=1e-10
    )


GRIDS = [
    (np.ones(11), lambda q: q),
    (np.linspace(0, 1, 11), np.sqrt),
    (np.linspace(1, 0, 11), lambda q: 1 - np.sqrt(1 - q)),
    # All loss in the second half.
    (np.repeat([0.0, 1.0], [6, 5]), None),
]


@pytest.mark.parametrize(("losses", "inverse"), GRIDS)
def test_the_loss_grid_inverts_the_distribution_exactly(losses, inverse):
    clock = np.linspace(0, 1, 11)
    for n in (1, 4, 7):
        grid = step_choice.loss_cdf_grid(clock, losses, n)
        assert (grid[0], grid[-1], len(grid)) == (0, 1, n + 1)
        assert (np.diff(grid) > 0).all()
        if inverse is not None:
            np.testing.assert_allclose(grid, inverse(np.arange(n + 1) / n), atol=1e-14)
        # Each step holds its share of the integral.
        dense = np.linspace(0, 1, 200_001)
        height = np.interp(dense, clock, losses)
        area = np.cumsum(np.append(0, (height[1:] + height[:-1]) / 2)) / 200_000
        shares = np.diff(np.interp(grid, dense, area))
        np.testing.assert_allclose(shares, area[-1] / n, atol=1e-9)


def test_a_share_that_ends_at_a_gap_ends_there():
    """Half of the loss lies before the gap; next to it the density is 0."""
    losses = [1, 1, 1, 0, 0, 0, 1, 1, 1]
    grid = step_choice.loss_cdf_grid(np.linspace(0, 1, 9), losses, 2)
    assert grid.tolist() == [0, 3 / 8, 1]


def test_the_measured_profile_of_gaussian_data():
    std = jnp.array([0.3, 0.8])
    data = analytic.gaussian(jnp.array([0.5, -1.0]), std)
    keys = jax.random.split(jax.random.key(0))
    x1 = analytic.sample(keys[0], data, 4000)
    x0 = jax.random.normal(keys[1], x1.shape, x1.dtype)
    clock = jnp.linspace(0, 1, 5)
    path = interpolants.linear()
    measured = step_choice.loss_profile(
        analytic.velocity(data, path), path, x0, x1, clock
    )
    t, variance = clock[:, None], std[None] ** 2
    share = variance / (t**2 * variance + (1 - t) ** 2)
    # The residuals are normal: their squares have the variance 2 share^2.
    error = np.sqrt((2 * share**2).sum(1) / 4 / 4000)
    assert (np.abs(measured - share.mean(1)) < 4 * error).all()


# FlowTurbo


def exact_refiner(x, velocity, t, cond=None):
    return V(x, t) - velocity


def pseudo(field, x, grid, heun_steps):
    """Heun and pseudo-corrector steps, written out."""
    kept = None
    for k, (t, s) in enumerate(itertools.pairwise(grid)):
        d0 = field(x, jnp.full(len(x), t)) if k < heun_steps else kept
        kept = field(x + (s - t) * d0, jnp.full(len(x), s))
        x = x + (s - t) / 2 * (d0 + kept)
    return x, kept


@pytest.mark.parametrize("plan", [(1, 2, 3), (2, 0, 2), (1, 4, 0)])
def test_flow_turbo_counts_and_is_heun_with_the_exact_refiner(plan):
    heun_steps, pseudo_steps, refiner_steps = plan
    n, counts = sum(plan), {"field": 0, "refiner": 0}
    grid = times.shifted_grid(n, shift=2.0)

    def counted(name, function):
        def call(*arguments):
            jax.debug.callback(lambda: counts.update({name: counts[name] + 1}))
            return function(*arguments)

        return call

    x = sampling.flow_turbo(
        counted("field", V),
        counted("refiner", exact_refiner),
        noise(0),
        grid=grid,
        heun_steps=heun_steps,
        refiner_steps=refiner_steps,
    )
    jax.effects_barrier()
    assert counts == {
        "field": 2 * heun_steps + pseudo_steps,
        "refiner": 2 * refiner_steps,
    }
    switch = heun_steps + pseudo_steps
    expected, _ = pseudo(V, noise(0), grid[: switch + 1], heun_steps)
    np.testing.assert_allclose(x, heun(V, expected, grid[switch:]), atol=1e-13)


def test_refined_steps_hand_on_the_slope_one_step_back():
    """A refiner that does nothing: the kept slope goes on for ever."""
    grid = times.power_grid(5)
    x = sampling.flow_turbo(
        V, lambda x, v, t, cond: 0 * v, noise(0), grid=grid, refiner_steps=3
    )
    start, kept = pseudo(V, noise(0), grid[:3], 1)
    np.testing.assert_allclose(x, start + (1 - grid[2]) * kept, atol=1e-13)

    def half(x, v, t, cond):  # d0 = 2 c, d1 = 2 d0; then c = d0
        return v

    x = sampling.flow_turbo(V, half, noise(0), grid=grid, refiner_steps=2)
    start, c = pseudo(V, noise(0), grid[:4], 1)
    h = np.diff(grid)[3:]
    np.testing.assert_allclose(x, start + (3 * h[0] + 6 * h[1]) * c, atol=1e-12)


def test_the_refiner_learns_the_difference_one_step_ahead():
    x, t = noise(0, 32), jnp.linspace(0, 0.8, 32)
    s = t + 0.1

    def loss(gain):
        return sampling.refiner_loss(
            lambda x, v, t, cond: gain * exact_refiner(x, v, t), V, x, t, s
        ).mean()

    assert loss(1.0) < 1e-28
    assert abs(jax.grad(loss)(1.0)) < 1e-14
    v = V(x, t)
    change = V(x + (s - t)[:, None] * v, s) - v
    np.testing.assert_allclose(loss(0.0), jnp.mean(change**2), rtol=1e-12)


# Errors


def raising():
    x0, grid = noise(0, 4), np.linspace(0, 1, 5)
    square, points = np.zeros((5, 5)), jnp.zeros((5, 4, 1))
    turbo = partial(sampling.flow_turbo, V, exact_refiner, x0, grid=grid)
    return {
        "strictly monotone": lambda: step_choice.boss_costs(V, x0, (0.0, 0.0)),
        r"`x0` must have shape": lambda: step_choice.boss_costs(V, x0[:, 0], grid),
        r"shape \(5, 5\)": lambda: step_choice.boss_grid(grid, square[1:], 2),
        r"lie in 1..4": lambda: step_choice.boss_grid(grid, square, 5),
        "be finite": lambda: step_choice.boss_grid(grid, square + np.nan, 2),
        r"\[5, batch": lambda: step_choice.jump_path(
            points[1:], grid, jnp.zeros(4, int)
        ),
        "`jump` must": lambda: step_choice.jump_path(points, grid, jnp.zeros(3, int)),
        "`steps` must be": lambda: step_choice.loss_cdf_grid(grid, grid, 0),
        "as many": lambda: step_choice.loss_cdf_grid(grid, grid[1:], 2),
        "not negative": lambda: step_choice.loss_cdf_grid(grid, -grid, 2),
        "not all 0": lambda: step_choice.loss_cdf_grid(grid, 0 * grid, 2),
        "heun_steps` must lie": lambda: turbo(heun_steps=0, refiner_steps=1),
        "refiner_steps` must lie in 0..3": lambda: turbo(refiner_steps=4),
        "`refiner` must return": lambda: sampling.flow_turbo(
            V, lambda x, v, t, cond: v[:2], x0, grid=grid, refiner_steps=1
        ),
    }


@pytest.mark.usefixtures("untyped")
def test_errors_say_what_was_expected():
    for message, call in raising().items():
        with pytest.raises(ValueError, match=message):
            call()
