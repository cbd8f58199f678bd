"""Time laws against closed forms and quadrature; grids against their definitions.

Keys are fixed, so that no comparison with a large sample is a lottery. Its bound is the
1 % quantile of the Kolmogorov-Smirnov statistic, 1.63 / sqrt(n), or four standard
errors.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from flowjax import interpolants, times, typing

pytestmark = pytest.mark.usefixtures("x64")


def logit_normal_cdf(t, mean, std):
    return stats.norm.cdf((special.logit(t) - mean) / std)


def arctan_normal_cdf(t, mean, std):
    with np.errstate(divide="ignore"):
        return stats.norm.cdf((mean - np.log(np.tan(np.pi / 2 * (1 - t)))) / std)


def u_shaped_pdf(t, a):
    return a * (np.exp(a * t) + np.exp(a * (1 - t))) / (2 * np.expm1(a))


def u_shaped_cdf(t, a):
    return 0.5 + np.sinh(a * (np.asarray(t) - 0.5)) / (2 * np.sinh(a / 2))


def follows(sample, cdf):
    """Whether a sample passes the Kolmogorov-Smirnov test."""
    return stats.kstest(np.asarray(sample), cdf).statistic < 1.63 / len(sample) ** 0.5


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
    "arctan_normal": (
        times.arctan_normal,
        partial(arctan_normal_cdf, mean=-0.8, std=1.6),
    ),
    "arctan_normal_wide": (
        partial(times.arctan_normal, mean=0.5, std=3.0),
        partial(arctan_normal_cdf, mean=0.5, std=3.0),
    ),
    "u_shaped": (times.u_shaped, partial(u_shaped_cdf, a=4.0)),
    "u_shaped_flat": (partial(times.u_shaped, a=0.1), partial(u_shaped_cdf, a=0.1)),
    "u_shaped_steep": (partial(times.u_shaped, a=60.0), partial(u_shaped_cdf, a=60.0)),
}
# The smaller and the larger of two draws: pairs, laws of the two draws.
ORDERED = {
    "uniform": (times.uniform_pairs, ["uniform", "uniform"]),
    "logit_normal": (
        partial(times.logit_normal_pairs, std=1.3),
        ["logit_normal_shifted", "logit_normal_shifted"],
    ),
    "two_laws": (
        partial(
            times.ordered_pairs,
            sampler=SAMPLERS["logit_normal_shifted"][0],
            second=SAMPLERS["u_shaped"][0],
        ),
        ["logit_normal_shifted", "u_shaped"],
    ),
}
# name: pairs with ``share_equal``, all with s >= t.
PAIRS = {
    **{name: pairs for name, (pairs, _) in ORDERED.items()},
    "single": partial(times.ordered_pairs, sampler=times.uniform, equal="single"),
    "interval": times.interval_pairs,
    "reflow": times.reflow_pairs,
    "dyadic": times.dyadic_pairs,
    "dyadic_coarse": partial(times.dyadic_pairs, finest=2),
}
GRIDS = {
    "uniform": times.uniform_grid,
    "shifted": partial(times.shifted_grid, shift=3.0),
    "power": times.power_grid,
    "power_data": partial(times.power_grid, power=0.5),
    "edm": times.edm_grid,
    "circular": times.circular_grid,
    "log_snr": times.log_snr_grid,
    "log_snr_diffusion": partial(
        times.log_snr_grid, interpolant=interpolants.variance_preserving()
    ),
    "mirror": lambda n: times.mirror_grid(times.power_grid(n)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_follow_their_law(key, name):
    sampler, cdf = SAMPLERS[name]
    t = np.asarray(sampler(key, 20_000))
    assert t.shape == (20_000,)
    assert follows(t, cdf)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("mean", [-0.5, 0.4])
def test_logit_normal_moments_and_the_sign_of_its_mean(key, mean, power):
    t = times.logit_normal(key, 100_000, mean=mean)
    expected = integrate.quad(
        lambda n: special.expit(mean + n) ** power * stats.norm.pdf(n), -9, 9
    )[0]
    assert abs(float((t**power).mean()) - expected) < 4 * float((t**power).std()) / 316
    assert (float(t.mean()) > 0.5) == (mean > 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_single_precision_stays_in_the_unit_interval(name):
    with jax.enable_x64(False):
        t = SAMPLERS[name][0](jax.random.key(0), 100_000)
    assert t.dtype == jnp.float32
    assert ((t >= 0) & (t <= 1)).all()


def test_far_tails_reach_the_ends_and_no_further():
    with jax.enable_x64(False):
        t = times.arctan_normal(jax.random.key(0), 1000, std=100.0)
    assert float(t.min()) < 1e-20
    assert t.max() == 1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_ordered_and_equal_on_the_promised_rows(key, name, share):
    t, s = PAIRS[name](key, 64, share_equal=share)
    assert ((t >= 0) & (t <= s) & (s <= 1)).all()
    np.testing.assert_array_equal(t == s, np.arange(64) % 4 < 4 * share)


@pytest.mark.parametrize("name", PAIRS)
def test_single_precision_keeps_pairs_in_order(name):
    with jax.enable_x64(False):
        t, s = PAIRS[name](jax.random.key(1), 100_000, share_equal=0.25)
    assert t.dtype == s.dtype == jnp.float32
    assert ((t >= 0) & (t <= s) & (s <= 1)).all()


@pytest.mark.parametrize("name", PAIRS)
def test_sharded_pairs_are_the_same_and_exchange_nothing(key, name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    pairs = partial(PAIRS[name], share_equal=0.75)
    draw = jax.jit(lambda key: pairs(key, 256), out_shardings=sharding)
    compiled = draw.lower(key).compile()
    for sharded, plain in zip(compiled(key), pairs(key, 256), strict=True):
        np.testing.assert_allclose(sharded, plain, rtol=1e-14)
        for shard in sharded.addressable_shards:
            assert shard.data.shape == (32,)
    program = compiled.as_text()
    for exchange in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert exchange not in program


@pytest.mark.parametrize("name", ORDERED)
def test_pairs_have_the_law_of_order_statistics(key, name):
    pairs, laws = ORDERED[name]
    first, second = (SAMPLERS[law][1] for law in laws)

    def smaller(x):
        return 1 - (1 - first(x)) * (1 - second(x))

    t, s = (np.asarray(a) for a in pairs(key, 40_000, share_equal=0.5))
    apart = s > t
    assert apart.sum() == 20_000
    assert follows(t[apart], smaller)
    assert follows(t[~apart], smaller)
    assert follows(s[apart], lambda x: first(x) * second(x))


def test_equal_times_may_follow_the_first_law_alone(key):
    laws = {name: SAMPLERS[name][0] for name in ("uniform", "logit_normal_shifted")}
    sampler, second = laws.values()
    draw = partial(times.ordered_pairs, key, 40_000, sampler=sampler, second=second)
    t, s = draw(share_equal=0.5, equal="single")
    assert follows(t[t == s], SAMPLERS["uniform"][1])
    # The other rows are those of the default.
    t_smaller, s_smaller = draw(share_equal=0.5)
    apart = t != s
    np.testing.assert_array_equal(t[apart], t_smaller[apart])
    np.testing.assert_array_equal(s[apart], s_smaller[apart])


def test_ordered_pairs_are_two_draws_of_split_keys(key):
    first, second = (times.uniform(k, 8) for k in jax.random.split(key))
    t, s = times.uniform_pairs(key, 8, share_equal=0.5)
    np.testing.assert_array_equal(t, np.minimum(first, second))
    larger = np.maximum(first, second)
    np.testing.assert_array_equal(s, np.where(np.arange(8) % 2, larger, t))


def test_any_step_pairs_are_whole_near_and_any(key):
    t, s = (np.asarray(a) for a in times.any_step_pairs(key, 40_000, near=0.1))
    assert ((t >= 0) & (s >= t) & (s <= 1)).all()
    assert ((t[::4] == 0) & (s[::4] == 1)).all()
    left = (s - t) / (1 - t)
    # Uniform parts of what is left: U(0, 0.1) and U(0, 1); uniform starts.
    assert stats.kstest(left[1::4] / 0.1, "uniform").pvalue > 1e-3
    assert stats.kstest(left[2::4], "uniform").pvalue > 1e-3
    assert stats.kstest(t[1::4], "uniform").pvalue > 1e-3
    with pytest.raises(ValueError, match="`near`"):
        times.any_step_pairs(key, 8, near=0.0)


def test_intervals_have_their_law_and_a_uniform_place(key):
    t, s = (np.asarray(a) for a in times.interval_pairs(key, 40_000))
    length, place = s - t, t / (1 - (s - t))
    assert follows(length, partial(logit_normal_cdf, mean=-0.8, std=1.0))
    assert follows(place, stats.uniform.cdf)
    # Independent: also among the long intervals, one in four, is the place uniform.
    assert follows(place[length > np.quantile(length, 0.75)], stats.uniform.cdf)


def test_reflow_pairs_start_late_and_jump_to_the_data(key):
    n, earliest, law = 100_000, 1 / 81, partial(logit_normal_cdf, mean=-0.8, std=1.0)
    t, s = (np.asarray(a) for a in times.reflow_pairs(key, n, share_equal=0.0))
    assert t.min() == earliest
    # The clamp gathers what lies below it, and nothing else changes.
    atom = u_shaped_cdf(earliest, 4.0)
    assert abs((t == earliest).mean() - atom) < 4 * np.sqrt(atom / n)
    rest = t[t > earliest]
    assert follows(rest, lambda x: (u_shaped_cdf(x, 4.0) - atom) / (1 - atom))
    # Jumps from the noise into the last part of the path go to its end.
    assert (s[(t < 0.2) & (s > 0.6)] == 1).all()

    def expectation(f):
        # Knots where the law has kinks: integrals between them are smooth.
        inner = sum(
            integrate.quad(lambda x: f(x) * u_shaped_pdf(x, 4.0), a, b)[0]
            for a, b in [(earliest, 0.2), (0.2, 0.6), (0.6, 1.0)]
        )
        return atom * f(earliest) + inner

    def reach(x):
        return 0.6 if x < 0.2 else 1.0

    share = expectation(lambda x: 1 - law(reach(x) - x))
    assert abs((s == 1).mean() - share) < 4 * np.sqrt(share / n)
    short = expectation(lambda x: law(min(0.3, reach(x) - x)) if x < 1 else 1.0)
    found = (s - t < 0.3) & (s < 1)
    assert abs(found.mean() - short) < 4 * np.sqrt(short / n)


def test_dyadic_steps_are_exact_evenly_dealt_and_on_their_grid():
    with jax.enable_x64(False):
        drawn = times.dyadic_pairs(jax.random.key(1), 56 * 1024)
    t, s = (np.asarray(a, np.float64) for a in drawn)
    apart = s > t
    assert apart.sum() == 7 * 1024
    # Flow matching: uniform on k / 128.
    counts = np.bincount((t[~apart] * 128).astype(int), minlength=128)
    np.testing.assert_array_equal(t[~apart] * 128 % 1, 0)
    assert len(counts) == 128
    assert stats.chisquare(counts).pvalue > 0.01
    # Steps: as many of each length 1, 1/2, ..., 1/64, uniform on the grid of theirs.
    lengths, counts = np.unique((s - t)[apart], return_counts=True)
    np.testing.assert_array_equal(lengths, 0.5 ** np.arange(6, -1, -1))
    np.testing.assert_array_equal(counts, 1024)
    for length in lengths:
        place = t[apart & (s - t == length)] / length
        np.testing.assert_array_equal(place % 1, 0)
        counts = np.bincount(place.astype(int), minlength=int(1 / length))
        assert len(counts) == 1 / length
        if length < 1:
            assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("share", [0.0, 0.5, 0.875])
@pytest.mark.parametrize("batch", [8, 24, 40])
def test_small_batches_hold_lengths_that_differ_by_one_row_at_most(key, batch, share):
    t, s = times.dyadic_pairs(key, batch, finest=8, share_equal=share)
    counts = [int((s - t == length).sum()) for length in (1.0, 0.5, 0.25)]
    assert sum(counts) == batch * (1 - share)
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


def test_pairs_to_the_data_keep_the_times(key):
    t, s = times.to_data(times.logit_normal)(key, 16)
    np.testing.assert_array_equal(t, times.logit_normal(key, 16))
    np.testing.assert_array_equal(s, 1)
    assert s.dtype == t.dtype


def test_either_direction_swaps_half_of_the_rows(key):
    pairs = times.either_direction(times.uniform_pairs)
    assert isinstance(pairs, typing.PairSampler)
    t, s = (np.asarray(a) for a in pairs(key, 40_000))
    still = np.arange(40_000) % 4 < 3
    np.testing.assert_array_equal(t == s, still)
    assert abs((t < s)[~still].mean() - 0.5) < 4 * 0.5 / np.sqrt(10_000)
    assert follows(np.minimum(t, s)[~still], stats.beta(1, 2).cdf)
    assert follows(np.maximum(t, s)[~still], stats.beta(2, 1).cdf)
    assert follows(t[still], stats.beta(1, 2).cdf)
    # The direction does not depend on the times, though these are drawn from the key.
    t, s = times.either_direction(times.to_data(times.uniform))(key, 40_000)
    assert follows(s[t == 1], stats.uniform.cdf)


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
    ("path", "ratio"),
    [
        (None, lambda t: (1 - t) / t),
        (interpolants.trigonometric(), lambda t: 1 / np.tan(np.pi / 2 * t)),
        (interpolants.linear_variance_preserving(), lambda t: np.sqrt(1 / t**2 - 1)),
        (
            interpolants.Interpolant(
                alpha=lambda t: t, sigma=lambda t: 1 - t, gamma=lambda t: t * (1 - t)
            ),
            lambda t: (1 - t) * np.sqrt(1 + t**2) / t,
        ),
    ],
)
def test_log_snr_grid_lowers_the_noise_ratio_by_equal_factors(path, ratio):
    options = {"sigma_min": 0.01, "sigma_max": 50.0, "interpolant": path}
    found = ratio(times.log_snr_grid(8, **options)[1:-1])
    expected = 50 * (0.01 / 50) ** (np.arange(1, 8) / 8)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    limit = times.edm_grid(8, rho=1e6, sigma_min=0.01, sigma_max=50.0)[1:-1]
    np.testing.assert_allclose((1 - limit) / limit, expected, rtol=1e-4)


def test_circular_and_mirrored_grids():
    q = np.arange(9) / 8
    np.testing.assert_allclose(times.circular_grid(8), 1 - np.sqrt(1 - q**2))
    quadratic = times.power_grid(8)
    np.testing.assert_allclose(times.mirror_grid(quadratic), 1 - (1 - q) ** 2)
    np.testing.assert_array_equal(
        times.mirror_grid(times.mirror_grid(quadratic)), quadratic
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: times.uniform(k, 4, low=0.5, high=0.5), "low < high"),
        (lambda k: times.uniform(k, 4, high=1.5), "high <= 1"),
        (lambda k: times.logit_normal(k, 4, std=0.0), "`std` must be positive"),
        (lambda k: times.arctan_normal(k, 4, std=0.0), "`std` must be positive"),
        (lambda k: times.u_shaped(k, 4, a=0.0), r"`a` must lie in \(0, 100\]; got 0.0"),
        (lambda k: times.u_shaped(k, 4, a=101.0), "`a` must lie in"),
        (lambda k: times.logit_normal_pairs(k, 6), "multiple of 4"),
        (lambda k: times.interval_pairs(k, 4, std=-1.0), "`std` must be positive"),
        (lambda k: times.interval_pairs(k, 6, share_equal=0.25), "multiple of 4"),
        (lambda k: times.reflow_pairs(k, 6), "multiple of 4"),
        (lambda k: times.reflow_pairs(k, 4, earliest=1.0), r"`earliest` .* got 1.0"),
        (lambda k: times.dyadic_pairs(k, 12), "multiple of 8"),
        (
            lambda k: times.dyadic_pairs(k, 8, finest=96),
            "power of two, at least 2; got",
        ),
        (lambda k: times.dyadic_pairs(k, 8, finest=1), "power of two, at least 2"),
        (
            lambda k: times.ordered_pairs(k, 4, sampler=times.uniform, equal="larger"),
            "`equal` must be one of .*'smaller', 'single'.*; got 'larger'",
        ),
        (lambda k: times.uniform_grid(0), "`steps` must be at least 1"),
        (lambda k: times.shifted_grid(3, shift=0.0), "`shift` must be positive"),
        (lambda k: times.power_grid(3, power=-1.0), "`power` must be positive"),
        (lambda k: times.edm_grid(3, sigma_min=3.0, sigma_max=2.0), "sigma_min"),
        (lambda k: times.circular_grid(0), "`steps` must be at least 1"),
        (lambda k: times.log_snr_grid(3, sigma_min=3.0, sigma_max=2.0), "sigma_min"),
        (
            lambda k: times.log_snr_grid(
                4, interpolant=interpolants.minimum_noise(0.1)
            ),
            "does not reach all ratios between 80.0 and 0.002",
        ),
        (lambda k: times.mirror_grid([0.0, 0.0]), "strictly monotone"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_arguments_are_refused(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)


def test_draws_follow_the_default_dtype(key):
    assert times.uniform(key, 2).dtype == jnp.float64
    with jax.enable_x64(False):
        assert times.logit_normal(jax.random.key(0), 2).dtype == jnp.float32
