"""Random steps, chains and their densities against closed forms."""

import functools
import itertools
import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from flowjax import analytic
from flowjax.sampling import diffusions, kernels
from flowjax.sampling.diffusions import rates_on
from flowjax.sampling.sde import sde
from flowjax.sampling.transitions import (
    sample_chain,
    sample_transition,
    transition_log_density,
)
from tests.stochastic import (
    GAUSSIAN,
    LINEAR,
    MEANS,
    MEMBERS,
    MIXTURE,
    PATHS,
    STDS,
    WEIGHTS,
    gaussian_velocity,
    indices,
    marginal,
    member_of,
    path_of,
)

pytestmark = pytest.mark.usefixtures("x64")

KERNELS = {
    "euler_maruyama": lambda path, i: kernels.euler_maruyama(path, member_of(i)),
    "ddim_0": lambda path, i: kernels.ddim(path, 0.0),
    "ddim_0.6": lambda path, i: kernels.ddim(path, 0.6),
    "ddim_1": lambda path, i: kernels.ddim(path, 1.0),
}
STEPS = [*MEMBERS, "ddim_0", "ddim_0.6", "ddim_1"]


def step_of(name, path):
    """The kernel's table, the member's and the path's index."""
    table = name if name in KERNELS else "euler_maruyama"
    return table, *indices(name if name in MEMBERS else "zero", path)


@functools.partial(jax.jit, static_argnums=0)
def laws(table, member, path, t, s):
    """Means from x=0 and x=1, and stds, of the steps from ``t`` to ``s``."""
    kernel = KERNELS[table](path_of(path), member)
    v = gaussian_velocity(kernel.interpolant)
    ends = (jnp.full((len(t), 2), value, t.dtype) for value in (0, 1))
    return [kernel.transition(v, x, t, s, None) for x in ends]


def moment_error(name, path, steps):
    """The largest error of mean and variance at four times of a chain, exactly.

    Steps are affine in the state, so that no samples are needed.
    """
    grid = np.arange(steps + 1) / steps
    at = laws(*step_of(name, path), jnp.asarray(grid[:-1]), jnp.asarray(grid[1:]))
    offset, std = np.asarray(at[0].mean), np.asarray(at[0].std)
    gain = np.asarray(at[1].mean) - offset
    means, variances = marginal(PATHS[path], grid)
    mean, variance, errors = means[0], variances[0], []
    for k, (a, b, q) in enumerate(zip(gain, offset, std, strict=True), start=1):
        mean, variance = a * mean + b, a**2 * variance + q**2
        if k % (steps // 4) == 0:
            errors += [mean - means[k], variance - variances[k]]
    return np.abs(errors).max()


# Of the polynomial path E[x1 | x], which ddim needs, is no function of the velocity
# at t=0.
CHAINS = [
    (name, path)
    for name in STEPS
    for path in PATHS
    if not (path == "polynomial" and name.startswith("ddim"))
]


@pytest.mark.parametrize(("name", "path"), CHAINS)
def test_the_marginals_of_a_chain_converge_with_order_one(name, path):
    errors = [moment_error(name, path, steps) for steps in (1000, 2000)]
    assert errors[1] < 0.02
    # On the diffusion path alpha(0) > 0, so that alpha' / alpha has no pole.
    slow = name == "flow_grpo" and path != "variance_preserving"
    order = 0.49 * (1.5 if path == "polynomial" else 1) if slow else 1.0
    # A variance-preserving path ends like a square root, which costs a little.
    assert order - 0.15 < math.log2(errors[0] / errors[1]) < order + 0.1


def test_steps_draw_from_their_law(key):
    rows = 40_000
    v, kernel = analytic.velocity(MIXTURE, LINEAR), kernels.ddim(LINEAR)
    step = jnp.full((rows, 1), 0.3), jnp.full(rows, 0.2), jnp.full(rows, 0.45)

    @jax.jit
    def draw():
        y, _ = sample_transition(key, v, *step, kernel=kernel)
        law = kernel.transition(v, *step, None)
        return (y - law.mean)[:, 0] / law.std

    z = np.asarray(draw())
    assert abs(z.mean()) < 4.5 / math.sqrt(rows)  # standard errors
    assert abs(z.var() - 1) < 4.5 * math.sqrt(2 / rows)


def test_every_member_is_finite_on_every_interval_in_float32():
    with jax.enable_x64(False):
        t, s = jnp.array([0.0, 0.0, 0.9, 0.9]), jnp.array([1.0, 0.1, 0.95, 1.0])
        inner = jnp.linspace(t, s, 4)
        inside = jax.jit(
            lambda i, j: rates_on(
                jnp.stack([t, s])[:, None], member_of(i), path_of(j), inner
            )
        )
        for name, path in itertools.product(STEPS, PATHS):
            # There the velocity at t=0 says nothing about the data.
            unknown = path == "polynomial" and name.startswith("ddim")
            for part in jax.tree.leaves(laws(*step_of(name, path), t, s)):
                assert part.dtype == t.dtype
                assert np.isfinite(part[2 * unknown :]).all(), (name, path)
        for name, path in itertools.product(MEMBERS, PATHS):
            held = inside(*indices(name, path))
            assert np.isfinite(held).all(), (name, path)


def test_flow_grpo_is_the_published_step(key):
    t, s = jnp.array([0.0, 0.3, 0.8]), jnp.array([0.1, 0.4, 1.0])
    x = jax.random.normal(key, (3, 2))
    v = gaussian_velocity()
    kernel = kernels.euler_maruyama(LINEAR, diffusions.flow_grpo(0.7))
    mean, std = jax.jit(lambda: kernel.transition(v, x, t, s, None))()
    at = jnp.maximum(t, jnp.array([0.1, 0.0, 0.0]))  # their first step takes g at t_1
    g2, h = 0.49 * (1 - at) / at, s - t
    ratio = (g2 / (2 * (1 - t)))[:, None]
    expected = x + h[:, None] * (v(x, t) * (1 + ratio * t[:, None]) - ratio * x)
    np.testing.assert_allclose(mean, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(std, np.sqrt(g2 * h), rtol=1e-12)


def test_ddim_is_euler_without_noise_and_ancestral_with_it(key):
    t, s = jnp.array([0.0, 0.3, 0.8]), jnp.array([0.1, 0.4, 1.0])
    x = jax.random.normal(key, (3, 2))
    v = gaussian_velocity()
    value = v(x, t)
    for kernel in (
        kernels.ddim(LINEAR, 0.0),
        kernels.coefficient_preserving(LINEAR, 0.0),
    ):
        mean, std = kernel.transition(v, x, t, s, None)
        np.testing.assert_allclose(mean, x + (s - t)[:, None] * value, atol=1e-14)
        assert not std.any()
    # The law of x_s given x_t = t/s x_s + noise and x1, from two Gaussians.
    mean, std = kernels.ddim(LINEAR, 1.0).transition(v, x, t, s, None)
    x1 = x + (1 - t)[:, None] * value
    forward = (1 - t) ** 2 - (t / s * (1 - s)) ** 2
    prior = jnp.maximum((1 - s) ** 2, 1e-300)
    variance = 1 / (1 / prior + (t / s) ** 2 / forward)
    pull = (s / prior)[:, None] * x1 + (t / s / forward)[:, None] * x
    np.testing.assert_allclose(std**2, variance, rtol=1e-10, atol=1e-200)
    np.testing.assert_allclose(mean, variance[:, None] * pull, rtol=1e-10)


def test_coefficient_preserving_steps_do_not_preserve_the_marginal(monkeypatch):
    def table(path, member):
        return kernels.coefficient_preserving(path, 0.5)

    monkeypatch.setitem(KERNELS, "preserving", table)
    monkeypatch.setitem(MEMBERS, "preserving", MEMBERS["zero"])
    assert moment_error("preserving", "linear", 400) > 0.05


def test_weak_order_of_euler_maruyama_on_the_mixture():
    v = analytic.velocity(MIXTURE, LINEAR)
    kernel = kernels.euler_maruyama(LINEAR, diffusions.constant(0.5))
    points = np.linspace(-6, 6, 401)
    x, spacing = jnp.asarray(points)[:, None], points[1] - points[0]
    law = jax.jit(lambda t, s: kernel.transition(v, x, t, s, None))
    target = norm.pdf(points[:, None], MEANS, STDS) @ WEIGHTS

    def errors(steps):
        density = norm.pdf(points)
        for k in range(steps):
            t, s = (jnp.full(len(points), (k + i) / steps) for i in (0, 1))
            mean, std = (np.asarray(a) for a in law(t, s))
            density = norm.pdf(points[:, None], mean[:, 0], std) @ density * spacing
        assert density.sum() * spacing == pytest.approx(1, abs=1e-8)
        difference = (density - target) * spacing
        return np.array([(f * difference).sum() for f in (points**2, np.sin(points))])

    np.testing.assert_allclose(np.log2(errors(16) / errors(32)), 1, atol=0.15)


@pytest.mark.parametrize("last_step", ["mean", "euler", "denoise", "noisy"])
def test_the_chain_is_the_solve_with_euler(last_step, key):
    count, x0, grid = [], jax.random.normal(key, (4, 2)), [0.0, 0.3, 0.6, 0.8, 1.0]
    v, memoryless = gaussian_velocity(), diffusions.memoryless()
    kernel = kernels.euler_maruyama(LINEAR, memoryless)
    options = {"grid": grid, "last_step": last_step}

    def counted(x, t, cond):
        jax.debug.callback(lambda: count.append(1))
        return v(x, t)

    @jax.jit
    def both(key):
        model = {"interpolant": LINEAR, "diffusion": memoryless}
        chain = sample_chain(key, v, x0, kernel=kernel, **options)
        rows = [jnp.repeat(chain.times[i : i + 4], 4) for i in (0, 1)]
        before, after = (chain.states[i : i + 4].reshape(-1, 2) for i in (0, 1))
        again = transition_log_density(v, before, *rows, after, kernel=kernel)
        solver = diffrax.Euler()
        return chain, again, *sde(key, counted, x0, solver=solver, **model, **options)

    chain, again, x, stats = both(jax.random.key(7))
    jax.effects_barrier()
    assert len(count) == stats.nfe == stats.num_steps == 4
    np.testing.assert_allclose(chain.states[-1], x, rtol=1e-12)
    np.testing.assert_array_equal(chain.times, grid)
    np.testing.assert_array_equal(chain.states[0], x0)
    # The densities of the path, recomputed as one batch of transitions.
    again = np.array(again.reshape(4, 4))
    if last_step != "noisy":
        again[-1] = 0
    np.testing.assert_allclose(chain.log_densities, again, rtol=1e-11)
    # The last step itself.
    t, near = jnp.full(4, 0.8), chain.states[3]
    mean = near + 0.2 * (2 * v(near, t) - near / 0.8)
    expected = {
        "mean": mean,
        "euler": near + 0.2 * v(near, t),
        "denoise": analytic.posterior_mean(GAUSSIAN, LINEAR)(near, t),
    }
    if last_step in expected:
        np.testing.assert_allclose(x, expected[last_step], rtol=1e-11)
    else:
        assert np.abs(x - mean).min() > 1e-3


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.euler_maruyama(LINEAR, diffusions.constant(0.4)),
        kernels.euler_maruyama(LINEAR, diffusions.memoryless()),
        kernels.ddim(LINEAR, 0.8),
        kernels.coefficient_preserving(LINEAR, 0.5),
    ],
    ids=["euler_maruyama", "held", "ddim", "coefficient_preserving"],
)
def test_log_density_against_scipy_and_as_a_law(kernel, key):
    x = jax.random.normal(key, (3, 2))
    t, s = jnp.array([0.0, 0.3, 0.6]), jnp.array([0.25, 0.5, 0.9])
    v, line = gaussian_velocity(), analytic.velocity(MIXTURE, LINEAR)
    points = np.linspace(-8, 8, 2001)[:, None]

    @jax.jit
    def densities(key):
        y, drawn = sample_transition(key, v, x, t, s, kernel=kernel)
        again = transition_log_density(v, x, t, s, y, kernel=kernel)
        # One row to every point of a line, where a density integrates to 1.
        start, *times = (jnp.full(len(points), value) for value in (0.2, 0.3, 0.5))
        ends = start[:, None], *times, jnp.asarray(points)
        whole = transition_log_density(line, *ends, kernel=kernel)
        return kernel.transition(v, x, t, s, None), y, drawn, again, whole

    (mean, std), y, drawn, again, whole = densities(jax.random.key(1))
    expected = norm.logpdf(y, mean, np.asarray(std)[:, None]).sum(1)
    np.testing.assert_allclose(drawn, expected, rtol=1e-12, atol=1e-10)
    np.testing.assert_array_equal(drawn, again)
    assert np.trapezoid(np.exp(whole), points[:, 0]) == pytest.approx(1, abs=1e-10)


def test_gradient_of_a_log_density(key):
    x, y = jax.random.normal(key, (2, 5, 2))
    t, s = jnp.linspace(0.1, 0.6, 5), jnp.linspace(0.3, 0.7, 5)
    kernel = kernels.euler_maruyama(LINEAR, diffusions.constant(0.4))
    v = gaussian_velocity()

    def at(shift):
        field = lambda x, t, cond: v(x, t) + shift  # noqa: E731
        return transition_log_density(field, x, t, s, y, kernel=kernel)

    @jax.jit
    def slopes():
        # d mean / d shift = h (1 + g^2 t / (2 (1 - t))) on the linear path.
        mean, std = kernel.transition(v, x, t, s, None)
        slope = (s - t) * (1 + 0.8 * t / (2 * (1 - t)))
        expected = ((y - mean).sum(1) / std**2) * slope
        return jax.jacfwd(at)(0.0), jax.jacrev(at)(0.0), expected

    forward, reverse, expected = slopes()
    np.testing.assert_allclose(forward, expected, rtol=1e-10)
    np.testing.assert_allclose(reverse, expected, rtol=1e-10)


def test_a_deterministic_step_has_no_density_and_no_gradient(key):
    x, y = jax.random.normal(key, (2, 3, 2))

    def total(scale, pull):
        """The steps start at t=0, where this diffusion is 0."""
        kernel = kernels.euler_maruyama(LINEAR, lambda t, c: scale * t * (1 - t))
        field = lambda x, t, c: pull * x  # noqa: E731
        t, s = jnp.zeros(3), jnp.full(3, 0.5)
        return transition_log_density(field, x, t, s, y, kernel=kernel).sum()

    value, slopes = jax.jit(jax.value_and_grad(total, (0, 1)))(1.0, 1.0)
    assert (value, *slopes) == (0, 0, 0)


def test_steps_do_not_repeat_their_noise(key):
    # All old noise is thrown away, and the data are estimated as 0.
    kernel = kernels.coefficient_preserving(LINEAR, 1.0)
    v = lambda x, t, c: -x / (1 - t)[:, None]  # noqa: E731
    options = {"kernel": kernel, "grid": [0.0, 0.2, 0.4, 0.6, 0.8]}
    chain = sample_chain(key, v, jnp.ones((3, 2)), last_step="noisy", **options)
    noise = chain.states[1:] / (1 - chain.times[1:])[:, None, None]
    assert len(np.unique(np.asarray(noise).round(9))) == 4 * 3 * 2


@pytest.mark.usefixtures("untyped")
def test_bad_steps(key):
    v, x, t = lambda x, t, c: -x, jnp.ones((2, 1)), jnp.array([0.2, 0.4])
    kernel = kernels.euler_maruyama(LINEAR, diffusions.sigma())
    for bad, s, message in (
        (x, t, "`s` must be later"),
        (x, t - 0.1, "`s` must be later"),
        (x, jnp.array([0.3, 0.4]), "`s` must be later"),
        (x, t + 1, "`s` must lie in"),
        (x, t[:1], r"`s` must have shape \[batch\]"),
        (x[0], t + 0.1, "`x` must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_transition(key, v, bad, t, s, kernel=kernel)
    with pytest.raises(ValueError, match="`y` must have shape"):
        transition_log_density(v, x, t, t + 0.1, x[:1], kernel=kernel)
    for factory in (kernels.ddim, kernels.coefficient_preserving):
        with pytest.raises(ValueError, match="`eta` must lie in"):
            factory(LINEAR, 1.5)
