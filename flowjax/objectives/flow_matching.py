"""Flow matching: regress the instantaneous velocity of the conditional paths."""

from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax._typing import TimeFunction, VelocityField
from flowjax.fields import Prediction
from flowjax.interpolants import Interpolant, Path, coefficients
from flowjax.objectives.penalties import DEFAULT, Loss, Terms


def flow_matching(
    v: VelocityField,
    path: Path,
    *,
    penalty: Callable[[Terms], Loss] = DEFAULT,
) -> Loss:
    """Return the penalty of ``v(x_t, t) - v_t``, by default ``|.|^2 / dim``, per row.

    The minimiser is the marginal velocity ``E[v_t | x_t = x]``, also with a weight of
    time (`flowjax.objectives.penalties.weighted`), and the minimum is not zero: for the
    linear path between N(0, I) and N(m, S^2 I) it is ``pi S / 2`` with uniform t.

    Args:
        v: the velocity field to train.
        path: a batch of points on conditional paths.
        penalty: from the residual to the loss; see `flowjax.objectives.penalties`.

    Returns:
        What the penalty returns, by default the loss [batch].

    References:
        Lipman et al. 2022, arXiv:2210.02747, Eq. 9; Liu et al. 2022, arXiv:2209.03003,
        Eq. 1.
    """
    residual = v(path.x, path.t, path.cond) - jax.lax.stop_gradient(path.v)
    return penalty(Terms(residual, path.t, path.t, jnp.zeros_like(residual)))


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
