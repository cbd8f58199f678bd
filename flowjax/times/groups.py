"""Laws of times that the rows of a group share."""

import jax
import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.row_groups import count_groups
from flowjax.typing import Count, Positive, PRNGKey, Time


@checked
def grouped_times(
    key: PRNGKey,
    batch: Count,
    /,
    *,
    group: int = 4,
    gap: Positive = 160 / 2**12,
    low: float = 0.006,
    high: float = 0.999,
) -> tuple[Time, Time, Time]:
    """Draw ``t <= q <= s``, the same for the rows of a group.

    ``t ~ U[low, high)``, ``s ~ U[t, 1)``, and q is nearer to the data than t by ``gap``
    in the noise-to-signal ratio ``eta = (1 - t) / t`` of the linear path:
    ``eta(q) = max(eta(s), eta(t) - gap)``. Smaller gaps are nearer to the continuous
    limit and learn more slowly.

    Args:
        key: typed random key.
        batch: number of rows, a multiple of ``group``.
        group: consecutive rows that share their times.
        gap: between t and q; the paper has 160 / 2^12.
        low: least start, positive.
        high: upper end of the starts, less than 1.

    Returns:
        ``t``, ``q`` and ``s``, each [batch].

    Raises:
        ValueError: if an option is out of range or ``group`` does not divide ``batch``.

    References:
        Zhou et al. 2025, Inductive Moment Matching, arXiv:2503.07565 (their clock
        is ``1 - t``).
    """
    if not (0 < low < high < 1 and gap > 0):
        raise ValueError(
            f"need 0 < `low` < `high` < 1 and `gap` > 0; got {low}, {high} and {gap}"
        )
    groups = count_groups(batch, group)
    key_start, key_end = jax.random.split(key)
    t = jax.random.uniform(key_start, (groups,), minval=low, maxval=high)
    s = t + (1 - t) * jax.random.uniform(key_end, (groups,))
    ratio = jnp.maximum((1 - s) / s, (1 - t) / t - gap)
    q = jnp.clip(1 / (1 + ratio), t, s)
    return jnp.repeat(t, group), jnp.repeat(q, group), jnp.repeat(s, group)
