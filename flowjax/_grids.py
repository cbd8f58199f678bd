"""Grids: increasing numpy arrays of solver times, from exactly 0 to exactly 1.

They are public as `flowjax.times.uniform_grid` and so on.
"""

import numpy as np


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
