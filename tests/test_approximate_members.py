"""Members whose zero is only near the truth: where it is, and of what order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import interpolants, objectives
from flowjax.fields import chained, euler_step, total_derivative
from flowjax.objectives import penalties
from tests.comparing import assert_trees_close
from tests.members import truth_of
from tests.random_problem import network, random_problem
from tests.tables import MIXTURES

pytestmark = pytest.mark.usefixtures("x64")


def straight_pairs(key, batch=64, std=0.6, mean=1.5):
    """Deterministic pairs x1 = mean + std x0, whose marginal flow is straight."""
    key_source, key_time = jax.random.split(key)
    x0 = jax.random.normal(key_source, (batch, 1))
    t = jax.random.uniform(key_time, (batch,))
    x1 = mean + std * x0
    path = interpolants.sample_path(interpolants.linear(), x0, x1, t)

    def v(x, t, cond=None):
        t = t[:, None]
        return mean + (std - 1) * (x - t * mean) / (1 - t + t * std)

    return path, v


STRAIGHT = {
    "flow_matching": lambda v, path, key: objectives.flow_matching(v, path),
    "mean_flow": lambda v, path, key: objectives.mean_flow(
        euler_step(v), path, (1 + path.t) / 2
    ),
    "snap_flow": lambda v, path, key: objectives.snap_flow(euler_step(v), path),
    "snap_flow_midpoint": lambda v, path, key: objectives.snap_flow(
        euler_step(v), path, midpoint=True
    ),
    "consistency_flow_matching": lambda v, path, key: (
        objectives.consistency_flow_matching(v, path, weight=1.0)
    ),
    "flow_guided_distillation": lambda v, path, key: (
        objectives.flow_guided_distillation(
            v, path, 0.2 + 0.6 * path.t, velocity=straight_pairs(key)[1]
        )
    ),
    "self_corrected_distillation": lambda v, path, key: (
        objectives.self_corrected_distillation(
            key,
            v,
            path,
            velocity=straight_pairs(key)[1],
            interpolant=interpolants.linear(),
        )
    ),
    "self_corrected_by_data_alone": lambda v, path, key: (
        objectives.self_corrected_distillation(
            key,
            v,
            path,
            velocity=straight_pairs(key)[1],
            interpolant=interpolants.linear(),
            truncation=1.0,
            backward_weight=0.0,
            correction_weight=0.0,
        )
    ),
}
"""Members whose truth is a straight, deterministic coupling."""


@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_pairs_are_a_zero_and_nothing_else(key, name):
    path, v = straight_pairs(key)

    def loss(theta):
        def field(x, t, cond=None):
            return v(x, t) + theta * jnp.sin(x + t[:, None])

        return STRAIGHT[name](field, path, key)

    value, slope = jax.jvp(loss, (0.0,), (1.0,))
    np.testing.assert_allclose(value, 0, atol=1e-20)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    assert jax.grad(lambda theta: loss(theta).mean())(0.1) > 1e-7
    assert (loss(0.1) > 0).mean() > 0.9


def test_shortcut_is_off_at_its_finest_level_alone(key):
    truth = truth_of(MIXTURES["gaussian"](), interpolants.linear())
    x = jax.random.normal(key, (64, 1))
    for h, finest, largest in [(1 / 8, 128, 1e-14), (1 / 128, 128, 2e-2)]:
        t = jnp.full((64,), 0.25)
        path = interpolants.sample_path(interpolants.linear(), x, x, t)
        residual = objectives.shortcut(
            truth.u,
            path,
            t + 2 * h,
            share_equal=0.0,
            finest=finest,
            clip=None,
            penalty=lambda terms: terms.residual[:, 0],
        )
        size = jnp.sqrt(jnp.square(residual).mean())
        assert size < largest
        assert h > 1 / finest or size > 1e-3


def test_snap_flow_lands_on_the_map_of_two_euler_steps(key):
    """Its fixed point, not the flow map: the bias is that of the solver."""
    truth = truth_of(MIXTURES["gaussian"](), interpolants.linear())
    two_steps = chained(euler_step(truth.v), 2)

    def field(x, t, s, cond=None):
        jump = (s - t)[:, None] > 0.5
        return jnp.where(jump, two_steps(x, t, s), truth.v(x, t))

    x0 = jax.random.normal(key, (256, 1))
    path = interpolants.sample_path(interpolants.linear(), x0, x0, jnp.zeros(256))
    path = path._replace(v=truth.v(path.x, path.t))
    loss = partial(objectives.snap_flow, path=path)
    np.testing.assert_allclose(loss(field), 0, atol=1e-25)
    assert loss(truth.u).mean() > 1e-3
    bias = two_steps(x0, jnp.zeros(256), jnp.ones(256)) - truth.u(
        x0, jnp.zeros(256), jnp.ones(256)
    )
    # x0 is drawn by Monte Carlo: 256 draws of a linear map of a normal.
    np.testing.assert_allclose(jnp.sqrt(jnp.square(bias).mean()), 0.335, rtol=0.15)


def test_twin_flow_is_stationary_up_to_its_step(key):
    linear = interpolants.linear()
    truth = truth_of(MIXTURES["gaussian"](), linear)
    key_source, key_data, key_time, key_loss = jax.random.split(key, 4)
    x0 = jax.random.normal(key_source, (64, 1))
    x1 = 1.5 + 0.6 * jax.random.normal(key_data, (64, 1))
    t = jax.random.uniform(key_time, (64,))
    path = interpolants.sample_path(linear, x0, x1, t)
    path = path._replace(v=truth.v(path.x, t))

    def gradient_at(step):
        def loss(theta):
            def u(x, t, s, cond=None):
                return truth.u(x, t, s) + theta * jnp.cos(x)

            losses = objectives.twin_flow(
                key_loss,
                u,
                path,
                jnp.ones_like(t),
                interpolant=linear,
                fake=truth.v,
                step=step,
                penalty=penalties.mean_square,
            )
            # The fake branch is frozen here: its own loss adds a constant.
            return losses.mean()

        return jnp.abs(jax.grad(loss)(0.0))

    assert 7 < gradient_at(1e-2) / gradient_at(1e-3) < 13


def test_the_push_is_the_gap_between_the_fake_and_the_real_velocity(key):
    """A fake branch that lags behind moves the samples towards the real velocity."""
    x0 = jax.random.normal(key, (8, 1))

    def sample(theta, x, t, s, cond=None):
        return jnp.broadcast_to(theta, x.shape)

    def loss(theta):
        u = partial(sample, theta)
        return objectives.pushed(u, x0, jnp.full_like(x0, 0.3)).mean()

    np.testing.assert_allclose(jax.grad(loss)(1.0), 2 * 0.3)


def test_velocity_distillation_is_stationary_at_the_truth(key):
    linear = interpolants.linear()
    truth = truth_of(MIXTURES["gaussian"](), linear)
    key_source, key_noise, key_time = jax.random.split(key, 3)
    x0 = jax.random.normal(key_source, (64, 1))
    noise = jax.random.normal(key_noise, (64, 1))
    t = 0.9 * jax.random.uniform(key_time, (64,))

    def loss(theta):
        def u(x, t, s, cond=None):
            return truth.u(x, t, s) + theta * jnp.cos(x)

        from flowjax.fields import total_derivative

        return objectives.velocity_distillation(
            u,
            x0,
            noise,
            t,
            velocity=truth.v,
            interpolant=linear,
            derivative=total_derivative,
        )

    np.testing.assert_allclose(loss(0.0), 0, atol=1e-20)
    assert jnp.abs(jax.grad(lambda theta: loss(theta).mean())(0.2)) > 1e-3


@pytest.mark.parametrize("alpha", [1.0, 0.3, 1e-2, 0.0])
def test_adaptive_penalty_gives_the_weight_of_alpha_flow(key, alpha):
    """As its authors' code weighs rows: those with s = t, and alpha = 0, by 1."""
    params, path, s = random_problem(key, share_equal=0.0)
    s = jnp.where(jnp.arange(len(s)) % 4 == 0, path.t, s)
    field, c, moved = partial(network, params), 1e-3, s != path.t

    def gradient(loss):
        return jax.grad(lambda p: loss(partial(network, p)).sum())(params)

    def ours(u):
        dim = path.x.shape[1]
        discrete = moved & (alpha > 0)
        offset = c * dim / jnp.where(discrete, alpha, 1) ** 2
        penalty = penalties.adaptive(power=1.0, offset=offset)
        return objectives.alpha_flow(u, path, s, alpha, penalty=penalty, clip=None)

    def papers(u):
        x, t, v = path.x, path.t, path.v
        if alpha > 0:
            m = t + alpha * (s - t)
            later = field(x + (m - t)[:, None] * v, m, s)
            target = jnp.where(moved[:, None], alpha * v + (1 - alpha) * later, v)
        else:
            slope = total_derivative(field, x, t, s, v)[1]
            target = v + (s - t)[:, None] * slope
        a = jnp.where(moved, alpha if alpha > 0 else 1.0, 1.0)
        square = jnp.square(u(x, t, s) - jax.lax.stop_gradient(target)).mean(1)
        return square * jax.lax.stop_gradient(a / (square + c))

    assert_trees_close(gradient(ours), gradient(papers), rtol=1e-8)


def test_rows_of_mixed_alpha_are_refused_or_nan(key):
    params, path, s = random_problem(key, share_equal=0.0)
    alpha = jnp.where(jnp.arange(len(s)) == 2, 0.0, 0.5)

    def losses(alpha):
        return objectives.alpha_flow(partial(network, params), path, s, alpha)

    with pytest.raises(ValueError, match="`alpha` must be 0 for all rows or for none"):
        losses(alpha)
    np.testing.assert_array_equal(jnp.isnan(jax.jit(losses)(alpha)), alpha == 0)
    assert jnp.isfinite(jax.jit(losses)(jnp.zeros_like(alpha))).all()
