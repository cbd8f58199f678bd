"""Adversarial terms: discriminators, their losses and gradient penalties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.objectives import adversarial

pytestmark = pytest.mark.usefixtures("x64")


def quadratic(params):
    """``D(x, t) = t (a . x + b |x|^2 / 2)``."""
    a, b = params

    def discriminator(x, t, cond=None, /):
        return t * ((a[None] * x).sum(1) + b * jnp.square(x).sum(1) / 2)

    return discriminator


PARAMS = (jnp.array([0.5, -1.0, 2.0], jnp.float32), jnp.float32(0.7))


@pytest.fixture
def params():
    return jax.tree.map(lambda a: a.astype(jnp.float64), PARAMS)


@pytest.mark.parametrize("relativistic", [False, True])
def test_discriminator_loss_is_least_at_the_log_ratio(relativistic):
    """Real N(m, s^2) against fake N(0, 1), by Gauss-Hermite nodes."""
    n, w = np.polynomial.hermite_e.hermegauss(80)
    w = w / w.sum()
    mean, std = 0.8, 0.7
    real, fake = np.meshgrid(mean + std * n, n, indexing="ij")
    weights = np.outer(w, w).ravel()
    real, fake = (jnp.asarray(a.reshape(-1, 1)) for a in (real, fake))

    def log_ratio(x):
        return (x**2 / 2 - (x - mean) ** 2 / (2 * std**2))[:, 0] - jnp.log(std)

    def expected(theta):
        def discriminator(x, t, cond=None, /):
            bumps = jnp.stack([x[:, 0], jnp.sin(x[:, 0]), jnp.cos(2 * x[:, 0])])
            return log_ratio(x) + theta @ bumps

        loss = adversarial.discriminator_loss(
            discriminator, real, fake, relativistic=relativistic
        )
        return (weights * loss).sum()

    gradient = jax.jit(jax.grad(expected))
    truth = jnp.zeros(3)
    np.testing.assert_allclose(gradient(truth), 0, atol=1e-7)
    hessian = jax.hessian(expected)(truth)
    assert jnp.linalg.eigvalsh(hessian).min() > 1e-3


@pytest.mark.parametrize("relativistic", [False, True])
def test_an_undecided_discriminator(key, relativistic):
    x, y = jax.random.normal(key, (2, 4, 3))

    def undecided(x, t, cond=None, /):
        return jnp.zeros(len(x))

    loss = adversarial.discriminator_loss(undecided, x, y, relativistic=relativistic)
    np.testing.assert_allclose(loss, (1 if relativistic else 2) * np.log(2))
    real = x if relativistic else None
    loss = adversarial.generator_loss(undecided, y, real=real)
    np.testing.assert_allclose(loss, np.log(2))


@pytest.mark.parametrize("relativistic", [False, True])
def test_gradients_of_generator_and_discriminator(key, params, relativistic):
    real, fake = jax.random.normal(key, (2, 4, 3))
    t = jnp.array([0.2, 0.5, 0.8, 1.0])
    d = quadratic(params)
    compared = real if relativistic else None
    pull = jax.grad(
        lambda fake: adversarial.generator_loss(d, fake, real=compared, t=t).sum()
    )(fake)
    margin = d(fake, t) - (d(real, t) if relativistic else 0.0)
    slope = t[:, None] * (params[0][None] + params[1] * fake)
    np.testing.assert_allclose(
        pull, -jax.nn.sigmoid(-margin)[:, None] * slope, rtol=1e-10
    )

    def critic(params, fake):
        return adversarial.discriminator_loss(
            quadratic(params), real, fake, t=t, relativistic=relativistic
        ).sum()

    of_params, of_fake = jax.grad(critic, (0, 1))(params, fake)
    np.testing.assert_array_equal(of_fake, jnp.zeros_like(fake))
    push = jax.nn.sigmoid(margin if relativistic else d(fake, t))
    hold = jax.nn.sigmoid(margin if relativistic else -d(real, t))
    expected = (t * push) @ fake - (t * hold) @ real
    np.testing.assert_allclose(of_params[0], expected, rtol=1e-10)


def test_gradient_penalty_is_the_squared_slope(key, params):
    x = jax.random.normal(key, (4, 3))
    t = jnp.array([0.2, 0.5, 0.8, 1.0])

    def penalty(params):
        return adversarial.gradient_penalty(quadratic(params), x, t=t)

    def expected(params):
        a, b = params
        return jnp.square(t[:, None] * (a[None] + b * x)).sum(1)

    np.testing.assert_allclose(penalty(params), expected(params), rtol=1e-12)
    got, plain = (
        jax.grad(lambda p, f=f: f(p).sum())(params) for f in (penalty, expected)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), got, plain)
    image = x[:, None, :, None] + jnp.zeros((4, 2, 3, 1))

    def by_pixel(x, t, cond=None, /):
        return jnp.square(x).sum((1, 2, 3)) / 2

    np.testing.assert_allclose(
        adversarial.gradient_penalty(by_pixel, image),
        jnp.square(image).sum((1, 2, 3)),
        rtol=1e-12,
    )


def test_discriminators_get_clean_times_and_the_condition(key):
    x = jax.random.normal(key, (4, 3))
    labels = jnp.arange(4)
    seen = []

    def discriminator(x, t, cond=None, /):
        np.testing.assert_array_equal(t, 1.0)
        assert cond is labels
        seen.append(1)
        return x[:, 0]

    adversarial.generator_loss(discriminator, x, labels, real=x)
    adversarial.discriminator_loss(discriminator, x, x, labels)
    adversarial.gradient_penalty(discriminator, x, labels)
    assert len(seen) == 5


def test_adversarial_terms_name_bad_shapes(key, untyped):
    x = jax.random.normal(key, (4, 3))

    def wide(x, t, cond=None, /):
        return x[:, :1]

    with pytest.raises(ValueError, match=r"must return shape \[batch\]=\(4,\); got"):
        adversarial.generator_loss(wide, x)
    with pytest.raises(ValueError, match="`fake` must have shape"):
        adversarial.discriminator_loss(wide, x, x[:2])
    with pytest.raises(ValueError, match="`real` must have shape"):
        adversarial.generator_loss(lambda x, t, cond=None, /: x[:, 0], x, real=x[:2])
