"""Rows and events: numbers per row against arrays of one event per row.

An array is [batch, *event]; a time, a weight or a loss is one number per row [batch].
Here the one is spread over the other, and the other is gathered into the one.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from flowjax.contracts import checked
from flowjax.typing import PerExample


@checked
def expand_like(
    w: Shaped[Array, "batch *leading"], x: Shaped[Array, "batch *event"]
) -> Shaped[Array, "batch *ones"]:
    """Append singleton axes to ``w`` [batch] so that it broadcasts against ``x``.

    ``w`` may have more of the axes of ``x``: [batch, k] against [batch, k, *event].
    """
    return jnp.reshape(w, w.shape + (1,) * (x.ndim - w.ndim))


@checked
def over_event(
    w: Float[Array, "batch *leading"], x: Shaped[Array, "batch *event"]
) -> Shaped[Array, "batch *ones"]:
    """Return ``w`` [batch] as a factor of ``x``: singleton axes, and the dtype of x.

    Times are kept in the precision they were drawn in and meet a state, possibly of
    half precision, here: ``x + over_event(s - t, x) * u`` has the dtype of ``x``.
    """
    return expand_like(w, x).astype(x.dtype)


@checked
def flatten_event(x: Shaped[Array, "batch *event"]) -> Shaped[Array, "batch dim"]:
    """Return ``x`` with its event as one axis [batch, dim], of length 1 for numbers."""
    return x.reshape((len(x), -1))


@checked
def event_mean(x: Float[Array, "batch *event"]) -> PerExample:
    """Return the mean of every row over its event [batch]."""
    return flatten_event(x).mean(1)


@checked
def event_sum(x: Float[Array, "batch *event"]) -> PerExample:
    """Return the sum of every row over its event [batch]."""
    return flatten_event(x).sum(1)
