"""Closed-form marginal fields: the oracle of tests, notebooks and users.

The data ``x1`` is a Gaussian mixture with diagonal covariances, the source ``x0`` (and
the latent noise ``z``) standard normal and independent of it. Then the law of
``x_t = alpha x1 + sigma x0 (+ gamma z)`` is again such a mixture, with component means
``alpha m_k`` and variances ``V_k = alpha^2 S_k^2 + sigma^2 + gamma^2``, and velocity,
score, density and denoiser are finite sums, for every interpolant. For one Gaussian,
and for any mixture in one dimension, so are the flow map and the average velocity.

Every function returns a field, computed in the dtype (float32 or float64) of its ``x``.
Fields are finite, and exact, wherever all ``V_k > 0``, both endpoints included.
"""

from flowjax.analytic.flow_maps import (
    average_velocity,
    flow_map,
)
from flowjax.analytic.marginals import (
    log_density,
    posterior_mean,
    score,
    velocity,
)
from flowjax.analytic.mixtures import (
    Mixture,
    gaussian,
    mixture,
    sample,
)

__all__ = [
    "Mixture",
    "average_velocity",
    "flow_map",
    "gaussian",
    "log_density",
    "mixture",
    "posterior_mean",
    "sample",
    "score",
    "velocity",
]
