"""A small network with random parameters, and points to train it on."""

import jax
import jax.numpy as jnp

from flowjax import interpolants, times
from flowjax.events import expand_like


def network(params, x, t, s, cond=None):
    """A smooth two-layer field of (x, t, s), enough to have every derivative."""
    t, s = expand_like(t, x), expand_like(s, x)
    hidden = jnp.tanh(jnp.concatenate([x, t, s], 1) @ params["in"])
    return hidden @ params["out"]


def random_problem(key, batch=8, dim=3, share_equal=0.75):
    k_in, k_out, k_x0, k_x1, k_time = jax.random.split(key, 5)
    params = {
        "in": jax.random.normal(k_in, (dim + 2, 16)),
        "out": jax.random.normal(k_out, (16, dim)),
    }
    x0 = jax.random.normal(k_x0, (batch, dim))
    x1 = jax.random.normal(k_x1, (batch, dim)) + 2
    t, s = times.logit_normal_pairs(k_time, batch, share_equal=share_equal)
    return params, interpolants.sample_path(interpolants.linear(), x0, x1, t), s
