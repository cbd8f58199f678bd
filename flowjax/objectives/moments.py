"""Inductive moment matching: the law of a jump from t against that from nearer data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.fields import flow_map
from flowjax.interpolants import Path
from flowjax.row_groups import count_groups
from flowjax.typing import (
    AverageVelocityField,
    PerExample,
    Positive,
    Time,
    TimeFunction,
)


@checked
def inductive_moment_matching(
    u: AverageVelocityField,
    path: Path,
    nearer: Path,
    s: Time,
    *,
    group: int = 4,
    target: AverageVelocityField | None = None,
    sigma_data: Positive = 0.5,
    weight: TimeFunction | None = None,
) -> PerExample:
    """Return the squared maximum mean discrepancy of two jumps to ``s``.

    In every group of consecutive rows, all at the same t, q and s::

        y = x_t + (s - t) u(x_t, t, s)          z = sg[x_q + (s - q) u'(x_q, q, s)]
        mean over j, k of k(y_j, y_k) + k(z_j, z_k) - 2 k(y_j, z_k)
        k(a, b) = exp(-|a - b| / (sigma_data |s - t| dim))

    It is the plain (V-statistic) estimate: not negative, and zero where the two sets
    are one. The true average velocity makes y and z equal in law, on the marginals of t
    and q. The two points of a row lie on one line between x0 and x1 and are not on one
    trajectory, so there the expected loss of finite groups is small and not zero, nor
    quite stationary. Derivatives are finite where points coincide.

    Args:
        u: the average-velocity field to train.
        path: points at t.
        nearer: points of the same pairs at q, between t and s.
        s: destination times [batch]; ``s != t``.
        group: rows per group; memory of ``batch group event``. For a conditional model
            the rows of a group should share their condition: only the law of the group
            as a whole is compared. A group whose rows differ in their times gets NaN.
        target: the field ``u'``; None: ``u``.
        sigma_data: scale of the network's output, which sets the width of the kernel.
        weight: of time, such as `flowjax.weights.moment_weight`; None: one.

    Returns:
        The loss of its group for each row [batch].

    Raises:
        ValueError: if ``group`` does not divide the batch, times are not [batch] in
            [0, 1], or ``sigma_data`` is not positive.

    References:
        Zhou et al. 2025, Inductive Moment Matching, arXiv:2503.07565; kernel
        and weight as in the text, the training code is not published.
    """
    batch = len(path.x)
    groups = count_groups(batch, group)

    def in_groups(a: Array) -> Array:
        return a.reshape((groups, group, -1))

    y = flow_map(u)(path.x, path.t, s, path.cond)
    second = u if target is None else target
    z = jax.lax.stop_gradient(flow_map(second)(nearer.x, nearer.t, s, nearer.cond))
    y, z = in_groups(y), in_groups(z)
    width = sigma_data * jnp.abs(s - path.t).astype(y.dtype) + 1e-6
    scale = in_groups(width)[:, :1] * y.shape[-1]
    within = _laplace(y, y, scale) + _laplace(z, z, scale)
    discrepancy = (within - 2 * _laplace(y, z, scale)).mean((1, 2))
    if weight is not None:
        discrepancy = discrepancy * in_groups(weight(path.t)).mean((1, 2))
    times = jnp.stack([in_groups(a) for a in (path.t, nearer.t, s)])
    shared = (times == times[:, :, :1]).all((0, 2, 3))
    return jnp.repeat(jnp.where(shared, discrepancy, jnp.nan), group)


def _laplace(
    a: Float[Array, "groups n dim"],
    b: Float[Array, "groups m dim"],
    scale: Float[Array, "groups 1 1"],
) -> Float[Array, "groups n m"]:
    """Return ``exp(-|a_j - b_k| / scale)`` for all pairs within a group."""
    square = jnp.square(a[:, :, None] - b[:, None]).sum(-1)
    # The root has no derivative at 0: below this it is constant, as in the paper.
    return jnp.exp(-jnp.sqrt(jnp.maximum(square, 1e-16)) / scale)
