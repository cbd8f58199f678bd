"""Dispersive losses: keep the features of different inputs apart.

Each maps the features of a batch [batch, ...], flattened per row, to one number that
falls as they spread; add it to an objective with `penalties.plus`. Take the features of
the plain forward pass, not those of a derivative.

Unlike an objective these are quantities of the whole batch: a row's share depends on
its neighbours, and the value on the batch size. Under ``jit`` with a sharded batch the
value is that of the global batch and the features are gathered from all devices; under
``pmap`` or ``shard_map`` it is that of the local rows, and the mean over devices is a
different (and cheaper) loss. Distances are computed from a matrix of inner products:
memory O(batch^2) besides the features.

All are finite and have finite gradients where all features coincide.

References:
    Wang and He 2025, Diffuse and Disperse, arXiv:2506.09027.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import flatten_event
from flowjax.typing import Positive

Features = Float[Array, "batch *feature"]
Scalar = Float[Array, ""]


@checked
def infonce_l2(features: Features, *, temperature: Positive = 0.5) -> Scalar:
    """Return ``log mean_ij exp(-|h_i - h_j|^2 / temperature)``.

    From 0 where all rows coincide down to ``-log batch``: a row is compared with
    itself too.

    Args:
        features: [batch, ...], at least two rows.
        temperature: in squared units of the features.

    Raises:
        ValueError: for fewer than two rows, or unless ``temperature > 0``.

    References:
        Wang and He 2025, arXiv:2506.09027; DM1 (weight 0.5).
    """
    return _log_mean_exp(squared_distances(_rows(features)), temperature)


@checked
def infonce_cosine(features: Features, *, temperature: Positive = 0.5) -> Scalar:
    """Return ``log mean_ij exp(-(1 - cos(h_i, h_j)) / temperature)``.

    Only directions count. A row of zeros, which has none, is at distance 1 from all.

    Args:
        features: [batch, ...], at least two rows.
        temperature: in units of the cosine.

    Raises:
        ValueError: for fewer than two rows, or unless ``temperature > 0``.
    """
    z = _rows(features)
    # The root of a sum of squares has no derivative at 0.
    z = z / jnp.sqrt(jnp.square(z).sum(1, keepdims=True) + 1e-12)
    return _log_mean_exp(1 - _products(z), temperature)


@checked
def infonce_relative(features: Features, *, temperature: Positive = 1.0) -> Scalar:
    """Return MP1's form, ``log mean_ij exp(-d_ij / (temperature max d))``.

    With the squared distances d over their largest: free of the scale of the features,
    whose gradient has no part along them, as long as that largest distance is well
    above 1e-6.

    Args:
        features: [batch, ...], at least two rows.
        temperature: a number.

    Raises:
        ValueError: for fewer than two rows, or unless ``temperature > 0``.

    References:
        MP1, arXiv:2507.10543 (weight 0.5).
    """
    d = squared_distances(_rows(features))
    return _log_mean_exp(d / (d.max() + 1e-12), temperature)


@checked
def hinge(features: Features, *, margin: float = 1.0) -> Scalar:
    """Return ``mean_(i != j) max(0, margin - |h_i - h_j|)``.

    From ``margin`` where all rows coincide to 0 where all are that far apart. At the
    collapse itself the gradient is zero.

    Args:
        features: [batch, ...], at least two rows.
        margin: a distance.

    Raises:
        ValueError: for fewer than two rows, or unless ``margin > 0``.
    """
    if not margin > 0:
        raise ValueError(f"`margin` must be positive; got {margin}")
    d = jnp.sqrt(squared_distances(_rows(features)) + 1e-12)
    n = len(d)
    off_diagonal = 1 - jnp.eye(n, dtype=d.dtype)
    return (off_diagonal * jax.nn.relu(margin - d)).sum() / (n * (n - 1))


@checked
def covariance(features: Features) -> Scalar:
    """Return ``mean_(a != b) C_ab^2 + mean_a max(0, 1 - C_aa)`` of the covariance C.

    Decorrelates the coordinates and keeps their variances at 1 or more; 1 where all
    rows coincide, 0 where the rows are white. The sum over a and b is also that over
    pairs of rows, and the smaller of the two is computed.

    Args:
        features: [batch, ...], at least two rows.

    Raises:
        ValueError: for fewer than two rows.
    """
    z = _rows(features)
    n, k = z.shape
    z = z - z.mean(0, keepdims=True)
    variances = jnp.square(z).sum(0) / (n - 1)
    products = _products(z.T if k <= n else z) / (n - 1)
    off_diagonal = jnp.square(products).sum() - jnp.square(variances).sum()
    return off_diagonal / max(k * (k - 1), 1) + jax.nn.relu(1 - variances).mean()


@checked
def squared_distances(z: Float[Array, "batch dim"]) -> Float[Array, "batch batch"]:
    """Return ``|z_i - z_j|^2`` for all pairs of rows, exactly 0 on the diagonal.

    By inner products, of the centred rows: absolute errors are those of rounding at the
    spread of the features, whatever their mean.
    """
    z = z - z.mean(0, keepdims=True)
    norms = jnp.square(z).sum(1)
    d = jnp.maximum(norms[:, None] + norms[None] - 2 * _products(z), 0)
    return jnp.where(jnp.eye(len(z), dtype=bool), 0, d)


def _products(z: Float[Array, "n dim"]) -> Float[Array, "n n"]:
    return jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)


def _rows(features: Features) -> Float[Array, "batch dim"]:
    if features.ndim < 1 or len(features) < 2:
        raise ValueError(
            f"`features` must have at least two rows [batch, ...]; got {features.shape}"
        )
    return flatten_event(features)


def _log_mean_exp(d: Float[Array, "batch batch"], temperature: float) -> Scalar:
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive; got {temperature}")
    return jax.nn.logsumexp(-d / temperature) - 2 * jnp.log(
        jnp.asarray(len(d), d.dtype)
    )
