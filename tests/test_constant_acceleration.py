"""Constant acceleration: straight pairs run through at a changing speed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import interpolants, objectives, sampling
from flowjax.events import expand_like
from flowjax.interpolants import Path
from tests.policy_problems import MEAN, SCALE

pytestmark = pytest.mark.usefixtures("x64")


def straight_pairs(key, batch=16):
    key_noise, key_time = jax.random.split(key)
    x0 = jax.random.normal(key_noise, (batch, 2))
    x1 = jnp.asarray(MEAN[None] + SCALE[None] * x0)
    t = jax.random.uniform(key_time, (batch,))
    unread = jnp.full_like(x0, jnp.nan)
    return Path(unread, t, unread, x0, x1)


def straight_line(x, t, ratio):
    """``x1 - x0`` of the pair whose accelerated line passes through x at t."""
    alpha = expand_like(interpolants.accelerated_line(ratio).alpha(t), x)
    x0 = (x - alpha * MEAN[None]) / (1 - alpha + alpha * SCALE[None])
    return MEAN[None] + (SCALE[None] - 1) * x0


def true_v0(x, t, cond=None, /, *, ratio):
    return ratio * straight_line(x, t, ratio)


def true_acceleration(x, t, v0, cond=None, /, *, ratio):
    return (2 - 2 * ratio) * straight_line(x, t, ratio)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, 2.0])
def test_accelerated_line(key, ratio):
    line, pairs = interpolants.accelerated_line(ratio), straight_pairs(key)
    t, way = pairs.t[:, None], pairs.x1 - pairs.x0
    path = interpolants.sample_path(line, pairs.x0, pairs.x1, pairs.t)
    start = ratio * way
    expected = (1 - t**2) * pairs.x0 + t**2 * pairs.x1 + start * (t - t**2)
    np.testing.assert_allclose(path.x, expected, atol=1e-14)
    np.testing.assert_allclose(path.v, start + 2 * (way - start) * t, atol=1e-13)
    for end, value in ((0.0, 0.0), (1.0, 1.0)):
        t = jnp.asarray(end)
        assert (line.alpha(t), line.sigma(t)) == (value, 1 - value)


@pytest.mark.parametrize("ratio", [0.8, 1.5])
def test_constant_acceleration_is_exact_on_straight_pairs(key, ratio):
    path = straight_pairs(key)
    v0 = partial(true_v0, ratio=ratio)
    a = partial(true_acceleration, ratio=ratio)
    first = partial(objectives.constant_acceleration_velocity, path=path, ratio=ratio)
    second = partial(objectives.constant_acceleration, path=path, velocity=v0)
    np.testing.assert_allclose(first(v0), 0, atol=1e-24)
    np.testing.assert_allclose(second(a), 0, atol=1e-24)
    assert first(lambda *args: 1.1 * v0(*args)).min() > 1e-4
    assert second(lambda *args: a(*args) + 0.1).min() > 5e-3


@pytest.mark.parametrize("error", [0.0, 0.3])
@pytest.mark.parametrize("grid", [(0.0, 1.0), (0.0, 0.2, 0.9, 1.0)])
def test_constant_acceleration_steps_are_exact(key, grid, error):
    """Also from a wrong initial velocity, which the acceleration makes good."""
    path = straight_pairs(key)

    def v0(x, t, cond=None, /):
        return true_v0(x, t, ratio=1.5) + error

    def a(x, t, v, cond=None, /):
        return 2 * (path.x1 - path.x0 - v)

    loss = objectives.constant_acceleration(a, path, velocity=v0)
    np.testing.assert_allclose(loss, 0, atol=1e-24)
    u = objectives.constant_acceleration_field(a, v0(path.x0, jnp.zeros(16)))
    x1 = sampling.few_step(u, path.x0, grid=grid)
    np.testing.assert_allclose(x1, path.x1, rtol=1e-12)


def test_second_stage_sees_the_points_of_the_learned_velocity(key):
    path = straight_pairs(key)

    def v0(x, t, cond=None, /):
        assert not jnp.isnan(x).any()
        return jnp.ones_like(x) + x + expand_like(t, x)

    start, t = 1 + path.x0, path.t[:, None]
    point = (1 - t**2) * path.x0 + t**2 * path.x1 + start * (t - t**2)

    def a(x, t, v, cond=None, /):
        np.testing.assert_allclose(x, point, rtol=1e-12)
        np.testing.assert_allclose(v, start, rtol=1e-12)
        np.testing.assert_array_equal(t, path.t)
        return jnp.zeros_like(x)

    loss = objectives.constant_acceleration(a, path, velocity=v0)
    expected = jnp.square(2 * (path.x1 - path.x0 - start)).mean(1)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_no_gradient_reaches_the_first_stage(key):
    path = straight_pairs(key)

    def loss(scale):
        def v0(x, t, cond=None, /):
            return scale * true_v0(x, t, ratio=1.5)

        def a(x, t, v, cond=None, /):
            return x + v

        return objectives.constant_acceleration(a, path, velocity=v0).sum()

    assert jax.grad(loss)(jnp.asarray(1.1)) == 0
