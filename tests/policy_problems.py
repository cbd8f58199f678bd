"""Policies that are known in closed form, and where they are asked."""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import analytic, interpolants, policies
from flowjax.events import expand_like
from tests import tables

LINEAR = interpolants.linear()
MIXTURES = {
    name: tables.MIXTURES[name]
    for name in ("round_plane", "stretched_plane", "three_modes_plane")
}


def posterior_policy(mixture, x, t):
    """The exact p(x1 | x_t) of a mixture whose components share one std."""
    rest, now = expand_like(1 - t, x)[:, None], expand_like(t, x)[:, None]
    means, square = mixture.means[None], mixture.stds[:1][None] ** 2
    total = rest**2 + now**2 * square
    offset = x[:, None] - now * means
    log_weights = jnp.log(mixture.weights)[None, :, None] - (
        offset**2 / (2 * total)
    ).sum(-1)[..., None].reshape(len(x), -1, 1)
    return policies.GaussianMixturePolicy(
        x,
        t,
        log_weights,
        means + now * square / total * offset,
        jnp.broadcast_to(square * rest**2 / total, (len(x), 1, *x.shape[1:])),
    )


def exact_maker(mixture):
    return lambda x, t, s, cond=None, /: posterior_policy(mixture, x, t)


def starts(key, mixture, t, *, batch=8):
    key_data, key_noise = jax.random.split(key)
    x1 = analytic.sample(key_data, mixture, batch)
    x0 = jax.random.normal(key_noise, x1.shape)
    return interpolants.sample_path(LINEAR, x0, x1, t)


MEAN, SCALE = np.array([1.5, -0.5]), np.array([0.6, 1.7])


def straight_velocity(x, t, cond=None, /):
    """The velocity of the pairs x1 = m + S x0."""
    now = t[:, None]
    mean, scale = MEAN[None], SCALE[None]
    return mean + (scale - 1) * (x - now * mean) / (1 - now + now * scale)


def straight_maker(x, t, s, cond=None, /):
    raw = jnp.concatenate([straight_velocity(x, t), jnp.zeros((len(x), 2))], 1)
    return policies.momentum_policy(raw, x, t)
