"""Time laws against their moments by quadrature; grids against their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from flowjax import times

pytestmark = pytest.mark.usefixtures("x64")


def logit_normal_cdf(t, mean, std):
    return stats.norm.cdf((special.logit(t) - mean) / std)


SAMPLERS = {
    "uniform": (times.uniform, stats.uniform.cdf),
    "uniform_part": (
        partial(times.uniform, low=0.2, high=0.5),
        stats.uniform(0.2, 0.3).cdf,
    ),
    "logit_normal": (times.logit_normal, partial(logit_normal_cdf, mean=0.0, std=1.0)),
    "logit_normal_shifted": (
        partial(times.logit_normal, mean=0.4, std=1.3),
        partial(logit_normal_cdf, mean=0.4, std=1.3),
    ),
}
PAIRS = {
    "logit_normal": (times.logit_normal_pairs, SAMPLERS["logit_normal_shifted"]),
    "uniform": (times.uniform_pairs, SAMPLERS["uniform"]),
}
GRIDS = {
    "uniform": times.uniform_grid,
    "shifted": partial(times.shifted_grid, shift=3.0),
    "power": times.power_grid,
    "power_data": partial(times.power_grid, power=0.5),
    "edm": times.edm_grid,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_follow_their_law(key, name):
    sampler, cdf = SAMPLERS[name]
    t = np.asarray(sampler(key, 20_000))
    assert t.shape == (20_000,)
    # The key is fixed, so this is no lottery; 1.63 / sqrt(n) is the 1 % quantile.
    assert stats.kstest(t, cdf).statistic < 1.63 / np.sqrt(len(t))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("mean", [-0.5, 0.4])
def test_logit_normal_moments_and_the_sign_of_its_mean(key, mean, power):
    t = times.logit_normal(key, 100_000, mean=mean)
    expected = integrate.quad(
        lambda n: special.expit(mean + n) ** power * stats.norm.pdf(n), -9, 9
    )[0]
    assert abs(float((t**power).mean()) - expected) < 4 * float((t**power).std()) / 316
    assert (float(t.mean()) > 0.5) == (mean > 0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_ordered_and_equal_on_the_promised_rows(key, name, share):
    t, s = PAIRS[name][0](key, 64, share_equal=share)
    assert (t <= s).all()
    np.testing.assert_array_equal(t == s, np.arange(64) % 4 < 4 * share)


def test_pairs_have_the_law_of_order_statistics(key):
    t, s = times.uniform_pairs(key, 40_000, share_equal=0.5)
    bound = 1.63 / np.sqrt(40_000)
    assert stats.kstest(np.asarray(t), stats.beta(1, 2).cdf).statistic < bound
    distinct = np.asarray(s)[np.asarray(s > t)]
    bound = 1.63 / np.sqrt(len(distinct))
    assert stats.kstest(distinct, stats.beta(2, 1).cdf).statistic < bound


def test_logit_normal_pairs_use_the_default_law_of_the_paper(key):
    t, s = times.logit_normal_pairs(key, 40_000, share_equal=0.0)
    draws = special.logit(np.concatenate([np.asarray(t), np.asarray(s)]))
    assert abs(draws.mean() - 0.4) < 0.02
    assert abs(draws.std() - 1.0) < 0.02


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_grids_rise_from_exactly_zero_to_exactly_one(name, steps):
    grid = GRIDS[name](steps)
    assert grid.shape == (steps + 1,)
    assert grid[0] == 0
    assert grid[-1] == 1
    assert (np.diff(grid) > 0).all()


def test_shift_moves_the_logit_by_its_logarithm():
    inner = slice(1, -1)
    plain, shifted = times.uniform_grid(10), times.shifted_grid(10, shift=3.0)
    expected = special.logit(plain[inner]) - np.log(3)
    np.testing.assert_allclose(special.logit(shifted[inner]), expected)


def test_edm_grid_holds_the_published_noise_levels():
    # The first levels of the 18-step schedule of arXiv:2206.00364, sigma = (1 - t) / t.
    t = times.edm_grid(17)[1:3]
    np.testing.assert_allclose((1 - t) / t, [57.586, 40.786], rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: times.uniform(k, 4, low=0.5, high=0.5), "low < high"),
        (lambda k: times.uniform(k, 4, high=1.5), "high <= 1"),
        (lambda k: times.logit_normal(k, 4, std=0.0), "`std` must be positive"),
        (lambda k: times.logit_normal_pairs(k, 6), "multiple of 4"),
        (lambda k: times.uniform_grid(0), "`steps` must be at least 1"),
        (lambda k: times.shifted_grid(3, shift=0.0), "`shift` must be positive"),
        (lambda k: times.power_grid(3, power=-1.0), "`power` must be positive"),
        (lambda k: times.edm_grid(3, sigma_min=3.0, sigma_max=2.0), "sigma_min"),
    ],
)
def test_bad_arguments_are_refused(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)


def test_draws_follow_the_default_dtype(key):
    assert times.uniform(key, 2).dtype == jnp.float64
    with jax.enable_x64(False):
        assert times.logit_normal(jax.random.key(0), 2).dtype == jnp.float32
