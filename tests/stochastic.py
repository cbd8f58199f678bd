"""Tables for the laws of stochastic sampling: diffusions, paths, closed forms."""

import jax.numpy as jnp
import numpy as np

from flowjax import analytic, interpolants
from flowjax.sampling import diffusions
from tests.tables import INTERPOLANTS

PI, INF = np.pi, np.inf
LINEAR = interpolants.linear()

# name: (diffusion, g^2 on the linear path, limit of g^2 / sigma there at t=1)
MEMBERS = {
    "zero": (diffusions.zero(), lambda t: 0 * t, 0.0),
    "constant": (diffusions.constant(0.4), lambda t: 0.8 + 0 * t, INF),
    "sigma": (diffusions.sigma(0.6), lambda t: 1.2 * (1 - t), 1.2),
    "linear": (diffusions.linearly_decreasing(0.6), lambda t: 1.2 * (1 - t), 1.2),
    "memoryless": (diffusions.memoryless(), lambda t: 2 * (1 - t) / t, 2.0),
    "decreasing": (
        diffusions.decreasing(),
        lambda t: (np.cos(PI * t) + 1) ** 2 / 2,
        0.0,
    ),
    "decreasing_0.5": (
        diffusions.decreasing(0.5),
        lambda t: (0.5 * np.cos(PI * t) + 1) ** 2 / 2,
        INF,
    ),
    "increasing_decreasing": (
        diffusions.increasing_decreasing(0.7),
        lambda t: 1.4 * np.sin(PI * t) ** 2,
        0.0,
    ),
    "quartic": (diffusions.quartic(), lambda t: 9 * (1 - t) ** 4, 0.0),
    "flow_grpo": (diffusions.flow_grpo(0.7), lambda t: 0.49 * (1 - t) / t, 0.49),
    "dance_grpo": (diffusions.dance_grpo(0.3), lambda t: 0.09 + 0 * t, INF),
}
PATHS = {name: make() for name, make in INTERPOLANTS.items()}
# All numbers are exact in float32, the dtype outside the tests.
MEAN, STD = np.array([1.5, -0.5]), np.array([0.5, 1.25])
GAUSSIAN = analytic.gaussian(MEAN, STD)
WEIGHTS, MEANS, STDS = (np.array(a) for a in ([0.25, 0.75], [-1.25, 0.75], [0.5, 0.75]))
MIXTURE = analytic.mixture(WEIGHTS, MEANS[:, None], STDS[:, None])


def gaussian_velocity(interpolant=LINEAR):
    return analytic.velocity(GAUSSIAN, interpolant)


def chosen(index, functions):
    """The function number ``index``, which may be traced: one program for a table."""
    return lambda *args: jnp.stack([f(*args) for f in functions])[index]


def member_of(index):
    return chosen(index, [diffusion for diffusion, *_ in MEMBERS.values()])


def path_of(index):
    def variance(path):
        return path.variance or (lambda t: path.sigma(t) ** 2)

    paths = list(PATHS.values())
    return interpolants.Interpolant(
        alpha=chosen(index, [path.alpha for path in paths]),
        sigma=chosen(index, [path.sigma for path in paths]),
        variance=chosen(index, [variance(path) for path in paths]),
    )


def indices(member, path):
    return list(MEMBERS).index(member), list(PATHS).index(path)


def marginal(interpolant, t):
    """Mean and variance of x_t for the Gaussian."""
    alpha, sigma = (np.asarray(f(jnp.asarray(t)))[..., None] for f in interpolant[:2])
    return alpha * MEAN, alpha**2 * STD**2 + sigma**2
