"""Laws over a table of metrics; each metric against a closed form or brute force."""

import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from flowjax import metrics
from flowjax.metrics.neighbours import _kth_smallest

pytestmark = pytest.mark.usefixtures("x64")


class Member(NamedTuple):
    """One metric of (x, y), with the laws that hold for it."""

    evaluate: object
    degree: int | None  # value(a x, a y) = a^degree value(x, y)
    best: float  # value on two equal sets; None where it depends on the set
    symmetric: bool = True
    translation: bool = True
    rotation: bool = True
    traceable: bool = True


def sliced(x, y, **options):
    return metrics.sliced_wasserstein2(jax.random.key(7), x, y, **options)


def of_real_and_fake(metric, name):
    return lambda x, y, **options: getattr(metric(y, x, k=3, **options), name)


FIXED = (0.5, 2.0)
MEMBERS = {
    "wasserstein2": Member(metrics.wasserstein2, 1, 0.0, traceable=False),
    "sliced": Member(sliced, 1, 0.0, rotation=False),
    "frechet": Member(metrics.frechet_distance, 2, 0.0, traceable=False),
    "mmd2_median": Member(metrics.mmd2, 0, None, symmetric=False),
    "mmd2_fixed": Member(partial(metrics.mmd2, bandwidths=FIXED), None, None),
    "kernel": Member(metrics.kernel_distance, None, None, translation=False),
    "precision": Member(
        of_real_and_fake(metrics.precision_recall, "precision"), 0, 1.0, symmetric=False
    ),
    "recall": Member(
        of_real_and_fake(metrics.precision_recall, "recall"), 0, 1.0, symmetric=False
    ),
    "density": Member(
        of_real_and_fake(metrics.density_coverage, "density"), 0, None, symmetric=False
    ),
    "coverage": Member(
        of_real_and_fake(metrics.density_coverage, "coverage"), 0, 1.0, symmetric=False
    ),
}
every_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS.keys())


def members_with(predicate):
    chosen = {name: m for name, m in MEMBERS.items() if predicate(m)}
    return pytest.mark.parametrize("member", chosen.values(), ids=chosen.keys())


def two_sets(n=40, m=40, dim=4):
    rng = np.random.default_rng(3)
    x = 1.3 * rng.normal(size=(n, dim)) + 0.4
    y = rng.normal(size=(m, dim)) * np.linspace(0.5, 1.5, dim)
    return x, y


def orthogonal(dim):
    return np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]


def close(got, expected, rtol=1e-9, atol=1e-11):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


# Laws over the table.


@every_member
def test_order_of_rows_does_not_matter(member):
    x, y = two_sets()
    rng = np.random.default_rng(0)
    shuffled = member.evaluate(rng.permutation(x), rng.permutation(y))
    close(shuffled, member.evaluate(x, y))


@members_with(lambda m: m.symmetric)
def test_symmetric_metrics_are(member):
    x, y = two_sets()
    close(member.evaluate(x, y), member.evaluate(y, x))


@members_with(lambda m: m.translation)
def test_common_translation_changes_nothing(member):
    x, y = two_sets()
    c = np.array([[30.0, -20.0, 5.0, 1.0]])
    close(member.evaluate(x + c, y + c), member.evaluate(x, y))


@members_with(lambda m: m.rotation)
def test_common_rotation_changes_nothing(member):
    x, y = two_sets()
    q = orthogonal(4)
    close(member.evaluate(x @ q, y @ q), member.evaluate(x, y))


@members_with(lambda m: m.degree is not None)
def test_common_scaling_is_homogeneous(member):
    x, y = two_sets()
    expected = 3.0**member.degree * member.evaluate(x, y)
    close(member.evaluate(3 * x, 3 * y), expected)


@members_with(lambda m: m.best is not None)
def test_equal_sets_reach_the_best_value(member):
    x, _ = two_sets()
    close(member.evaluate(x, x.copy()), member.best)


@every_member
def test_events_are_flattened(member):
    x, y = two_sets()
    images = member.evaluate(x.reshape(-1, 2, 2), y.reshape(-1, 2, 2))
    close(images, member.evaluate(x, y))


@every_member
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sets_of_lower_precision_are_accepted(member, dtype):
    x, y = two_sets()
    x_low, y_low = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    x_high, y_high = np.asarray(x_low, "f8"), np.asarray(y_low, "f8")
    exact = member.evaluate(x_high, y_high)
    close(member.evaluate(x_low, y_low), exact, rtol=1e-4, atol=1e-5)
    # One set may also come in another dtype or library than the other.
    close(member.evaluate(x_low, y), member.evaluate(x_high, y))


@members_with(lambda m: m.traceable)
def test_chunks_do_not_change_the_value(member):
    x, y = two_sets()
    # Five full chunks of rows and a rest, for the sliced distance of directions.
    close(member.evaluate(x, y, chunk_size=7), member.evaluate(x, y))


@members_with(lambda m: m.traceable)
def test_jit_agrees_with_eager(member):
    x, y = map(jnp.asarray, two_sets())
    # Directions are drawn in float32, which programs may round differently.
    close(jax.jit(member.evaluate)(x, y), member.evaluate(x, y), rtol=1e-7)


@every_member
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_broken_samples_raise(member, bad, side):
    sets = two_sets()
    sets[side][5, 2] = bad
    with pytest.raises(ValueError, match="must be finite; got 1 of 160"):
        member.evaluate(*sets)


@members_with(lambda m: m.traceable)
def test_broken_samples_give_nan_under_a_trace(member):
    evaluate = jax.jit(member.evaluate)
    for bad, side in itertools.product((np.nan, np.inf), (0, 1)):
        sets = two_sets()
        sets[side][5, 2] = bad
        assert np.isnan(evaluate(*map(jnp.asarray, sets)))


@every_member
def test_bad_sets_raise(member):
    x, y = two_sets()
    with pytest.raises(ValueError, match="the same event shape"):
        member.evaluate(x, y[:, :3])
    with pytest.raises(ValueError, match="the same event shape"):
        member.evaluate(x, y.reshape(-1, 2, 2))
    with pytest.raises(ValueError, match="non-empty"):
        member.evaluate(x[:0], y)
    with pytest.raises(ValueError, match="non-empty"):
        member.evaluate(x, y[:, 0])
    with pytest.raises(ValueError, match="floating dtype"):
        member.evaluate(x.astype(np.int32), y)


@members_with(lambda m: m.traceable)
def test_bad_chunk_size_raises(member):
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1; got 0"):
        member.evaluate(*two_sets(), chunk_size=0)


# Wasserstein distances.


def test_w2_is_the_best_of_all_permutations():
    x, y = two_sets(n=6, m=6, dim=3)
    orders = itertools.permutations(range(6))
    costs = [np.sum((x - y[list(p)]) ** 2) / 6 for p in orders]
    close(metrics.wasserstein2(x, y), math.sqrt(min(costs)))


def test_w2_of_a_translation_is_its_length():
    x, _ = two_sets()
    c = np.array([[1.0, -2.0, 2.0, 4.0]])
    close(metrics.wasserstein2(x, x[::-1] + c), 5.0)


def positive_definite(dim, seed):
    a = np.random.default_rng(seed).normal(size=(dim, dim))
    return a @ a.T / dim + 0.2 * np.eye(dim)


def test_w2_of_a_monotone_linear_map():
    # x -> A x + b with A > 0 is the gradient of a convex function, hence optimal.
    x, _ = two_sets()
    mapped = x @ positive_definite(4, seed=2) + 0.3
    expected = math.sqrt(np.mean(np.sum((mapped - x) ** 2, axis=1)))
    close(metrics.wasserstein2(x, mapped[::-1]), expected)


def test_w2_errors():
    x, y = two_sets()
    with pytest.raises(ValueError, match="equally many rows; got 40 and 39"):
        metrics.wasserstein2(x, y[1:])
    with pytest.raises(ValueError, match=r"at most max_size=10 rows.*got 40"):
        metrics.wasserstein2(x, y, max_size=10)


@pytest.mark.parametrize(("n", "m"), [(1, 5), (30, 30), (12, 18)])
def test_w1_agrees_with_scipy(n, m):
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=n), 2 * rng.normal(size=m) + 0.5
    expected = scipy.stats.wasserstein_distance(x, y)
    close(jax.jit(metrics.wasserstein_1d)(jnp.asarray(x), jnp.asarray(y)), expected)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(4, 6), (3, 7)])
def test_1d_unequal_sizes_equal_repeated_points(n, m, power):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n), rng.normal(size=m)
    xs, ys = (np.sort(np.repeat(a, n * m // len(a))) for a in (x, y))
    expected = np.mean(np.abs(xs - ys) ** power) ** (1 / power)
    close(metrics.wasserstein_1d(x, y, power=power), expected)


def test_1d_agrees_with_the_assignment_and_sliced():
    x, y = two_sets(dim=1)
    exact = metrics.wasserstein2(x, y)
    close(metrics.wasserstein_1d(x[:, 0], y[:, 0], power=2), exact)
    close(sliced(x, y, num_projections=3), exact)


def test_1d_errors():
    x = np.arange(4.0)
    with pytest.raises(ValueError, match="`power` must be 1 or 2; got 3"):
        metrics.wasserstein_1d(x, x, power=3)
    with pytest.raises(ValueError, match=r"`y` must have shape \[n\]; got \(4, 1\)"):
        metrics.wasserstein_1d(x, x[:, None])
    with pytest.raises(ValueError, match="non-empty"):
        metrics.wasserstein_1d(x, x[:0])
    with pytest.raises(ValueError, match="must be finite"):
        metrics.wasserstein_1d(np.array([0.0, np.nan]), x)


@pytest.mark.parametrize("dim", [2, 20])
def test_sliced_translation_in_expectation(dim, key):
    count = 4096
    x = np.random.default_rng(0).normal(size=(3, dim))
    c = np.full((1, dim), 2.0)
    squared = metrics.sliced_wasserstein2(key, x, x + c, num_projections=count) ** 2
    # d <w, c>^2 / ||c||^2 has mean 1 and variance 2 (d - 1) / (d + 2) over the sphere.
    error = math.sqrt(2 * (dim - 1) / (dim + 2) / count)
    assert abs(squared * dim / np.sum(c**2) - 1) < 4 * error


def test_sliced_rejects_no_projections(key):
    with pytest.raises(ValueError, match="`num_projections` must be at least 1; got 0"):
        metrics.sliced_wasserstein2(key, *two_sets(), num_projections=0)


# Kernel distances.


def gaussian_mixture_kernel(a, b):
    squared = np.sum((a - b) ** 2)
    return np.mean([math.exp(-squared / (2 * h**2)) for h in FIXED])


def cubic_kernel(a, b):
    return (a @ b / len(a) + 1) ** 3


def mmd2_by_hand(kernel, x, y):
    within = [
        np.mean([kernel(a, b) for a, b in itertools.permutations(points, 2)])
        for points in (x, y)
    ]
    across = np.mean([kernel(a, b) for a, b in itertools.product(x, y)])
    return sum(within) - 2 * across


KERNELS = {
    "gaussian": (partial(metrics.mmd2, bandwidths=FIXED), gaussian_mixture_kernel),
    "cubic": (metrics.kernel_distance, cubic_kernel),
}
every_kernel = pytest.mark.parametrize(
    ("metric", "kernel"), KERNELS.values(), ids=KERNELS.keys()
)


@every_kernel
@pytest.mark.parametrize(("n", "m"), [(2, 2), (4, 3)])
def test_mmd_by_hand(metric, kernel, n, m):
    x, y = two_sets(n, m, dim=3)
    close(metric(x, y), mmd2_by_hand(kernel, x, y))


def test_kid_of_numbers():
    # k(1,1) = 8, k(2,0) = 1; x: k(1,2) = 27; y: k(0,-1) = 1; across 1, 0, 1, -1.
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [-1.0]])
    close(metrics.kernel_distance(x, y), 27 + 1 - 2 * (1 + 0 + 1 - 1) / 4)


@every_kernel
@pytest.mark.parametrize("n", [2, 3])
def test_mmd_averages_to_zero_over_all_splits(metric, kernel, n):
    # Unbiasedness without chance: over all splits of one set the mean is exactly zero.
    points, _ = two_sets(n=6, dim=3)
    values = []
    for chosen in itertools.combinations(range(6), n):
        rest = [i for i in range(6) if i not in chosen]
        values.append(float(metric(points[list(chosen)], points[rest])))
    assert max(values) > 0.01
    close(np.mean(values), 0.0)


def test_mmd_of_gaussians_matches_the_closed_form(key):
    # E k = h / sqrt(h^2 + 2) exp(-mu^2 / (2 (h^2 + 2))) for x - y ~ N(mu, 2).
    mu, h, n = 1.5, 0.8, 400
    noise = jax.random.normal(key, (32, 2, n, 1))
    mmd2 = jax.jit(jax.vmap(partial(metrics.mmd2, bandwidths=(h,))))
    shift = 2 * h / math.sqrt(h**2 + 2) * (1 - math.exp(-(mu**2) / (2 * (h**2 + 2))))
    for moved, expected in ((mu, shift), (0.0, 0.0)):
        values = np.asarray(mmd2(noise[:, 0] + moved, noise[:, 1]))
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean() - expected) < 4 * error


def test_default_bandwidths_come_from_the_real_set():
    x, y = two_sets()
    median = np.median(scipy.spatial.distance.pdist(y))
    bandwidths = [c * median for c in (0.25, 0.5, 1, 2, 4)]
    close(metrics.mmd2(x, y), metrics.mmd2(x, y, bandwidths=bandwidths))


def test_median_uses_an_evenly_spaced_subset():
    # 2500 sorted points: the first 1000 alone would give a median 2.5 times too small.
    y = np.linspace(0, 1, 2500)[:, None]
    chosen = y[np.linspace(0, 2499, 1000).astype(int)]
    median = np.median(scipy.spatial.distance.pdist(chosen))
    bandwidths = np.array([0.25, 0.5, 1, 2, 4]) * median
    close(metrics.mmd2(y[:5], y), metrics.mmd2(y[:5], y, bandwidths=bandwidths))


def test_mmd_errors():
    x, y = two_sets()
    with pytest.raises(ValueError, match="`y` must have at least 2 rows; got 1"):
        metrics.mmd2(x, y[:1])
    with pytest.raises(ValueError, match="`features_x` must have at least 2 rows"):
        metrics.kernel_distance(x[:1], y)
    with pytest.raises(ValueError, match="must be positive and finite"):
        metrics.mmd2(x, y, bandwidths=(1.0, 0.0))
    with pytest.raises(ValueError, match="non-empty list"):
        metrics.mmd2(x, y, bandwidths=())
    with pytest.raises(ValueError, match="median distance of `y` is zero"):
        metrics.mmd2(x, np.ones_like(y))
    assert np.isnan(jax.jit(metrics.mmd2)(jnp.asarray(x), jnp.ones_like(y)))


# Features.


def test_frechet_of_a_monotone_linear_map():
    # T x = A x + b, A > 0: d^2 = ||(A - 1) m + b||^2 + tr((A - 1) C (A - 1)), exactly.
    x, _ = two_sets()
    a, b = positive_definite(4, seed=2), np.array([1.0, -0.5, 0.0, 2.0])
    change = a - np.eye(4)
    expected = np.sum((x.mean(0) @ change + b) ** 2)
    expected += np.trace(change @ np.cov(x.T) @ change)
    close(metrics.frechet_distance(x, x @ a + b), expected)


def test_frechet_from_moments_agrees_with_the_matrix_root():
    c_x, c_y = positive_definite(5, seed=3), positive_definite(5, seed=4)
    m_x, m_y = np.arange(5.0), np.ones(5)
    root = scipy.linalg.sqrtm(c_x @ c_y)
    expected = np.sum((m_x - m_y) ** 2) + np.trace(c_x + c_y - 2 * root.real)
    close(metrics.frechet_from_moments(m_x, c_x, m_y, c_y), expected)
    zero = np.zeros(5)
    diagonal = metrics.frechet_from_moments(
        zero, np.diag(np.arange(5.0) ** 2), zero, np.eye(5)
    )
    close(diagonal, np.sum((np.arange(5.0) - 1) ** 2))


def test_frechet_of_singular_covariances():
    # For C = a a^T and b b^T the root of the product has the trace |<a, b>|.
    a, b = np.array([1.0, 2.0, 3.0, 0.0]), np.array([-2.0, 1.0, 1.0, 5.0])
    zero = np.zeros(4)
    got = metrics.frechet_from_moments(zero, np.outer(a, a), zero, np.outer(b, b))
    close(got, a @ a + b @ b - 2 * abs(a @ b), rtol=1e-7)
    # Fewer samples than features leave most eigenvalues at zero.
    x = np.random.default_rng(0).normal(size=(5, 40))
    close(metrics.frechet_distance(x, x + 0.5), 40 * 0.25, rtol=1e-7)


def test_frechet_errors():
    x, y = two_sets()
    with pytest.raises(ValueError, match="at least 2 rows; got 1"):
        metrics.frechet_distance(x, y[:1])
    zero, eye = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match=r"`cov_y` must have shape \(2, 2\)"):
        metrics.frechet_from_moments(zero, eye, zero, np.eye(3))
    with pytest.raises(ValueError, match=r"`mean_y` must have shape \(2,\)"):
        metrics.frechet_from_moments(zero, eye, np.zeros(3), eye)
    with pytest.raises(ValueError, match="`cov_x` must be finite"):
        metrics.frechet_from_moments(zero, eye * np.nan, zero, eye)
    with pytest.raises(ValueError, match="`cov_x` must be symmetric"):
        metrics.frechet_from_moments(zero, np.array([[1.0, 0.5], [0, 1]]), zero, eye)
    with pytest.raises(ValueError, match="`cov_y` must be positive semi-definite"):
        metrics.frechet_from_moments(zero, eye, zero, np.diag([1.0, -1.0]))


def neighbour_metrics(real, fake, k):
    return (
        *metrics.precision_recall(real, fake, k=k),
        *metrics.density_coverage(real, fake, k=k),
    )


def neighbour_metrics_by_hand(real, fake, k):
    def radii(points):
        return np.sort(scipy.spatial.distance.cdist(points, points), axis=1)[:, k]

    distance = scipy.spatial.distance.cdist(real, fake)
    in_real = distance <= radii(real)[:, None]
    in_fake = distance <= radii(fake)[None]
    precision, recall = in_real.any(0).mean(), in_fake.any(1).mean()
    return precision, recall, in_real.sum() / (k * len(fake)), in_real.any(1).mean()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_neighbour_metrics_by_hand(k):
    real, fake = two_sets(n=25, m=41, dim=2)
    fake = fake + 3  # overlapping in part: no value at its end of the scale
    got = neighbour_metrics(real, fake, k)
    close(got, neighbour_metrics_by_hand(real, fake, k))
    assert all(0 < value < 1 for value in got)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8])
def test_kth_smallest_counts_equal_values_apart(k):
    values = np.array([3.0, 1.0, 2.0, 1.0, 5.0, 2.0, 1.0, np.inf])
    close(_kth_smallest(jnp.asarray(values), k), np.sort(values)[k - 1])


def test_disjoint_sets_share_nothing():
    real, fake = two_sets()
    close(neighbour_metrics(real, fake + 1e3, 3), (0, 0, 0, 0))


def test_a_dropped_mode_costs_recall_and_coverage_only():
    mode, other = two_sets()
    real, fake = np.concatenate([mode, other + 1e3]), mode
    precision, recall, _, coverage = neighbour_metrics(real, fake, 3)
    close((precision, recall, coverage), (1.0, 0.5, 0.5))
    # An invented mode, the other way round, costs precision only.
    precision, recall, _, coverage = neighbour_metrics(fake, real, 3)
    close((precision, recall, coverage), (0.5, 1.0, 1.0))


def test_density_and_coverage_of_equal_laws(key):
    n, m, k = 20, 14, 3
    points = jax.random.normal(key, (1000, n + m, 2))
    measure = jax.vmap(lambda z: metrics.density_coverage(z[:n], z[n:], k=k))
    values = jax.jit(measure)(points)
    missed = math.prod((n - j) / (n + m - j) for j in range(1, k + 1))
    for got, expected in zip(values, (1.0, 1 - missed), strict=True):
        error = got.std() / math.sqrt(len(got))
        assert abs(got.mean() - expected) < 4 * error


def test_neighbour_errors():
    real, fake = two_sets(n=10, m=4)
    with pytest.raises(ValueError, match="`features_real`=10; got 10"):
        metrics.precision_recall(real, fake, k=10)
    with pytest.raises(ValueError, match="`features_fake`=4; got 4"):
        metrics.precision_recall(real, fake, k=4)
    with pytest.raises(ValueError, match="`features_real`=10; got 12"):
        metrics.density_coverage(real, fake, k=12)
    with pytest.raises(ValueError, match="`k` must be at least 1; got 0"):
        metrics.precision_recall(real, fake, k=0)
    # Only the real set has neighbourhoods in density and coverage.
    metrics.density_coverage(real, fake, k=5)


# Paths. The oracle: source N(0, 1), data N(m, S^2), linear interpolant, whose marginal
# velocity is m + a(t) (x - t m) and whose flow is z(t) = t m + sqrt(q(t)) x0.

MEAN, SCALE = (1.0, -2.0), 0.4


def gaussian_velocity(x, t, cond=None):
    t = t[:, None]
    rate = (t * SCALE**2 - (1 - t)) / (t**2 * SCALE**2 + (1 - t) ** 2)
    mean = jnp.asarray(MEAN)[None]
    return mean + rate * (x - t * mean)


def gaussian_flow(x0, times):
    t = np.asarray(times)[:, None, None]
    mean = np.asarray(MEAN)[None, None]
    return jnp.asarray(t * mean + np.sqrt(t**2 * SCALE**2 + (1 - t) ** 2) * x0[None])


def gaussian_energy(x0):
    mean = np.asarray(MEAN)
    linear = 2 * (SCALE - 1) * x0 @ mean
    return (
        mean @ mean + linear + np.sum(x0**2, 1) * (1 + SCALE**2 - math.pi * SCALE / 2)
    )


def gaussian_straightness(x0):
    return np.sum(x0**2, 1) * SCALE * (2 - math.pi / 2)


def source(n=6):
    return np.random.default_rng(0).normal(size=(n, 2))


def test_energy_and_straightness_of_the_gaussian_oracle():
    x0 = source()
    grid = np.linspace(0, 1, 2001)
    states = metrics.trajectory(gaussian_velocity, jnp.asarray(x0), grid=grid)
    close(states, gaussian_flow(x0, grid), rtol=1e-5, atol=1e-5)
    close(metrics.path_energy(states, grid), gaussian_energy(x0), rtol=1e-5)
    close(metrics.straightness(states, grid), gaussian_straightness(x0), rtol=1e-5)


def convergence_ratios(error):
    errors = np.array([error(np.linspace(0, 1, n + 1)) for n in (100, 200, 400)])
    return errors[:-1] / errors[1:]


def test_trajectory_is_second_order():
    # Not on the Gaussian oracle, where the midpoint rule happens to be third order: its
    # leading error for dy/dt = a y, a''/24 + a a'/4 + a^3/6, vanishes there.
    x0 = jnp.asarray(source())

    def error(grid):
        states = metrics.trajectory(lambda x, t, _: 2 * t[:, None] * x, x0, grid=grid)
        return np.abs(states[-1] - math.e * x0).max()

    close(convergence_ratios(error), 4, rtol=0.05)


@pytest.mark.parametrize("measure", ["path_energy", "straightness"])
def test_measures_of_paths_are_second_order(measure):
    x0 = source()
    oracle = gaussian_energy if measure == "path_energy" else gaussian_straightness

    def error(grid):
        got = getattr(metrics, measure)(gaussian_flow(x0, grid), grid)
        assert (got <= oracle(x0)).all()  # the polygon is never longer than the curve
        return np.abs(got - oracle(x0)).max()

    close(convergence_ratios(error), 4, rtol=0.05)


GRIDS = {
    "uniform": (0.0, 0.25, 0.5, 0.75, 1.0),
    "uneven": (0.0, 0.1, 0.15, 0.7, 1.0),
    "inner": (0.2, 0.3, 0.5, 0.6, 0.9),
    "backwards": (1.0, 0.7, 0.5, 0.2, 0.0),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@every_grid
def test_straightness_is_the_excess_energy(grid):
    states = jnp.asarray(np.random.default_rng(5).normal(size=(5, 3, 2, 2)))
    energy = metrics.path_energy(states, grid)
    straightness = metrics.straightness(states, grid)
    chord = jnp.sum((states[-1] - states[0]) ** 2, axis=(1, 2))
    close(straightness, energy - chord / abs(grid[-1] - grid[0]))
    assert (straightness > 0).all()
    backwards = metrics.path_energy(states[::-1], grid[::-1])
    close(backwards, energy)


@every_grid
def test_a_straight_path_at_constant_speed_has_none(grid):
    x0, velocity = source()[None], np.array([[[3.0, -4.0]]])
    times = np.asarray(grid)
    states = jnp.asarray(x0 + times[:, None, None] * velocity)
    close(metrics.straightness(states, grid), 0)
    close(metrics.path_energy(states, grid), 25 * abs(times[-1] - times[0]))


def test_energy_of_euler_steps_is_that_of_their_velocities():
    grid, x = (0.0, 0.3, 0.8, 1.0), jnp.asarray(source())
    states, energy = [x], jnp.zeros(len(x))
    for t, s in itertools.pairwise(grid):
        v = gaussian_velocity(x, jnp.full(len(x), t))
        x, energy = x + (s - t) * v, energy + (s - t) * jnp.sum(v**2, axis=1)
        states.append(x)
    close(metrics.path_energy(jnp.stack(states), grid), energy)


def test_straightness_in_float32_does_not_cancel():
    # A bend of 1e-3 on a way of 1000: the difference of energies has no digit of it.
    bend = 1e-3 * np.sin(np.pi * np.linspace(0, 1, 11))
    line = 1000 * np.linspace(0, 1, 11)
    states = np.stack([line, bend], axis=1)[:, None]
    grid = np.linspace(0, 1, 11)
    exact = metrics.straightness(jnp.asarray(states), grid)
    got = metrics.straightness(jnp.asarray(states, jnp.float32), grid)
    assert exact < 1e-5
    close(got, exact, atol=1e-6)


def test_normalized_path_energy_of_the_oracle():
    squared = sum(m**2 for m in MEAN) + 2 * (1 - SCALE) ** 2
    energy = squared + 2 * SCALE * (2 - math.pi / 2)
    got = metrics.normalized_path_energy(jnp.full(3, energy), math.sqrt(squared))
    close(got, (2 - math.pi / 2) * SCALE * 2 / squared)


def test_trajectory_passes_the_condition_and_keeps_dtypes():
    def field(x, t, cond):
        return cond["speed"][:, None] + 0 * x

    x0 = jnp.zeros((3, 2), jnp.bfloat16)
    cond = {"speed": jnp.arange(3).astype(jnp.bfloat16)}
    grid = (0.0, 0.5, 1.0)
    run = jax.jit(lambda x, c: metrics.trajectory(field, x, cond=c, grid=grid))
    states = run(x0, cond)
    assert states.shape == (3, 3, 2)
    assert states.dtype == jnp.bfloat16
    close(states[-1, :, 0].astype(float), [0, 1, 2])
    close(metrics.straightness(states, grid), 0)


def test_measures_of_paths_run_under_jit_and_keep_rows_apart():
    grid = np.linspace(0, 1, 9)
    states = gaussian_flow(source(), grid)
    for measure in (metrics.path_energy, metrics.straightness):
        whole = measure(states, grid)
        close(jax.jit(lambda z, f=measure: f(z, grid))(states), whole)
        close(measure(states[:, 2:3], grid), whole[2:3])
        broken = jax.jit(lambda z, f=measure: f(z, grid))(states.at[3, 1].set(jnp.nan))
        assert np.isnan(broken).tolist() == [False, True, False, False, False, False]


def test_path_errors():
    grid = (0.0, 0.5, 1.0)
    states = jnp.zeros((3, 4, 2))
    for measure in (metrics.path_energy, metrics.straightness):
        with pytest.raises(ValueError, match=r"\[time=3, batch, \*event\]; got \(2, 4"):
            measure(states[:2], grid)
        with pytest.raises(ValueError, match=r"batch, \*event\]; got \(3, 4\)"):
            measure(states[..., 0], grid)
        with pytest.raises(ValueError, match="strictly monotone"):
            measure(states, (0.0, 1.0, 0.5))
        with pytest.raises(ValueError, match="`states` must be finite"):
            measure(states.at[0, 0, 0].set(jnp.nan), grid)
    with pytest.raises(ValueError, match="`distance` must be positive"):
        metrics.normalized_path_energy(jnp.ones(3), 0.0)
    with pytest.raises(ValueError, match="`energy` must be finite"):
        metrics.normalized_path_energy(jnp.array([jnp.nan]), 1.0)


def test_trajectory_errors():
    x0 = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="`grid` must lie in"):
        metrics.trajectory(gaussian_velocity, x0, grid=(0.0, 2.0))
    with pytest.raises(ValueError, match="leading axis batch=3"):
        metrics.trajectory(gaussian_velocity, x0, cond=jnp.zeros(2), grid=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"`field` must return shape .*=\(3, 2\)"):
        metrics.trajectory(lambda x, t, cond: x[:, :1], x0, grid=(0.0, 1.0))
