"""Laws of a start and an end time per row."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from flowjax.checks import check_grid
from flowjax.contracts import checked
from flowjax.row_groups import in_first_group, row_layout
from flowjax.times.laws import logit_normal, u_shaped, uniform
from flowjax.typing import (
    Count,
    PairSampler,
    Positive,
    PRNGKey,
    Share,
    Time,
    TimeSampler,
)

EqualTime: TypeAlias = Literal["smaller", "single"]


@checked
def to_data(sampler: TimeSampler) -> PairSampler:
    """Return the pairs ``(t, 1)`` of consistency models, ``t`` drawn by ``sampler``."""

    def pairs(key: PRNGKey, batch: int, /) -> tuple[Time, Time]:
        t = sampler(key, batch)
        return t, jnp.ones_like(t)

    return pairs


@checked
def either_direction(pairs: PairSampler) -> PairSampler:
    """Return ``pairs`` with ``t`` and ``s`` of each row swapped with probability 1/2.

    Rows with ``s = t`` are as they were, and where they were.

    References:
        BiFM, arXiv:2603.24942.
    """

    def swapped(key: PRNGKey, batch: int, /) -> tuple[Time, Time]:
        key_pairs, key_direction = jax.random.split(key)
        t, s = pairs(key_pairs, batch)
        back = jax.random.bernoulli(key_direction, 0.5, (batch,))
        return jnp.where(back, s, t), jnp.where(back, t, s)

    return swapped


@checked
def ordered_pairs(
    key: PRNGKey,
    batch: Count,
    /,
    *,
    sampler: TimeSampler,
    second: TimeSampler | None = None,
    share_equal: Share = 0.75,
    equal: EqualTime = "smaller",
) -> tuple[Time, Time]:
    """Draw ``t <= s``, the smaller and larger of two draws, with ``s = t`` on a share.

    Args:
        key: typed random key.
        batch: number of rows, a multiple of the denominator of ``share_equal``.
        sampler: law of the first draw.
        second: law of the second draw; None: that of the first.
        share_equal: share of the rows with ``s = t``.
        equal: the time of these rows: ``"smaller"``, the smaller (noisier) of both
            draws, as in MeanFlow, or ``"single"``, the first draw, as in AlphaFlow.

    Returns:
        ``t`` and ``s``, each [batch].

    Raises:
        ValueError: if ``share_equal`` is no simple fraction or does not fit the batch,
            or ``equal`` is unknown.

    References:
        Geng et al. 2025, Mean Flows, arXiv:2505.13447, Sec. 4.3; their (r, t) is our
        (1 - s, 1 - t). AlphaFlow, arXiv:2510.20771. Two laws: Decoupled MeanFlow,
        arXiv:2510.24474 (logit-normal, means -0.4 and 1.2 on our clock).
    """
    if equal not in get_args(EqualTime):
        raise ValueError(f"`equal` must be one of {get_args(EqualTime)}; got {equal!r}")
    key_first, key_second = jax.random.split(key)
    first = sampler(key_first, batch)
    other = (sampler if second is None else second)(key_second, batch)
    t, s = jnp.minimum(first, other), jnp.maximum(first, other)
    alone = _equal_rows(batch, share_equal)
    if equal == "single":
        t = jnp.where(alone, first, t)
    return t, jnp.where(alone, t, s)


@checked
def logit_normal_pairs(
    key: PRNGKey,
    batch: Count,
    /,
    *,
    mean: float = 0.4,
    std: Positive = 1.0,
    share_equal: Share = 0.75,
) -> tuple[Time, Time]:
    """Draw `ordered_pairs` of `logit_normal` times, MeanFlow's default law.

    The paper's mean of -0.4, on a clock with noise at 1, is +0.4 here.
    """

    def sampler(key: PRNGKey, batch: int, /) -> Time:
        return logit_normal(key, batch, mean=mean, std=std)

    return ordered_pairs(key, batch, sampler=sampler, share_equal=share_equal)


@checked
def uniform_pairs(
    key: PRNGKey, batch: Count, /, *, share_equal: Share = 0.75
) -> tuple[Time, Time]:
    """Draw `ordered_pairs` of `uniform` times: uniform on the triangle ``t <= s``."""
    return ordered_pairs(key, batch, sampler=uniform, share_equal=share_equal)


@checked
def interval_pairs(
    key: PRNGKey,
    batch: Count,
    /,
    *,
    mean: float = -0.8,
    std: Positive = 1.0,
    share_equal: Share = 0.0,
) -> tuple[Time, Time]:
    """Draw the length ``s - t = sigmoid(mean + std n)``, then ``t ~ U[0, 1 - length)``.

    Args:
        key: typed random key.
        batch: number of rows.
        mean: location of the length on the logit scale, the same on every clock.
        std: scale of the length on the logit scale, positive.
        share_equal: share of the rows with ``s = t``.

    Raises:
        ValueError: unless ``std > 0`` and ``share_equal`` fits the batch.

    References:
        Sabour et al. 2025, Align Your Flow, arXiv:2506.14603.
    """
    key_length, key_start = jax.random.split(key)
    length = logit_normal(key_length, batch, mean=mean, std=std)
    t = jax.random.uniform(key_start, (batch,)) * (1 - length)
    return t, jnp.where(_equal_rows(batch, share_equal), t, t + length)


@checked
def reflow_pairs(
    key: PRNGKey,
    batch: Count,
    /,
    *,
    a: float = 4.0,
    mean: float = -0.8,
    std: Positive = 1.0,
    earliest: float = 1 / 81,
    share_equal: Share = 0.75,
) -> tuple[Time, Time]:
    """Draw a `u_shaped` start and a logit-normal length, long jumps to the data.

    ``t = max(u_shaped, earliest)`` and ``s = min(t + length, 1)``; from ``t < 0.2`` to
    ``s > 0.6`` the jump goes all the way to ``s = 1``.

    Args:
        key: typed random key.
        batch: number of rows.
        a: shape of the law of the start.
        mean: location of the length on the logit scale, the same on every clock.
        std: scale of the length on the logit scale, positive.
        earliest: the least start: 1 / (1 + sigma_max) where the teacher started.
        share_equal: share of the rows with ``s = t``.

    Raises:
        ValueError: if an option is out of range or does not fit the batch.

    References:
        Zhang et al. 2025, Re-MeanFlow, arXiv:2511.23342 (constants of the authors'
        code, where the rows with ``s = t`` are random ones).
    """
    if not 0 <= earliest < 1:
        raise ValueError(f"`earliest` must lie in [0, 1); got {earliest}")
    key_start, key_length = jax.random.split(key)
    t = jnp.maximum(u_shaped(key_start, batch, a=a), earliest)
    s = jnp.minimum(t + logit_normal(key_length, batch, mean=mean, std=std), 1.0)
    s = jnp.where((t < 0.2) & (s > 0.6), 1.0, s)
    return t, jnp.where(_equal_rows(batch, share_equal), t, s)


@checked
def dyadic_pairs(
    key: PRNGKey, batch: Count, /, *, finest: Count = 128, share_equal: Share = 0.875
) -> tuple[Time, Time]:
    """Draw steps of lengths 1, 1/2, ..., 2 / ``finest`` on the grid of their length.

    A step of length d starts at a multiple of d. The lengths are dealt out in turn to
    the rows with ``s > t``; the rows with ``s = t`` stand on the grid ``k / finest``,
    k < finest. All times are exact.

    Args:
        key: typed random key.
        batch: number of rows.
        finest: number of the smallest steps in [0, 1], a power of two, at least 2.
        share_equal: share of the rows with ``s = t``.

    Raises:
        ValueError: if ``finest`` is no such power or ``share_equal`` does not fit the
            batch.

    References:
        Frans et al. 2024, Shortcut Models, arXiv:2410.12557.
    """
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f"`finest` must be a power of two, at least 2; got {finest}")
    first, period = row_layout(batch, share_equal)
    group, place = jnp.divmod(jnp.arange(batch), period)
    still = place < first
    # The moving rows are counted without a sum over rows that other devices hold.
    level = (group * (period - first) + place - first) % (finest.bit_length() - 1)
    draw = jax.random.uniform(key, (batch,))
    steps = jnp.where(still, finest, 2**level).astype(draw.dtype)
    t = jnp.floor(draw * steps) / steps
    return t, jnp.where(still, t, t + 1 / steps)


@checked
def any_step_pairs(
    key: PRNGKey, batch: Count, /, *, near: float = 0.05
) -> tuple[Time, Time]:
    """Draw the jumps of TwinFlow: from end to end, near and any, row by row.

    Of every four rows one has ``t = 0``, ``s = 1``, one ``s - t <= near (1 - t)``, and
    two have ``s ~ U(t, 1)``; ``t ~ U(0, 1)`` where it is free.

    Args:
        key: typed random key.
        batch: number of rows.
        near: longest of the short intervals, as a share of what is left.

    Raises:
        ValueError: unless ``near`` lies in (0, 1].

    References:
        Cheng et al. 2025, TwinFlow, arXiv:2512.05150 (constants of the authors' code,
        where the last quarter bears the adversarial terms alone).
    """
    if not 0 < near <= 1:
        raise ValueError(f"`near` must lie in (0, 1]; got {near}")
    key_start, key_length = jax.random.split(key)
    row = jnp.arange(batch) % 4
    t = jnp.where(row == 0, 0.0, uniform(key_start, batch))
    longest = jnp.where(row == 1, near, 1.0)
    part = jnp.where(row == 0, 1.0, longest * uniform(key_length, batch))
    return t, jnp.where(row == 0, 1.0, jnp.minimum(t + part * (1 - t), 1.0))


@checked
def segment_pairs(
    key: PRNGKey,
    batch: Count,
    /,
    *,
    grid: Sequence[float] | np.ndarray | Array = (0.0, 1.0),
) -> tuple[Time, Time]:
    """Draw segments of a grid, each as often as it is long: ``t`` and ``s``.

    The grid is that of the sampler, one segment per evaluation of the network. pi-Flow
    gives the last of four segments half the length of the others.

    Raises:
        ValueError: unless the grid is a list of times that increase inside [0, 1].
    """
    times = check_grid(grid)
    if times[0] > times[-1]:
        raise ValueError(f"`grid` must increase; got {times.tolist()}")
    k = jax.random.choice(
        key, len(times) - 1, (batch,), p=jnp.asarray(np.diff(times) / np.ptp(times))
    )
    edges = jnp.asarray(times, jnp.result_type(float))
    return edges[k], edges[k + 1]


def _equal_rows(batch: int, share_equal: float) -> Bool[Array, "batch"]:
    """Return which rows have ``s = t``."""
    return in_first_group(row_layout(batch, share_equal), batch)
