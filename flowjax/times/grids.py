"""Grids: increasing numpy arrays of solver times, from exactly 0 to exactly 1."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array

from flowjax.checks import check_grid
from flowjax.contracts import checked
from flowjax.interpolants import Interpolant, linear, time_of_ratio
from flowjax.typing import Count, Positive


@checked
def uniform_grid(steps: Count) -> np.ndarray:
    """Return ``t_k = k / steps`` for k = 0..steps.

    Args:
        steps: number of steps.
    """
    return _fractions(steps)


@checked
def shifted_grid(steps: Count, *, shift: Positive) -> np.ndarray:
    """Return ``t_k = q / (shift - (shift - 1) q)``, ``q = k / steps``.

    A shift above 1 spends more steps near the noise. Stable Diffusion 3 uses 3 at
    1024^2 pixels.

    Args:
        steps: number of steps.
        shift: above 1 dense near the noise, below 1 near the data.

    Raises:
        ValueError: unless ``shift > 0`` and ``steps >= 1``.

    References:
        Esser et al. 2024, arXiv:2403.03206, Eq. 23, on the clock ``1 - t``.
    """
    q = _fractions(steps)
    return q / (shift - (shift - 1) * q)


@checked
def power_grid(steps: Count, *, power: Positive = 2.0) -> np.ndarray:
    """Return ``t_k = (k / steps)^power``.

    A power above 1 is dense near the noise, one below 1 near the data.

    Args:
        steps: number of steps.
        power: above 1 dense near the noise, below 1 near the data.

    Raises:
        ValueError: unless ``power > 0`` and ``steps >= 1``.
    """
    return _fractions(steps) ** power


@checked
def edm_grid(
    steps: Count,
    *,
    rho: Positive = 7.0,
    sigma_min: Positive = 0.002,
    sigma_max: Positive = 80.0,
) -> np.ndarray:
    """Return EDM's noise levels as times of the linear path, ``t = 1 / (1 + sigma)``.

    ``sigma_k = (a + k / steps (b - a))^rho`` with ``a = sigma_max^(1/rho)`` and
    ``b = sigma_min^(1/rho)``; the two ends are then set to exactly 0 and 1.

    Args:
        steps: number of steps.
        rho: the larger, the denser near the data.
        sigma_min: noise level next to t=1.
        sigma_max: noise level next to t=0.

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


@checked
def circular_grid(steps: Count) -> np.ndarray:
    """Return ``t_k = 1 - sqrt(1 - (k / steps)^2)``, dense near the noise.

    Args:
        steps: number of steps.

    References:
        Kim et al. 2025, Inference-Time Scaling for Flow Models, arXiv:2503.19385 (in
        the authors' code, on the clock ``1 - t``).
    """
    q = _fractions(steps)
    # The same number as in the docstring, without the difference of two near ones.
    return q**2 / (1 + np.sqrt((1 - q) * (1 + q)))


@checked
def log_snr_grid(
    steps: Count,
    *,
    sigma_min: Positive = 0.002,
    sigma_max: Positive = 80.0,
    interpolant: Interpolant | None = None,
) -> np.ndarray:
    """Return times at which ``log(alpha / sigma)`` rises by equal steps.

    ``sigma / alpha`` falls from ``sigma_max`` to ``sigma_min`` by equal factors, which
    is `edm_grid` for an infinite ``rho``. The two ends are then set to exactly 0 and 1.
    Solvers that expand in the log-SNR keep their order between two times inside; the
    first and the last step reach its infinite ends and do not shrink with ``steps``.

    Args:
        steps: number of steps.
        sigma_min: the ratio next to t=1, before its time is set to 1.
        sigma_max: the ratio next to t=0, before its time is set to 0.
        interpolant: the path, by default the linear one. Its ratio must fall with time;
            latent noise counts as sigma.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max`` and ``steps >= 1``, or if a
            ratio between the two ends is not on the path.

    References:
        Lu et al. 2022, DPM-Solver, arXiv:2206.00927, Sec. 3.3.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"need 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}"
        )
    ratios = sigma_max * (sigma_min / sigma_max) ** _fractions(steps)
    grid = time_of_ratio(linear() if interpolant is None else interpolant, ratios)
    grid[0], grid[-1] = 0.0, 1.0
    if not (np.diff(grid) > 0).all():
        raise ValueError(
            f"the path does not reach all ratios between {sigma_max} and {sigma_min}; "
            f"got the times {grid.tolist()}"
        )
    return grid


@checked
def mirror_grid(grid: Sequence[float] | np.ndarray | Array) -> np.ndarray:
    """Return the times ``1 - t`` in the order of ``grid``: dense where it was sparse.

    ``mirror_grid(power_grid(n))`` is ``1 - (1 - k / n)^2``, dense near the data.

    Raises:
        ValueError: unless ``grid`` is strictly monotone inside [0, 1].
    """
    return 1 - check_grid(grid)[::-1]


def _fractions(steps: int) -> np.ndarray:
    return np.arange(steps + 1) / steps
