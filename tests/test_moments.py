"""Inductive moment matching: discrepancies of groups against plain sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import analytic, interpolants, times, weights
from flowjax.interpolants import sample_path
from flowjax.objectives import moments

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = interpolants.linear()
DATA = ([1.0, -0.5], 0.6)
TRUTH = analytic.average_velocity(analytic.gaussian(*map(jnp.array, DATA)), LINEAR)


@partial(jax.jit, static_argnums=1)
def pairs_of_paths(key, batch=32, *, group=8, gap=0.5):
    """Points of the same pairs at t and q, and s."""
    key_times, key_noise, key_data = jax.random.split(key, 3)
    t, q, s = times.grouped_times(key_times, batch, group=group, gap=gap, low=0.2)
    x0 = jax.random.normal(key_noise, (batch, 2))
    x1 = jnp.array([DATA[0]]) + DATA[1] * jax.random.normal(key_data, (batch, 2))
    return sample_path(LINEAR, x0, x1, t), sample_path(LINEAR, x0, x1, q), s


def bent(theta):
    """A field away from the truth: 0 is the truth."""

    def u(x, t, s, cond=None, /):
        return TRUTH(x, t, s) + theta * (1 + jnp.sin(2 * x + s[:, None]))

    return u


@partial(jax.jit, static_argnames=("sigma_data", "weight"))
def discrepancy(theta, path, nearer, s, other=None, **options):
    """The loss of a bent field, compiled once for all of the tests."""
    target = None if other is None else bent(other)
    return moments.inductive_moment_matching(
        bent(theta), path, nearer, s, group=8, target=target, **options
    )


def test_discrepancy_is_the_double_sum_over_a_group(key):
    path, nearer, s = pairs_of_paths(key)
    u, other = bent(0.3), bent(-0.2)
    loss = discrepancy(0.3, path, nearer, s, -0.2, sigma_data=0.7)
    y = np.asarray(path.x + (s - path.t)[:, None] * u(path.x, path.t, s))
    z = nearer.x + (s - nearer.t)[:, None] * other(nearer.x, nearer.t, s)
    z, width = np.asarray(z), np.asarray(0.7 * (s - path.t) + 1e-6)
    for row in range(32):
        members = range(row // 8 * 8, row // 8 * 8 + 8)

        def mean_kernel(a, b, members=members, scale=2 * width[row]):
            gaps = [np.linalg.norm(a[i] - b[j]) for i in members for j in members]
            return np.mean(np.exp(-np.maximum(gaps, 1e-8) / scale))

        expected = mean_kernel(y, y) + mean_kernel(z, z) - 2 * mean_kernel(y, z)
        np.testing.assert_allclose(loss[row], expected, rtol=1e-9)


def test_identical_sets_have_no_discrepancy(key):
    path, _, s = pairs_of_paths(key)
    np.testing.assert_allclose(discrepancy(0.5, path, path, s), 0, atol=1e-14)
    # Sets, not lists: the order within a group does not matter.
    order = jnp.arange(32).reshape(4, 8)[:, ::-1].ravel()
    turned = jax.tree.map(lambda a: a[order], path)
    np.testing.assert_allclose(discrepancy(0.5, path, turned, s), 0, atol=1e-14)
    assert discrepancy(0.5, path, path._replace(x=path.x + 0.1), s).min() > 1e-3


def test_discrepancy_falls_towards_the_truth(key):
    path, _, _ = pairs_of_paths(key, 1024)
    t, q, s = (jnp.full(1024, a) for a in (0.3, 0.6, 0.9))
    path, nearer = (sample_path(LINEAR, path.x0, path.x1, a) for a in (t, q))
    loss = jax.jit(
        lambda theta: moments.inductive_moment_matching(
            bent(theta), path, nearer, s, group=1024, target=TRUTH
        ).mean()
    )
    losses = np.stack([loss(theta) for theta in (0.0, 0.1, 0.3, 0.6, 1.0)])
    assert (np.diff(losses) > 0).all()
    assert losses[0] < 0.1 * losses[2]
    slope = jax.jit(jax.grad(loss))
    assert slope(0.3) > 0 > slope(-0.3)


def test_discrepancy_does_not_see_a_translation(key):
    path, nearer, s = pairs_of_paths(key)

    def still(x, t, s, cond=None, /):
        return jnp.sin(3 * t)[:, None] + jnp.zeros_like(x)

    loss = jax.jit(partial(moments.inductive_moment_matching, still, s=s, group=8))
    moved = loss(path._replace(x=path.x + 2), nearer._replace(x=nearer.x + 2))
    np.testing.assert_allclose(moved, loss(path, nearer), rtol=1e-9)


def test_groups_do_not_see_each_other(key):
    path, nearer, s = pairs_of_paths(key)
    loss = partial(discrepancy, 0.3)
    whole = loss(path, nearer, s)
    rows = jax.tree.map(lambda a: a[8:16], (path, nearer, s))
    np.testing.assert_allclose(loss(*rows), whole[8:16], rtol=1e-12)


def test_no_gradient_passes_the_nearer_points(key):
    path, nearer, s = pairs_of_paths(key)

    def loss(theta, other):
        return discrepancy(theta, path, nearer, s, other).sum()

    own = jax.grad(loss)(0.3, None)
    of_field, of_target = jax.grad(loss, (0, 1))(0.3, 0.3)
    assert jnp.abs(own) > 1e-3
    np.testing.assert_allclose(own, of_field, rtol=1e-12)
    assert of_target == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_coinciding_points_have_finite_gradients(dtype):
    x = jnp.ones((8, 3), dtype)
    t, s = jnp.full(8, 0.5, dtype), jnp.full(8, 0.75, dtype)
    path = sample_path(LINEAR, x, x, t)

    def loss(shift, s):
        def u(x, t, s, cond=None, /):
            return x * shift

        return moments.inductive_moment_matching(u, path, path, s, group=4).sum()

    value_and_slope = jax.jit(jax.value_and_grad(loss))
    for end in (s, t):  # also with a kernel of no width
        value, grad = value_and_slope(jnp.ones((), dtype), end)
        assert value == 0
        assert jnp.isfinite(grad)


def test_rows_of_a_group_must_share_their_times(key):
    path, nearer, s = pairs_of_paths(key)
    loss = partial(discrepancy, 0.3)
    assert jnp.isfinite(loss(path, nearer, s)).all()
    broken = np.arange(32) // 8 == 1
    for leaf in ("t", "q", "s"):
        move = [a.at[9].add(1e-3 if leaf == n else 0.0) for n, a in
                (("t", path.t), ("q", nearer.t), ("s", s))]  # fmt: skip
        value = loss(path._replace(t=move[0]), nearer._replace(t=move[1]), move[2])
        np.testing.assert_array_equal(jnp.isnan(value), broken)


def test_weight_of_time(key):
    path, nearer, s = pairs_of_paths(key)
    weight = weights.moment_weight(LINEAR, bias=4.0, power=2.0)
    t = path.t
    log_ratio = 2 * jnp.log(t / (1 - t))
    expected = 1 / (1 + jnp.exp(log_ratio - 4.0)) * t / (1 - t) / (t**2 + (1 - t) ** 2)
    np.testing.assert_allclose(weight(t), expected, rtol=1e-12)
    loss = partial(discrepancy, 0.3, path, nearer, s)
    np.testing.assert_allclose(loss(weight=weight), expected * loss(), rtol=1e-12)


def test_grouped_times(key):
    options = {"group": 4, "gap": 0.25, "low": 0.1, "high": 0.9}
    draw = jax.jit(lambda key: times.grouped_times(key, 4000, **options))
    t, q, s = map(np.asarray, draw(key))
    for a in (t, q, s):
        grouped = a.reshape(-1, 4)
        assert (grouped == grouped[:, :1]).all()
        assert len(np.unique(a)) == 1000
    assert ((t <= q) & (q <= s) & (s <= 1)).all()
    assert (q > t).all()
    assert t.min() >= 0.1
    assert t.max() <= 0.9
    eta_t, eta_q = (1 - t) / t, (1 - q) / q
    inside = q < s - 1e-12
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_allclose((eta_t - eta_q)[inside], 0.25, rtol=1e-9)
    assert ((eta_t - eta_q)[~inside] <= 0.25 + 1e-9).all()
    np.testing.assert_allclose(((s - t) / (1 - t)).mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(t.mean(), 0.5, atol=0.03)


def test_moments_name_bad_options(key, untyped):
    path, nearer, s = pairs_of_paths(key)
    run = partial(moments.inductive_moment_matching, TRUTH, path, nearer)
    with pytest.raises(ValueError, match="divide the batch of 32; got 5"):
        run(s, group=5)
    with pytest.raises(ValueError, match="`group` must be at least 2"):
        times.grouped_times(key, 8, group=1)
    with pytest.raises(ValueError, match="`s` must have shape"):
        run(s[:, None])
    with pytest.raises(ValueError, match="`sigma_data` must be positive"):
        run(s, sigma_data=0.0)
    with pytest.raises(ValueError, match="0 < `low` < `high` < 1"):
        times.grouped_times(key, 8, low=0.0)
