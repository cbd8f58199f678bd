"""Laws of the data whose fields are known: Gaussians and their mixtures."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from flowjax.contracts import checked
from flowjax.typing import (
    Count,
    PRNGKey,
    State,
)


class Mixture(NamedTuple):
    """A mixture ``sum_k w_k N(m_k, diag(S_k^2))``; make it with `mixture`, `gaussian`.

    Attributes:
        weights: w_k, positive with sum 1 [k].
        means: m_k [k, *event].
        stds: S_k, zero for a point mass [k, *event].
    """

    weights: Float[Array, "k"]
    means: Float[Array, "k *event"]
    stds: Float[Array, "k *event"]


@checked
def gaussian(mean: ArrayLike, std: ArrayLike) -> Mixture:
    """Return ``N(mean, diag(std^2))``, a mixture of one.

    Args:
        mean: its mean [*event], with at least one axis.
        std: its standard deviation, not negative, [*event] or a scalar.

    Raises:
        ValueError: if shapes or values do not fit.
    """
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    if mean.ndim == 0:
        raise ValueError("`mean` must have shape [*event], one axis or more; got ()")
    return mixture(jnp.ones(1), mean[None], std[None] if std.ndim else std)


@checked
def mixture(weights: ArrayLike, means: ArrayLike, stds: ArrayLike) -> Mixture:
    """Return ``sum_k w_k N(m_k, diag(S_k^2))``.

    A data set itself is the mixture of its points, with equal weights and ``stds=0``;
    its fields are finite before t=1.

    Args:
        weights: positive, of any scale: they are divided by their sum [k].
        means: component means [k, *event], with at least one event axis.
        stds: standard deviations, not negative, [k, *event] or a scalar.

    Raises:
        ValueError: if shapes do not fit, or values where they are known.
    """
    weights, means, stds = (jnp.asarray(a, dtype=float) for a in (weights, means, stds))
    if means.ndim < 2 or len(means) == 0:
        raise ValueError(f"`means` must have shape [k, *event]; got {means.shape}")
    if weights.shape != means.shape[:1]:
        raise ValueError(
            f"`weights` must have shape [k]=({len(means)},); got {weights.shape}"
        )
    if stds.ndim and stds.shape != means.shape:
        raise ValueError(
            f"`stds` must be a scalar or have shape {means.shape}; got {stds.shape}"
        )
    if not _holds(weights > 0):
        raise ValueError(f"`weights` must be positive; got {weights}")
    if not _holds(stds >= 0):
        raise ValueError(f"`stds` must not be negative; got {stds}")
    return Mixture(weights / weights.sum(), means, jnp.broadcast_to(stds, means.shape))


@checked
def sample(key: PRNGKey, mixture: Mixture, batch: Count) -> State:
    """Draw ``batch`` independent samples of a mixture [batch, *event]."""
    key_component, key_normal = jax.random.split(key)
    k = jax.random.categorical(key_component, jnp.log(mixture.weights), shape=(batch,))
    means, stds = mixture.means[k], mixture.stds[k]
    return means + stds * jax.random.normal(key_normal, means.shape, means.dtype)


def _holds(condition: Bool[Array, "..."]) -> bool:
    """Say whether every entry is true, as far as is known before tracing."""
    return isinstance(condition, Tracer) or bool(condition.all())
