"""Weights of time: how much a loss at time t counts, ``w(t)``.

Each is a function of time for `flowjax.objectives.penalties.weighted`. A weight of time
alone leaves the minimiser of flow matching where it is.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.fields import Prediction
from flowjax.interpolants import Interpolant, coefficients
from flowjax.typing import TimeFunction


@checked
def prediction_weight(interpolant: Interpolant, prediction: Prediction) -> TimeFunction:
    """Return w(t) such that ``w |dv|^2`` is the squared error of another prediction.

    With ``D = alpha sigma' - sigma alpha'``: ``(sigma / D)^2`` for x1,
    ``(alpha / D)^2`` for x0 and ``(alpha / (sigma D))^2`` for the score, because at
    fixed x_t the errors of the velocity and of the other prediction are proportional.

    Args:
        interpolant: the path.
        prediction: what is predicted: velocity, x1, x0 or score.

    Raises:
        ValueError: for an unknown prediction.
    """

    def weight(t: Float[Array, "..."], /) -> Float[Array, "..."]:
        c = coefficients(interpolant, t)
        determinant = c.alpha * c.d_sigma - c.sigma * c.d_alpha
        factors = {
            "velocity": jnp.ones_like(t),
            "x1": c.sigma / determinant,
            "x0": c.alpha / determinant,
            "score": c.alpha / (c.sigma * determinant),
        }
        return factors[prediction] ** 2

    return weight


@checked
def likelihood_weight(interpolant: Interpolant) -> TimeFunction:
    """Return ``w = -alpha / (sigma D)``, ``D = alpha sigma' - sigma alpha'``.

    With this weight the flow matching loss, summed over the event and integrated over
    uniform t, bounds the negative log-likelihood of the memoryless SDE up to a
    constant; it is ``t / (1 - t)`` for the linear path and diverges at the data.

    References:
        Song et al. 2021, arXiv:2101.09258, Theorem 1, in velocity form.
    """

    def weight(t: Float[Array, "..."], /) -> Float[Array, "..."]:
        c = coefficients(interpolant, t)
        return -c.alpha / (c.sigma * (c.alpha * c.d_sigma - c.sigma * c.d_alpha))

    return weight


@checked
def moment_weight(
    interpolant: Interpolant, *, bias: float = 5.0, power: float = 1.0
) -> TimeFunction:
    """Return ``sigmoid(bias - l) l' alpha^power / (2 (alpha^2 + sigma^2))``.

    ``l = log(alpha^2 / sigma^2)`` is the log signal-to-noise ratio. Finite inside
    (0, 1).

    Args:
        interpolant: the path.
        bias: the log signal-to-noise ratio above which times near the data count less.
        power: of alpha; the larger, the less times near the noise count.

    References:
        Zhou et al. 2025, Inductive Moment Matching, arXiv:2503.07565.
    """

    def weight(t: Float[Array, "..."], /) -> Float[Array, "..."]:
        c = coefficients(interpolant, t)
        log_ratio = 2 * (jnp.log(c.alpha) - jnp.log(c.sigma))
        slope = 2 * (c.d_alpha / c.alpha - c.d_sigma / c.sigma)
        scale = c.alpha**power / (c.alpha**2 + c.sigma**2)
        return jax.nn.sigmoid(bias - log_ratio) * slope * scale / 2

    return weight
