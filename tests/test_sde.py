"""Stochastic integration against Gaussians and mixtures known in closed form."""

import functools
import importlib
import itertools
import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, sampling
from flowjax.sampling import diffusions, kernels
from flowjax.sampling.diffusions import rates, rates_on
from flowjax.sampling.sde import GridNoise, sde
from flowjax.sampling.transitions import sample_chain, sample_transition
from tests.stochastic import (
    GAUSSIAN,
    INF,
    LINEAR,
    MEAN,
    MEMBERS,
    MIXTURE,
    PATHS,
    STD,
    chosen,
    gaussian_velocity,
    indices,
    marginal,
    member_of,
    path_of,
)

pytestmark = pytest.mark.usefixtures("x64")

MODULE = importlib.import_module("flowjax.sampling.sde")


class GivenNoise(GridNoise):
    """Increments and areas on the grid, [steps, batch, *event] each, as they are."""

    increments: Any = None
    areas: Any = None

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        k = jnp.searchsorted((self.times[:-1] + self.times[1:]) / 2, t0)
        area = diffrax.SpaceTimeLevyArea(t1 - t0, self.increments[k], self.areas[k])
        return area if use_levy else area.W


@pytest.fixture
def given(monkeypatch):
    """Let `sde` follow given noise."""

    def follow(increments, areas):
        noise = functools.partial(GivenNoise, increments=increments, areas=areas)
        monkeypatch.setattr(MODULE, "GridNoise", noise)

    return follow


@functools.partial(jax.jit, static_argnums=0)
def unit_responses(steps, member, path):
    """Ends of `sde` from 0, from 1, and from 0 with one unit of noise per row."""
    interpolant = path_of(path)
    x0 = jnp.zeros((2 * steps + 2, 2)).at[1].set(1.0)
    return sde(
        jax.random.key(0),
        gaussian_velocity(interpolant),
        x0,
        interpolant=interpolant,
        diffusion=member_of(member),
        grid=steps,
        last_step="noisy",
    )[0]


def solve_error(given, name, path, steps):
    """The error of mean and variance at the end of a solve, exactly."""
    rows = np.eye(2 * steps, 2 * steps + 2, 2)[:, :, None] / math.sqrt(steps)
    given(rows[:steps], rows[steps:] / math.sqrt(12))
    x = np.asarray(unit_responses(steps, *indices(name, path)))
    means, variances = marginal(PATHS[path], np.array([0.0, 1.0]))
    gain = x[1] - x[0]
    mean = gain * means[0] + x[0]
    variance = gain**2 * variances[0] + ((x[2:] - x[0]) ** 2).sum(0)
    return np.abs([mean - means[1], variance - variances[1]]).max()


@pytest.mark.parametrize("name", MEMBERS)
def test_the_diffusion_is_that_of_its_formula(name):
    diffusion, squared, limit = MEMBERS[name]
    t = np.array([0.1, 0.35, 0.5, 0.8, 0.99, 1 - 1e-7, 1.0])
    g = jax.jit(lambda t: rates(diffusion, LINEAR, t))(jnp.asarray(t))
    np.testing.assert_allclose(g.squared, squared(t), rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(g.over_sigma[:-1] * (1 - t[:-1]), g.squared[:-1])
    np.testing.assert_allclose(g.over_sigma[-1], limit, atol=1e-14)
    near = g.over_sigma[-2]
    assert near == pytest.approx(limit, abs=1e-5) or (limit == INF and near > 1e5)


@pytest.mark.parametrize("path", PATHS)
def test_the_drift_is_velocity_plus_score(path, key):
    interpolant, t = PATHS[path], jnp.linspace(0.1, 0.95, 6)
    x = jax.random.normal(key, (6, 2))

    @jax.jit
    def drifts():
        v = gaussian_velocity(interpolant)(x, t)
        score = analytic.score(GAUSSIAN, interpolant)(x, t)
        some, least = (
            diffusions.drift(
                v, x, t, interpolant, rates(diffusion, interpolant, t).over_sigma
            )
            for diffusion in (diffusions.constant(0.7), diffusions.memoryless())
        )
        c = interpolants.coefficients(interpolant, t)
        return some, v + 0.7 * score, least, 2 * v - (c.d_alpha / c.alpha)[:, None] * x

    some, expected, least, without_score = drifts()
    np.testing.assert_allclose(some, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(least, without_score, rtol=1e-9, atol=1e-10)


def test_a_diffusion_that_is_not_finite_at_an_end_is_held_there():
    grid = jnp.asarray([0.0, 0.2, 0.7, 1.0])
    t = jnp.asarray([0.0, 0.1, 0.2, 0.5, 0.7, 0.9, 1.0])

    def on(diffusion, path=LINEAR):
        return jax.jit(lambda t: rates_on(grid, diffusion, path, t))(t)

    g = on(diffusions.memoryless())
    np.testing.assert_allclose(g.squared[:4], [8, 8, 8, 2], rtol=1e-12)
    np.testing.assert_allclose(g.over_sigma[:3], [8, 8 / 0.9, 8 / 0.8], rtol=1e-12)
    np.testing.assert_allclose(g.over_sigma[-1], 2, rtol=1e-12)
    g = on(diffusions.constant(0.5))
    np.testing.assert_allclose(g.squared, [1] * 5 + [1 / 3, 0], rtol=1e-12)
    np.testing.assert_allclose(g.over_sigma[3:], [2] + [1 / 0.3] * 3, rtol=1e-12)
    # A square root at the end: g^2 / sigma of `sigma` is 2 there too.
    g = on(diffusions.sigma(), PATHS["linear_variance_preserving"])
    np.testing.assert_allclose(g.over_sigma, 2, rtol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", MEMBERS)
def test_the_moments_of_a_solve_converge(name, path, given):
    errors = [solve_error(given, name, path, steps) for steps in (50, 200)]
    # A factor of 4^0.45 at the slowest, `flow_grpo`; 16 where nothing is held.
    assert errors[1] < min(0.65 * errors[0], 4e-3)


def test_terminal_moments_of_samples(key):
    rows, names = 8_000, ["sigma", "constant", "flow_grpo"]
    x0 = jax.random.normal(key, (rows, 2))
    table = [MEMBERS[name][0] for name in names]

    @jax.jit
    def solve(key, index):
        options = {"interpolant": LINEAR, "diffusion": chosen(index, table)}
        return sde(key, gaussian_velocity(), x0, grid=100, last_step="noisy", **options)

    error = 4.5 / math.sqrt(rows)  # standard errors: 1e-5 of failing by chance, each
    for i, name in enumerate(names):
        x, stats = solve(jax.random.key(i), i)
        assert stats.success, name
        assert (np.abs(x.mean(0) - MEAN) < error * STD).all(), name
        assert (np.abs(x.std(0) - STD) < error * STD / math.sqrt(2)).all(), name
        assert abs(np.corrcoef(x.T)[0, 1]) < error, name


def test_increments_and_areas_draw_from_their_laws(key):
    rows, times = 20_000, jnp.asarray([0.1, 0.3, 0.4, 0.8])
    like = jax.ShapeDtypeStruct((rows, 1), times.dtype)

    @jax.jit
    def draw():
        noise, parts = GridNoise(key=key, times=times, like=like), []
        for a, b in itertools.pairwise(times):
            levy = noise.evaluate(a, b, use_levy=True)
            same = (levy.W == noise.evaluate(a, b)).all() & (levy.dt == b - a)
            parts += [levy.W / jnp.sqrt(b - a), levy.H / jnp.sqrt((b - a) / 12)]
        return jnp.stack(parts)[..., 0], same

    parts, same = draw()
    assert same
    # 4.5 standard errors of a variance; those of the covariances are smaller.
    error = 4.5 * math.sqrt(2 / rows)
    np.testing.assert_allclose(np.cov(parts), np.eye(6), atol=error)


def coarser(increments, areas, factor):
    """The noise of steps ``factor`` times as long along the same Brownian path."""
    w, h = (a.reshape(-1, factor, *a.shape[1:]) for a in (increments, areas))
    total, before = w.sum(1), np.cumsum(w, 1) - w
    # The mean of the path over a step is half its increment plus its area.
    return total, (h + w / 2 + before).mean(1) - total / 2


def test_strong_order_on_the_mixture(given):
    rng = np.random.default_rng(0)
    scale = np.sqrt([1 / 256, 1 / 256 / 12])[:, None, None, None]
    finest = rng.standard_normal((2, 256, 200, 1)) * scale
    x0 = jnp.asarray(rng.standard_normal((200, 1)))

    def solve(steps, solver):
        given(*map(jnp.asarray, coarser(*finest, 256 // steps)))
        options = {"interpolant": LINEAR, "diffusion": diffusions.quartic(1.5)}
        v = analytic.velocity(MIXTURE, LINEAR)
        program = jax.jit(
            lambda x: sde(
                jax.random.key(0),
                v,
                x,
                solver=solver,
                grid=steps,
                last_step="noisy",
                **options,
            )[0]
        )
        return np.asarray(program(x0))

    truth = solve(256, diffrax.ShARK())
    for solver, order in ((diffrax.Euler(), 1.0), (diffrax.ShARK(), 1.5)):
        errors = [np.sqrt(np.mean((solve(n, solver) - truth) ** 2)) for n in (8, 32)]
        # Errors of order 2, which need no noise, still weigh more with ShARK.
        assert math.log(errors[0] / errors[1], 4) > order - 0.1


@pytest.mark.parametrize(
    ("solver", "cost"),
    [(diffrax.Euler(), 1), (diffrax.Heun(), 2), (diffrax.ShARK(), 2)],
    ids=["Euler", "Heun", "ShARK"],
)
def test_solvers_share_a_path_count_truly_and_are_the_ode_without_noise(
    solver, cost, key
):
    count, v = [], analytic.velocity(MIXTURE, LINEAR)
    grid = np.linspace(0, 1, 33) ** 1.2
    x0 = jax.random.normal(key, (50, 1))
    table = [diffusions.zero(), diffusions.sigma()]

    def counted(x, t, cond):
        jax.debug.callback(lambda: count.append(1))
        return v(x, t)

    @jax.jit
    def solve(seed, index):
        options = {"interpolant": LINEAR, "diffusion": chosen(index, table)}
        options |= {"solver": solver, "grid": grid, "last_step": "noisy"}
        return sde(jax.random.key(seed), counted, x0, **options)

    x, stats = solve(0, 0)
    jax.effects_barrier()
    assert len(count) == stats.nfe == 32 * cost
    assert (stats.num_steps, stats.num_rejected) == (32, 0)
    assert stats.success
    assert stats.result == diffrax.RESULTS.successful
    if not isinstance(solver, diffrax.ShARK):
        expected = jax.jit(lambda: sampling.ode(v, x0, solver=solver, steps=grid)[0])()
        np.testing.assert_allclose(x, expected, rtol=1e-12)
    else:
        ends = jnp.zeros(50), jnp.ones(50)
        expected = analytic.flow_map(MIXTURE, LINEAR)(x0, *ends)
        np.testing.assert_allclose(x, expected, atol=2e-3)
    kernel = kernels.euler_maruyama(LINEAR, diffusions.sigma())
    options = {"kernel": kernel, "grid": grid, "last_step": "noisy"}
    chain = jax.jit(lambda key: sample_chain(key, v, x0, **options))(jax.random.key(0))
    same, other = (
        np.sqrt(np.mean((solve(seed, 1)[0] - chain.states[-1]) ** 2)) for seed in (0, 1)
    )
    # The error of 32 Euler steps, against the spread of the end given its start.
    assert same < (1e-13 if cost == 1 else 0.1)
    assert other > 0.5


def test_rows_are_independent_and_sharded_jit_changes_nothing(key):
    x0, scale = jax.random.normal(key, (8, 2)), jnp.linspace(0.5, 1.5, 8)
    v = gaussian_velocity()
    kernel = kernels.ddim(LINEAR)

    @jax.jit
    def sample(seed, x, scale):
        key = jax.random.key(seed)
        field = lambda x, t, c: c["scale"][:, None] * v(x, t)  # noqa: E731
        options = {"cond": {"scale": scale}, "grid": 5}
        model = {"interpolant": LINEAR, "diffusion": diffusions.sigma()}
        chain = sample_chain(key, field, x, kernel=kernel, **options)
        return sde(key, field, x, **model, **options), chain.states[-1]

    (x, stats), end = sample(7, x0, scale)
    assert stats.success
    (few, _), few_end = sample(7, x0[:2], scale[:2])
    np.testing.assert_allclose(few, x[:2], rtol=1e-12)
    np.testing.assert_allclose(few_end, end[:2], rtol=1e-12)
    (poisoned, stats), _ = sample(7, x0.at[1].set(jnp.nan), scale)
    assert np.isnan(poisoned[1]).all()
    np.testing.assert_array_equal(np.delete(poisoned, 1, 0), np.delete(x, 1, 0))
    assert not stats.success
    assert stats.result == diffrax.RESULTS.nonfinite
    # Equal rows get different noise, and so does another key.
    (same, _), _ = sample(7, jnp.zeros((8, 2)), jnp.ones(8))
    assert len(np.unique(np.asarray(same).round(9))) == 16
    assert np.abs(sample(8, x0, scale)[0][0] - x).min() > 1e-6
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    (sharded, stats), sharded_end = sample(7, *jax.device_put((x0, scale), rows))
    assert sharded.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(sharded, x, rtol=1e-12)
    np.testing.assert_allclose(sharded_end, end, rtol=1e-12)
    assert stats.success


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes_of_one_row(dtype):
    expected = "float64" if dtype == "float64" else "float32"
    model = {"interpolant": LINEAR, "diffusion": diffusions.memoryless()}
    kernel, key = kernels.euler_maruyama(**model), jax.random.key(0)

    def v(x, t, cond):
        assert (x.dtype, t.dtype, t.shape) == (expected, expected, (1,))
        return (-x).astype(jnp.bfloat16)

    def outputs(x0):
        t, s = jnp.array([0.25], dtype), jnp.array([0.5], dtype)
        x, stats = sde(key, v, x0, grid=2, last_step="noisy", **model)
        chain = sample_chain(key, v, x0, kernel=kernel, grid=1)
        step = sample_transition(key, v, x0, t, s, kernel=kernel)
        return (x, chain, step), stats

    for wide in {True, dtype == "float64"}:
        with jax.enable_x64(wide):
            x0 = jnp.ones((1, 2, 2, 1), dtype)
            arrays, _ = jax.eval_shape(outputs, x0)
            assert {leaf.dtype for leaf in jax.tree.leaves(arrays)} == {
                jnp.dtype(expected)
            }
    if dtype == "bfloat16":
        arrays, stats = jax.jit(outputs)(x0)
        assert stats.success
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays))


@pytest.mark.parametrize(("grid", "value"), [(1, jnp.inf), (5, jnp.nan)])
def test_a_field_that_is_not_finite_is_seen(value, grid):
    model = {"interpolant": LINEAR, "diffusion": diffusions.sigma()}

    def v(x, t, cond):
        return jnp.where(t[:, None] < 0.5 * (grid > 1), -x, value)

    @jax.jit
    def sample(key, x0):
        kernel = kernels.euler_maruyama(**model)
        chain = sample_chain(key, v, x0, kernel=kernel, grid=grid)
        return chain.states[-1], sde(key, v, x0, grid=grid, **model)

    end, (x, stats) = sample(jax.random.key(0), jnp.ones((2, 3)))
    assert np.isnan(x).all()
    assert not np.isfinite(end).any()
    assert not stats.success
    assert stats.result == diffrax.RESULTS.nonfinite


def test_gradients_of_field_and_diffusion_and_no_host_callback(key):
    x0 = jax.random.normal(key, (3, 2))
    v = gaussian_velocity()

    def total(a, scale):
        field = lambda x, t, c: a * v(x, t)  # noqa: E731
        model = {"interpolant": LINEAR, "diffusion": lambda t, c: scale * c.sigma}
        # To t=1, where some quotients are 0 / 0 though none is used.
        return sde(key, field, x0, grid=4, last_step="noisy", **model)[0].sum()

    lowered = jax.jit(jax.value_and_grad(total, (0, 1))).lower(1.0, 1.0)
    assert "callback" not in lowered.as_text()
    program, step = lowered.compile(), 1e-5
    for slope, shift in zip(program(1.0, 1.0)[1], np.eye(2) * step, strict=True):
        rise = program(*(1 + shift))[0] - program(*(1 - shift))[0]
        assert slope == pytest.approx(float(rise) / (2 * step), rel=1e-6)


GOOD = {"interpolant": LINEAR, "diffusion": diffusions.sigma()}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": [0.0, 0.7, 0.5]}, "strictly monotone"),
        ({"grid": [1.0, 0.5, 0.0]}, "must increase"),
        ({"grid": [0.0, 0.5, 0.5]}, "strictly monotone"),
        ({"grid": [-0.1, 0.5]}, r"lie in \[0, 1\]"),
        ({"grid": [0.0, 1.1]}, r"lie in \[0, 1\]"),
        ({"grid": [0.0, math.nan]}, r"`grid\[1\]` must be finite"),
        ({"grid": [0.0]}, "at least two"),
        ({"grid": 0}, "`grid` must be at least 1"),
        ({"last_step": "stop"}, "`last_step` must be one of"),
        ({"last_step": "denoise", "grid": [0.0, 0.9]}, "ends at 0.9"),
        ({"cond": np.zeros(3)}, "leading axis"),
    ],
)
def test_bad_options(options, message, key):
    v, x0 = lambda x, t, c: -x, jnp.ones((2, 1))
    with pytest.raises(ValueError, match=message):
        sde(key, v, x0, **GOOD, **options)
    kernel = kernels.euler_maruyama(**GOOD)
    with pytest.raises(ValueError, match=message):
        sample_chain(key, v, x0, kernel=kernel, **({"grid": 2} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": diffrax.SEA()}, "`solver` must be one of"),
        ({"solver": diffrax.Tsit5()}, "`solver` must be one of"),
        ({"solver": diffrax.HalfSolver(diffrax.Euler())}, "`solver` must be one of"),
        (
            {"interpolant": LINEAR._replace(gamma=lambda t: t * (1 - t))},
            "without latent noise",
        ),
    ],
)
def test_bad_options_of_the_solve(options, message, key):
    with pytest.raises(ValueError, match=message):
        sde(key, lambda x, t, c: -x, jnp.ones((2, 1)), **(GOOD | options))


@pytest.mark.usefixtures("untyped")
def test_bad_states_and_scales(key):
    for bad in (jnp.ones(3), jnp.ones((3, 1), jnp.int32)):
        with pytest.raises(ValueError, match="`x0` must have"):
            sde(key, lambda x, t, c: -x, bad, **GOOD)
    with pytest.raises(ValueError, match=r"`v` must return shape .*=\(2, 2\)"):
        sde(key, lambda x, t, c: x[:, :1], jnp.ones((2, 2)), **GOOD)
    for factory in (diffusions.constant, diffusions.memoryless, diffusions.flow_grpo):
        for scale in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="must be at least 0; got"):
                factory(scale)
