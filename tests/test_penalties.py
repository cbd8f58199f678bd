"""Penalties: wrappers that keep the direction, stay finite, and report."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import objectives
from flowjax.fields import diagonal
from flowjax.objectives import penalties
from tests.random_problem import network, random_problem

pytestmark = pytest.mark.usefixtures("x64")


def test_diagnostics_ride_along_without_changing_the_loss(key):
    params, path, s = random_problem(key, share_equal=0.5)
    u = partial(network, params)
    plain = penalties.clipped(0.5, penalty=penalties.adaptive(power=1.0))
    watched = penalties.diagnosed(plain, clip=0.5)
    loss, metrics = objectives.mean_flow(u, path, s, share_equal=0.5, penalty=watched)
    expected = objectives.mean_flow(u, path, s, share_equal=0.5, penalty=plain)
    np.testing.assert_array_equal(loss, expected)
    assert set(metrics) == {"residual", "derivative", "clipped"}
    equal = path.t == s
    np.testing.assert_array_equal(metrics["derivative"] == 0, equal)
    raw = objectives.mean_flow(u, path, s)
    np.testing.assert_allclose(metrics["residual"], jnp.sqrt(raw), rtol=1e-12)
    both, riding = objectives.improved_mean_flow(
        u, diagonal(u), path, s, penalty=watched
    )
    assert both.shape == riding["residual"].shape == s.shape


def test_every_wrapper_keeps_the_direction_of_the_gradient(key):
    """Values are changed, the residual's own gradient is not."""
    e = jax.random.normal(key, (4, 3))
    t = jnp.linspace(0.1, 0.9, 4)

    def slope(penalty):
        def total(e):
            return penalty(penalties.Terms(e, t, t, jnp.zeros_like(e))).sum()

        return jax.grad(total)(e)

    square = slope(penalties.mean_square)
    np.testing.assert_allclose(square, 2 * e / 3)
    norm = jnp.sqrt((e**2).sum(1, keepdims=True))
    np.testing.assert_allclose(
        slope(penalties.normalised(offset=0.1)), square / (norm + 0.1), rtol=1e-12
    )
    np.testing.assert_allclose(
        slope(penalties.clipped(0.5)), 2 * jnp.clip(e, -0.5, 0.5) / 3, rtol=1e-12
    )
    np.testing.assert_allclose(
        slope(penalties.pseudo_huber(scale=0.5)), e / jnp.sqrt(norm**2 + 0.25)
    )
    np.testing.assert_allclose(
        slope(penalties.weighted(lambda t: 1 + t)), square * (1 + t)[:, None]
    )


def test_normalising_is_finite_at_zero():
    e = jnp.zeros((2, 3))
    t = jnp.zeros(2)

    def total(e):
        return penalties.normalised()(penalties.Terms(e, t, t, e)).sum()

    assert jnp.isfinite(jax.grad(total)(e)).all()


def test_learned_weight_ends_at_the_mean_loss():
    terms = penalties.Terms(
        jnp.full((2, 3), 2.0), jnp.zeros(2), jnp.zeros(2), jnp.zeros((2, 3))
    )

    def total(w):
        return penalties.learned(lambda t, s: w + 0 * t)(terms).mean()

    np.testing.assert_allclose(jax.grad(total)(jnp.log(4.0)), 0, atol=1e-12)
