"""From the output of a network to the policy that it describes."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import over_event
from flowjax.policies.kinds import (
    DataGridPolicy,
    GaussianMixturePolicy,
    MomentumPolicy,
)
from flowjax.typing import Natural, State, Time


@checked
def gaussian_mixture_policy(
    raw: Float[Array, "batch *positions features"], x: State, t: Time
) -> GaussianMixturePolicy:
    """Return the policy of a network's output with ``k (channels + 1) + 1`` features.

    Per component a velocity ``m`` and a log-weight, then one log standard deviation
    ``l`` of the velocity: ``mu = x + (1 - t) m`` and ``V = (1 - t)^2 exp(2 l)``.

    Args:
        raw: the network's output [batch, *event[:-1], features].
        x: states at the start of the segment [batch, *event].
        t: times of the start, less than 1 [batch].

    Raises:
        ValueError: if the features do not fit the channels of ``x``.

    References:
        Chen et al. 2025, pi-Flow, arXiv:2510.14974; GMFlow, arXiv:2504.05304.
    """
    means, log_weights, log_std = split_output(raw, x, extra=1, shared=1)
    rest = over_event(1 - t, means)
    variance = (rest * jnp.exp(log_std)) ** 2
    return GaussianMixturePolicy(x, t, log_weights, x[:, None] + rest * means, variance)


@checked
def data_grid_policy(
    raw: Float[Array, "batch *positions features"], x: State, t: Time, s: Time
) -> DataGridPolicy:
    """Return the policy of a network's output with ``k channels`` features.

    Args:
        raw: k velocities ``m``, the data being ``x + (1 - t) m``
            [batch, *event[:-1], features].
        x: states at the start of the segment [batch, *event].
        t: times of the start, less than 1 [batch].
        s: times of the end [batch].

    Raises:
        ValueError: if the features do not fit the channels of ``x``.

    References:
        Chen et al. 2025, pi-Flow, arXiv:2510.14974 (DX policy).
    """
    velocities, _, _ = split_output(raw, x)
    rest = over_event(1 - t, velocities)
    return DataGridPolicy(x[:, None] + rest * velocities, t, s)


@checked
def momentum_policy(
    raw: Float[Array, "batch *positions features"], x: State, t: Time
) -> MomentumPolicy:
    """Return the policy of a network's output with ``k (channels + 2)`` features.

    Per component a velocity, a log-weight and a rate. To the rates are added numbers
    equally spaced from log 0.2 to log 4, so that an output of zero already has k
    different components; the first rate is set to zero, a straight line.

    Args:
        raw: the network's output [batch, *event[:-1], features].
        x: states at the start of the segment [batch, *event], read for their shape.
        t: times of the start [batch].

    Raises:
        ValueError: if the features do not fit the channels of ``x``.

    References:
        ArcFlow, mixture of momentum processes; constants from its configurations.
    """
    velocities, extra, _ = split_output(raw, x, extra=2)
    log_weights, rates = extra[..., :1], extra[..., 1:]
    spread = np.linspace(math.log(0.2), math.log(4), max(rates.shape[1] - 1, 1))
    offsets = jnp.asarray(spread[: rates.shape[1] - 1], x.dtype)
    offsets = offsets.reshape((1, -1) + (1,) * (rates.ndim - 2))
    rates = jnp.concatenate([jnp.zeros_like(rates[:, :1]), rates[:, 1:] + offsets], 1)
    return MomentumPolicy(t, log_weights, velocities, rates)


@checked
def split_output(
    raw: Float[Array, "batch *positions features"],
    x: State,
    *,
    extra: Natural = 0,
    shared: Natural = 0,
) -> tuple[Array, Array, Array]:
    """Split ``k (channels + extra) + shared`` features into the parts of k components.

    The features are k blocks of ``channels + extra`` numbers, one after the other, and
    then the ``shared`` ones; k follows from their number.

    Args:
        raw: the network's output [batch, *event[:-1], features].
        x: states [batch, *event], which say how many channels there are.
        extra: numbers per component besides its channels.
        shared: numbers common to all components.

    Returns:
        The channels [batch, k, *event], the extra numbers
        [batch, k, *event[:-1], extra] and the shared ones
        [batch, 1, *event[:-1], shared], in the dtype of ``x``.

    Raises:
        ValueError: if no k >= 1 fits, or the other axes differ from those of ``x``.
    """
    block = x.shape[-1] + extra
    components, left = divmod(raw.shape[-1] - shared, block)
    if raw.shape[:-1] != x.shape[:-1] or components < 1 or left:
        raise ValueError(
            f"the network's output must have shape {x.shape[:-1]} + "
            f"(k * {block} + {shared},) for some k >= 1; got {raw.shape}"
        )
    raw = raw.astype(x.dtype)
    blocks = raw[..., : components * block]
    blocks = jnp.moveaxis(blocks.reshape((*raw.shape[:-1], components, block)), -2, 1)
    channels = x.shape[-1]
    rest = raw[:, None, ..., components * block :]
    return blocks[..., :channels], blocks[..., channels:], rest
