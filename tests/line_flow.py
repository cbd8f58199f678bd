"""A flow on the line whose solution is known at all times, and base steps written out.

The field is that of a mixture of two Gaussians: hardest where the trajectories part.
"""

import itertools

import jax
import jax.numpy as jnp

from flowjax import analytic, interpolants
from flowjax.sampling.multistep import multistep
from tests.tables import MIXTURES

modes = MIXTURES["parting_modes"]


def velocity(path=None):
    return analytic.velocity(modes(), path or interpolants.linear())


def V(x, t, cond=None):
    return velocity()(x, t)


def reference(x0):
    """The exact solution through ``x0`` as a function of time."""
    transport = analytic.flow_map(modes(), interpolants.linear())
    start = jnp.zeros(len(x0))
    return lambda t: transport(x0, start, jnp.broadcast_to(t, (len(x0),)))


def gaussian(x, t, cond=None):
    """The field of one Gaussian, whose exact solution compiles in no time."""
    data = analytic.gaussian(jnp.array([0.7]), jnp.array([0.4]))
    return analytic.velocity(data, interpolants.linear())(x, t)


def gaussian_reference(x0):
    def at(t):
        return 0.7 * t + jnp.sqrt((0.4 * t) ** 2 + (1 - t) ** 2) * x0

    return at


def noise(seed, batch=256):
    return jax.random.normal(jax.random.key(seed), (batch, 1), float)


def midpoint(field, x, grid, cond=None):
    """Midpoint steps, written out."""
    for t, s in itertools.pairwise(grid):
        clock = jnp.full(len(x), t), jnp.full(len(x), (t + s) / 2)
        half = x + (s - t) / 2 * field(x, clock[0], cond)
        x = x + (s - t) * field(half, clock[1], cond)
    return x


def heun(field, x, grid):
    for t, s in itertools.pairwise(grid):
        d0 = field(x, jnp.full(len(x), t))
        d1 = field(x + (s - t) * d0, jnp.full(len(x), s))
        x = x + (s - t) / 2 * (d0 + d1)
    return x


def euler(field, x, grid):
    for t, s in itertools.pairwise(grid):
        x = x + (s - t) * field(x, jnp.full(len(x), t))
    return x


@jax.jit
def run(x0, solver):
    return multistep(V, x0, solver)


def rms(error):
    return float(jnp.sqrt(jnp.mean(error**2)))
