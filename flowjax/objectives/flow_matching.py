"""Flow matching: regress the instantaneous velocity of the conditional paths."""

from typing import get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._typing import PerExample, TimeFunction, VelocityField
from flowjax.fields import Prediction
from flowjax.interpolants import Interpolant, Path, coefficients
from flowjax.objectives._residual import mean_square


def flow_matching(
    v: VelocityField, path: Path, *, weight: TimeFunction | None = None
) -> PerExample:
    """Return ``w(t) |v(x_t, t) - v_t|^2 / dim`` for every row.

    The minimiser is the marginal velocity ``E[v_t | x_t = x]`` for every positive
    weight, and the minimum is not zero: for the linear path between N(0, I) and
    N(m, S^2 I) it is ``pi S / 2`` with uniform t.

    Args:
        v: the velocity field to train.
        path: a batch of points on conditional paths.
        weight: positive function of time, for instance `prediction_weight`; 1 if None.

    Returns:
        The loss [batch].

    References:
        Lipman et al. 2022, arXiv:2210.02747, Eq. 9; Liu et al. 2022, arXiv:2209.03003,
        Eq. 1.
    """
    error = mean_square(v(path.x, path.t, path.cond) - path.v)
    return error if weight is None else weight(path.t) * error


def prediction_weight(interpolant: Interpolant, prediction: Prediction) -> TimeFunction:
    """Return w(t) such that ``w |dv|^2`` is the squared error of another prediction.

    With ``D = alpha sigma' - sigma alpha'``: ``(sigma / D)^2`` for x1,
    ``(alpha / D)^2`` for x0 and ``(alpha / (sigma D))^2`` for the score, because at
    fixed x_t the errors of the velocity and of the other prediction are proportional.

    Raises:
        ValueError: for an unknown prediction.
    """
    if prediction not in get_args(Prediction):
        raise ValueError(
            f"`prediction` must be one of {get_args(Prediction)}; got {prediction!r}"
        )

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
