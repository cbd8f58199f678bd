"""Reductions and weights that every objective shares."""

import jax
import jax.numpy as jnp

from flowjax._typing import PerExample, State


def mean_square(residual: State) -> PerExample:
    """Return the mean of the squared entries of every row [batch]."""
    return jnp.square(residual).reshape((len(residual), -1)).mean(1)


def adaptive_weight(
    error: PerExample, dimension: int, *, power: float, offset: float
) -> PerExample:
    """Return ``sg[(error + offset / dimension)^-power]``, MeanFlow's weight.

    ``error`` is a mean over the event, the paper's a sum; dividing the offset by the
    event's dimension makes ``weight * error`` the paper's loss up to a constant factor
    ``dimension^(power - 1)``: equal at power 1, a mean instead of a sum at power 0.

    References:
        Geng et al. 2025, arXiv:2505.13447, Eq. 22.
    """
    return jax.lax.stop_gradient((error + offset / dimension) ** -power)
