"""Times: where on the path to train, and at which times to evaluate a solver.

A time sampler draws ``t`` [batch]; a pair sampler draws the start ``t`` and the end
``s >= t`` of the interval over which an average velocity is learned. A grid is an
increasing numpy array from exactly 0 to exactly 1.

Many papers put the noise at time 1. A logit-normal law with mean ``m`` on their clock
has mean ``-m`` on ours, because ``t = 1 - t_paper``.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flowjax._rows import in_first_group, row_layout
from flowjax._typing import PRNGKey, Time


@runtime_checkable
class TimeSampler(Protocol):
    """A law of one time per row; hyper-parameters are bound with functools.partial."""

    def __call__(self, key: PRNGKey, batch: int, /) -> Time:
        """Return ``t`` [batch] in [0, 1]."""
        ...


@runtime_checkable
class PairSampler(Protocol):
    """A law of a start and an end time per row."""

    def __call__(self, key: PRNGKey, batch: int, /) -> tuple[Time, Time]:
        """Return ``t`` and ``s``, each [batch] in [0, 1]."""
        ...


def uniform(
    key: PRNGKey, batch: int, /, *, low: float = 0.0, high: float = 1.0
) -> Time:
    """Draw ``t ~ U[low, high)``, in the default floating dtype.

    Raises:
        ValueError: unless ``0 <= low < high <= 1``.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1; got low={low}, high={high}")
    return jax.random.uniform(key, (batch,), minval=low, maxval=high)


def logit_normal(
    key: PRNGKey, batch: int, /, *, mean: float = 0.0, std: float = 1.0
) -> Time:
    """Draw ``t = sigmoid(mean + std n)``, ``n ~ N(0, 1)``.

    Args:
        key: typed random key.
        batch: number of times.
        mean: location on the logit scale and on our clock: positive means nearer data.
        std: scale on the logit scale, positive.

    Raises:
        ValueError: unless ``std > 0``.

    References:
        Esser et al. 2024, arXiv:2403.03206, Sec. 3.1 (their mean has the other sign).
    """
    if not std > 0:
        raise ValueError(f"`std` must be positive; got {std}")
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,)))


def ordered_pairs(
    key: PRNGKey, batch: int, /, *, sampler: TimeSampler, share_equal: float = 0.75
) -> tuple[Time, Time]:
    """Draw ``t <= s``, the smaller and larger of two draws, with ``s = t`` on a share.

    The rows with ``s = t`` keep the smaller (noisier) draw. They are the same rows of
    every batch, the first ``share_equal`` of each group of consecutive rows, so that
    `flowjax.objectives.mean_flow` can spare them the derivative at compile time and
    so that every device holds its share of both kinds.

    Args:
        key: typed random key.
        batch: number of rows, a multiple of the denominator of ``share_equal``.
        sampler: law of each of the two draws.
        share_equal: share of the rows with ``s = t``, a fraction such as 0.75.

    Returns:
        ``t`` and ``s``, each [batch].

    Raises:
        ValueError: if ``share_equal`` is no simple fraction or does not fit the batch.

    References:
        Geng et al. 2025, Mean Flows, arXiv:2505.13447, Sec. 4.3; their (r, t) is our
        (1 - s, 1 - t).
    """
    layout = row_layout(batch, share_equal)
    key_first, key_second = jax.random.split(key)
    first, second = sampler(key_first, batch), sampler(key_second, batch)
    t, s = jnp.minimum(first, second), jnp.maximum(first, second)
    return t, jnp.where(in_first_group(layout, batch), t, s)


def logit_normal_pairs(
    key: PRNGKey,
    batch: int,
    /,
    *,
    mean: float = 0.4,
    std: float = 1.0,
    share_equal: float = 0.75,
) -> tuple[Time, Time]:
    """Draw `ordered_pairs` of `logit_normal` times, MeanFlow's default law.

    The paper's mean of -0.4, on a clock with noise at 1, is +0.4 here.
    """

    def sampler(key: PRNGKey, batch: int, /) -> Time:
        return logit_normal(key, batch, mean=mean, std=std)

    return ordered_pairs(key, batch, sampler=sampler, share_equal=share_equal)


def uniform_pairs(
    key: PRNGKey, batch: int, /, *, share_equal: float = 0.75
) -> tuple[Time, Time]:
    """Draw `ordered_pairs` of `uniform` times: uniform on the triangle ``t <= s``."""
    return ordered_pairs(key, batch, sampler=uniform, share_equal=share_equal)


def uniform_grid(steps: int) -> np.ndarray:
    """Return ``t_k = k / steps`` for k = 0..steps."""
    return _fractions(steps)


def shifted_grid(steps: int, *, shift: float) -> np.ndarray:
    """Return ``t_k = q / (shift - (shift - 1) q)``, ``q = k / steps``.

    A shift above 1 spends more steps near the noise. Stable Diffusion 3 uses 3 at
    1024^2 pixels.

    Raises:
        ValueError: unless ``shift > 0`` and ``steps >= 1``.

    References:
        Esser et al. 2024, arXiv:2403.03206, Eq. 23, on the clock ``1 - t``.
    """
    if not shift > 0:
        raise ValueError(f"`shift` must be positive; got {shift}")
    q = _fractions(steps)
    return q / (shift - (shift - 1) * q)


def power_grid(steps: int, *, power: float = 2.0) -> np.ndarray:
    """Return ``t_k = (k / steps)^power``.

    A power above 1 is dense near the noise, one below 1 near the data.

    Raises:
        ValueError: unless ``power > 0`` and ``steps >= 1``.
    """
    if not power > 0:
        raise ValueError(f"`power` must be positive; got {power}")
    return _fractions(steps) ** power


def edm_grid(
    steps: int, *, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> np.ndarray:
    """Return EDM's noise levels as times of the linear path, ``t = 1 / (1 + sigma)``.

    ``sigma_k = (a + k / steps (b - a))^rho`` with ``a = sigma_max^(1/rho)`` and
    ``b = sigma_min^(1/rho)``; the two ends are then set to exactly 0 and 1.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max``, ``rho > 0``, ``steps >= 1``.

    References:
        Karras et al. 2022, arXiv:2206.00364, Eq. 5.
    """
    if not (0 < sigma_min < sigma_max and rho > 0):
        raise ValueError(
            "need 0 < sigma_min < sigma_max and rho > 0; "
            f"got {sigma_min}, {sigma_max} and {rho}"
        )
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    grid = 1 / (1 + (start + _fractions(steps) * (end - start)) ** rho)
    grid[0], grid[-1] = 0.0, 1.0
    return grid


def _fractions(steps: int) -> np.ndarray:
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}")
    return np.arange(steps + 1) / steps
