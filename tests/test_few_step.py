"""Few-step samplers: the laws of restarts, exactly for Gaussians and by large samples.

The map of a Gaussian is affine, and so is a restart in its start and its noise: three
coefficients, read off a small batch, are the whole law of a step.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import analytic, interpolants, sampling, times
from tests.tables import ALL_INTERPOLANTS, MIXTURES

pytestmark = pytest.mark.usefixtures("x64")

MEAN, DEVIATION = 0.7, 0.4
INTERPOLANTS = {
    name: ALL_INTERPOLANTS[name]
    for name in (
        "linear",
        "trigonometric",
        "variance_preserving",
        "half_the_noise",
        "smooth_latent",
        "bridge",
    )
}
GRIDS = {
    "uniform": times.uniform_grid(4),
    "dense_at_noise": times.power_grid(3, power=3.0),
    "dense_at_data": times.power_grid(3, power=0.3),
    "not_to_the_end": (0.1, 0.5, 0.8),
}


def noise_variance(path, t):
    if path.variance is not None:
        return path.variance(t)
    return path.sigma(t) ** 2 + (0.0 if path.gamma is None else path.gamma(t) ** 2)


def law(path, t):
    """The mean and the variance of x_t."""
    t = jnp.asarray(t, float)
    alpha = path.alpha(t)
    return alpha * MEAN, (alpha * DEVIATION) ** 2 + noise_variance(path, t)


def gaussian_map(path, x, t, s):
    (mean, variance), (end, end_variance) = law(path, t), law(path, s)
    return end + jnp.sqrt(end_variance / variance) * (x - mean)


def average_velocity(path):
    """The exact average velocity of Gaussian data, for s > t."""

    def u(x, t, s, cond=None):
        t, s = t[:, None], s[:, None]
        return (gaussian_map(path, x, t, s) - x) / (s - t)

    return u


def mixture_velocity(mixture, path):
    transport = analytic.flow_map(mixture, path)

    def u(x, t, s, cond=None):
        return (transport(x, t, s) - x) / (s - t)[:, None]

    return u


def affine(key, path, gamma, a, b):
    """The shift, the slope and the noise of one restart from a to b, and what is left.

    The noise is that of the same key with gamma = 1, whose jump goes to the data.
    """
    x = jnp.linspace(-2.0, 2.0, 16)[:, None]

    def restart(gamma):
        options = {"grid": (a, b), "gamma": gamma, "interpolant": path}
        return sampling.restart(key, average_velocity(path), x, **options)

    b_, one = jnp.asarray(b), jnp.asarray(1.0)
    scale = path.alpha(b_) / path.alpha(one)
    clean = scale * gaussian_map(path, x, a, 1.0)
    noise = (restart(1.0) - clean) / jnp.sqrt(noise_variance(path, b_))
    columns = jnp.concatenate([jnp.ones_like(x), x, noise], axis=1)
    out = restart(gamma)
    coefficients = jnp.linalg.lstsq(columns, out)[0]
    return coefficients[:, 0], jnp.abs(columns @ coefficients - out).max()


def assert_law(x, path, t):
    """Within four standard errors of the mean and the variance of a Gaussian sample."""
    mean, variance = law(path, t)
    assert abs(float(x.mean() - mean)) < 4 * float(variance / len(x)) ** 0.5
    assert abs(float(x.var() / variance - 1)) < 4 * (2 / len(x)) ** 0.5


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_a_restart_carries_one_marginal_to_the_next(key, name):
    path, gamma = INTERPOLANTS[name](), 0.6
    intervals = [(0.0, 0.5), (0.2, 0.97)]
    found = jax.jit(lambda: [affine(key, path, gamma, *i) for i in intervals])()
    for ((shift, slope, noise), rest), (a, b) in zip(found, intervals, strict=True):
        (mean, variance), (end, end_variance) = law(path, a), law(path, b)
        assert rest < 1e-12
        np.testing.assert_allclose(shift + slope * mean, end, atol=1e-12)
        total = slope**2 * variance + noise**2
        np.testing.assert_allclose(total, end_variance, rtol=1e-12)
        fresh = gamma * jnp.sqrt(noise_variance(path, jnp.asarray(b)))
        np.testing.assert_allclose(noise, fresh, rtol=1e-11)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_restarts_on_every_grid_end_in_the_right_law(key, grid, gamma):
    grid, path = GRIDS[grid], interpolants.linear()
    key_start, key_noise = jax.random.split(key)
    mean, variance = law(path, grid[0])
    x = mean + jnp.sqrt(variance) * jax.random.normal(key_start, (100_000, 1))
    u = average_velocity(path)
    out = sampling.restart(key_noise, u, x, grid=grid, gamma=gamma)
    assert_law(out, path, grid[-1])


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_a_path_that_ends_in_noise_is_renoised_as_far_as_it_goes(key, gamma):
    path = interpolants.minimum_noise(0.1)
    x = jax.random.normal(key, (100_000, 1))
    u = average_velocity(path)
    restart = partial(sampling.restart, gamma=gamma, interpolant=path)
    # From b on, the noise left at t=1 is more than restarts would keep.
    b = 0.99
    assert 0.1 > (1 - 0.5**2) ** 0.5 * float(path.sigma(jnp.asarray(b))) / b
    assert_law(restart(jax.random.key(1), u, x, grid=(0.0, b)), path, b)
    # At t=1 there is nothing to restart.
    out = restart(key, u, x, grid=(0.0, 1.0))
    np.testing.assert_allclose(out, sampling.few_step(u, x), atol=1e-14)


def test_the_linear_path_overshoots_to_the_closed_form(key):
    # Starting at x = 0 this field arrives at c^2, which returns to b c (+ noise).
    def u(x, t, s, cond):
        return jnp.broadcast_to((s**2 / (s - t))[:, None], x.shape)

    x, gamma, ends = jnp.zeros((3, 2)), 0.7, (1e-3, 0.4, 0.9999, 1.0)

    @jax.jit
    def restarts():
        restart = partial(sampling.restart, key, u, x)
        return [[restart(gamma=g, grid=(0.0, b)) for g in (gamma, 1.0)] for b in ends]

    for b, (out, fresh) in zip(ends, restarts(), strict=True):
        c = b / (b + (1 - gamma**2) ** 0.5 * (1 - b))
        np.testing.assert_allclose(out, b * c + gamma * (fresh - b), rtol=1e-12)


def test_restarts_keep_the_law_of_a_mixture(key):
    mixture, path = MIXTURES["two_modes"](), interpolants.trigonometric()
    grid, n = (0.2, 0.5, 0.9), 4000
    key_data, key_source, key_noise = jax.random.split(key, 3)
    x1 = analytic.sample(key_data, mixture, n)
    x0 = jax.random.normal(key_source, x1.shape)
    start = interpolants.sample_path(path, x0, x1, jnp.full(n, grid[0])).x
    u = mixture_velocity(mixture, path)
    out = sampling.restart(key_noise, u, start, grid=grid, gamma=0.7, interpolant=path)
    alpha, sigma = np.sin(0.45 * np.pi), np.cos(0.45 * np.pi)

    def cdf(x):
        parts = zip((0.3, 0.7), (-1.0, 1.6), (0.35, 0.5), strict=True)
        return sum(
            w * stats.norm.cdf(x, alpha * m, np.hypot(alpha * d, sigma))
            for w, m, d in parts
        )

    # 1.63 / sqrt(n) is the 1 % quantile.
    assert stats.kstest(np.asarray(out)[:, 0], cdf).statistic < 1.63 / n**0.5


def wavy(x, t, s, cond=None):
    shift = 0.0 if cond is None else cond[:, None]
    return jnp.sin(x) + (t + 2 * s)[:, None] + shift


@pytest.mark.parametrize("grid", GRIDS)
def test_without_fresh_noise_a_restart_is_few_step(key, grid):
    x = jax.random.normal(key, (5, 3))
    expected = sampling.few_step(wavy, x, grid=GRIDS[grid])
    for seed in (0, 1):
        out = sampling.restart(
            jax.random.key(seed), wavy, x, grid=GRIDS[grid], gamma=0.0
        )
        np.testing.assert_array_equal(out, expected)
    # And it is the limit of little noise.
    near = sampling.restart(key, wavy, x, grid=GRIDS[grid], gamma=1e-7)
    np.testing.assert_allclose(near, expected, atol=1e-5)


def test_the_noise_is_new_in_every_step_row_and_entry(key):
    # A field that jumps to zero: with gamma = 1 the result is the last step's noise,
    # and the field sees that of the step before.
    def to_zero(x, t, s, cond):
        return -x / (s - t)[:, None]

    def half_way(x, t, s, cond):
        return -x / 2 / (s - t)[:, None]

    x = jnp.zeros((400, 50))
    last = sampling.restart(key, to_zero, x, grid=(0.0, 0.5, 0.75)) / 0.25
    both = sampling.restart(key, half_way, x, grid=(0.0, 0.5, 0.75))
    first = ((both - 0.25 * last) / (0.75 / 2 * 0.5)).ravel()
    noise = last.ravel()
    for sample in (first, noise):
        assert stats.kstest(np.asarray(sample), "norm").statistic < 1.63 / 20_000**0.5
    assert abs(float((first * noise).mean())) < 4 / 20_000**0.5
    other = sampling.restart(jax.random.key(1), to_zero, x, grid=(0.0, 0.5, 0.75))
    assert jnp.abs(other / 0.25 - last).min() > 0


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("double", [True, False])
def test_a_field_to_the_data_alone_is_enough_for_full_restarts(name, double):
    path, grid = INTERPOLANTS[name](), (0.0, 1e-3, 0.8, 1.0)

    def to_data_only(x, t, s, cond=None):
        return jnp.where((s == 1)[:, None], wavy(x, t, s), jnp.nan)

    with jax.enable_x64(double):
        key, x = jax.random.key(0), jnp.ones((4, 2))
        restart = partial(sampling.restart, key, to_data_only, x, interpolant=path)
        assert jnp.isfinite(restart(grid=grid)).all()
        if name == "linear":
            assert jnp.isnan(restart(grid=grid, gamma=0.99)).all()


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("name", ["linear", "variance_preserving"])
def test_compiled_restarts_agree_and_hand_the_condition_on(key, name, gamma):
    x = jax.random.normal(key, (6, 2))
    cond = jnp.arange(6.0)
    path, grid = INTERPOLANTS[name](), times.uniform_grid(3)

    def sample(key, x, cond):
        return sampling.restart(
            key, wavy, x, cond=cond, grid=grid, gamma=gamma, interpolant=path
        )

    out = sample(key, x, cond)
    np.testing.assert_allclose(jax.jit(sample)(key, x, cond), out, rtol=1e-12)
    plain = sample(key, x, None)
    assert (jnp.abs(out - plain)[1:] > 0.1).all()
    np.testing.assert_array_equal(out[0], plain[0])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_states_are_kept_in_float32_at_least(key, gamma):
    def check(dtype, expected):
        def u(x, t, s, cond):
            assert x.dtype == t.dtype == s.dtype == expected
            return -x

        x = jnp.ones((3, 2), dtype)
        out = sampling.restart(key, u, x, grid=(0, 0.5, 1), gamma=gamma)
        assert out.dtype == expected

    check(jnp.bfloat16, jnp.float32)
    check(jnp.float32, jnp.float32)
    check(jnp.float64, jnp.float64)


def test_single_precision_keeps_the_variance():
    path = interpolants.variance_preserving()
    with jax.enable_x64(False):
        key = jax.random.key(0)
        step = jax.jit(lambda: affine(key, path, 0.01, 0.2, 0.97))
        (_, slope, noise), rest = step()
    assert rest < 1e-5
    found = float(slope) ** 2 * law(path, 0.2)[1] + float(noise) ** 2
    np.testing.assert_allclose(found, law(path, 0.97)[1], rtol=1e-5)


def test_one_evaluation_inverts_one_step(key):
    u = mixture_velocity(MIXTURES["two_modes"](), interpolants.linear())
    x0 = jax.random.normal(key, (64, 1))
    x1 = sampling.few_step(u, x0)
    assert jnp.abs(x1 - x0).max() > 0.5
    np.testing.assert_allclose(sampling.few_step(u, x1, grid=(1.0, 0.0)), x0, atol=1e-9)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, r"`gamma` must lie in \[0, 1\]; got -0.1"),
        ({"gamma": 1.1}, r"`gamma` must lie in \[0, 1\]; got 1.1"),
        ({"gamma": float("nan")}, r"`gamma` must lie in"),
        ({"grid": (1.0, 0.5, 0.0)}, r"`grid` must increase; got \[1.0, 0.5, 0.0\]"),
        ({"grid": (1.0, 0.0), "gamma": 0.0}, "`grid` must increase"),
        ({"grid": (0.0, 0.7, 0.5)}, "`grid` must be strictly monotone"),
        ({"grid": (0.0, 1.2)}, r"`grid` must lie in \[0, 1\]"),
        ({"cond": jnp.zeros(3)}, "leading axis batch=4"),
    ],
)
def test_bad_arguments_are_refused(key, options, message):
    with pytest.raises(ValueError, match=message):
        sampling.restart(key, wavy, jnp.ones((4, 2)), **options)


@pytest.mark.usefixtures("untyped")
def test_a_field_of_another_shape_is_refused(key):
    with pytest.raises(ValueError, match=r"`u` must return shape .*=\(4, 2\)"):
        sampling.restart(key, lambda x, t, s, c: x[:, :1], jnp.ones((4, 2)), gamma=0.5)
