"""The interpolants and the data that the laws run over; a test picks rows by name.

Factories, because arrays are made in the precision of the test that asks.
"""

from functools import partial

import jax.numpy as jnp

from flowjax import analytic, interpolants
from flowjax.interpolants import Interpolant

# Those that the library ships.
INTERPOLANTS = {
    "linear": interpolants.linear,
    "trigonometric": interpolants.trigonometric,
    "polynomial": partial(interpolants.polynomial, 1.5),
    "minimum_noise": partial(interpolants.minimum_noise, 0.1),
    "linear_variance_preserving": interpolants.linear_variance_preserving,
    "variance_preserving": interpolants.variance_preserving,
}
# More powers, and what a user may write.
OTHERS = {
    # gamma' diverges at both ends, the variance does not.
    "bridge": lambda: Interpolant(
        alpha=lambda t: t,
        sigma=lambda t: 1 - t,
        gamma=lambda t: jnp.sqrt(t * (1 - t)),
        variance=lambda t: 1 - t,
    ),
    "smooth_latent": lambda: Interpolant(
        alpha=lambda t: t, sigma=lambda t: 1 - t, gamma=lambda t: t * (1 - t)
    ),
    "square": partial(interpolants.polynomial, 2.0),
    # Its source is not standard normal.
    "half_the_noise": lambda: Interpolant(
        alpha=lambda t: t, sigma=lambda t: 0.5 * (1 - t)
    ),
}
ALL_INTERPOLANTS = INTERPOLANTS | OTHERS

MIXTURES = {
    # On the line.
    "gaussian": lambda: analytic.gaussian(jnp.array([1.5]), jnp.array([0.6])),
    "two_modes": lambda: analytic.mixture(
        jnp.array([0.3, 0.7]), jnp.array([[-1.0], [1.6]]), jnp.array([[0.35], [0.5]])
    ),
    "near_modes": lambda: analytic.mixture([0.3, 0.7], [[-1.2], [0.8]], [[0.4], [0.6]]),
    # The field is hardest where the trajectories part.
    "parting_modes": lambda: analytic.mixture(
        [0.35, 0.65], [[-1.2], [1.0]], [[0.3], [0.4]]
    ),
    "three_modes": lambda: analytic.mixture(
        [0.3, 0.5, 0.2], [[-1.0], [1.6], [0.4]], [[0.35], [0.5], [0.2]]
    ),
    # In the plane.
    "gaussian_plane": lambda: analytic.gaussian([[0.5, -1.0]], [[0.5, 1.5]]),
    "round_plane": lambda: analytic.gaussian(jnp.array([1.5, -0.5]), 0.6),
    "stretched_plane": lambda: analytic.gaussian(
        jnp.array([1.5, -0.5]), jnp.array([0.6, 1.7])
    ),
    "two_modes_plane": lambda: analytic.mixture(
        [1.0, 3.0], [[-1.0, 0.5], [1.0, 0.0]], [[0.3, 0.8], [0.6, 0.4]]
    ),
    # The components share one standard deviation.
    "three_modes_plane": lambda: analytic.mixture(
        jnp.array([0.2, 0.5, 0.3]),
        jnp.array([[-1.0, 0.5], [1.6, 1.0], [0.3, -2.0]]),
        0.4,
    ),
    # In space.
    "two_modes_space": lambda: analytic.mixture(
        jnp.array([0.3, 0.7]),
        jnp.array([[-1.0, 0.5, 0.0], [1.5, 0.0, 2.0]]),
        jnp.array([[0.4, 1.0, 0.7], [0.8, 0.5, 1.3]]),
    ),
}
LINE = ("gaussian", "two_modes")
