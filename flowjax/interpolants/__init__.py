"""Interpolants: how a source sample x0 and a data sample x1 are joined at time t.

``x_t = alpha(t) x1 + sigma(t) x0 (+ gamma(t) z)`` with ``z ~ N(0, I)``; t=0 is the
source, t=1 the data. An interpolant is data, a tuple of functions of time, so a new one
is one line: ``Interpolant(alpha=..., sigma=...)``. Derivatives come from forward-mode
autodiff and need not be written.

References:
    Lipman et al. 2022, Flow Matching for Generative Modeling, arXiv:2210.02747.
    Liu et al. 2022, Flow Straight and Fast, arXiv:2209.03003.
    Albergo, Boffi, Vanden-Eijnden 2023, Stochastic Interpolants, arXiv:2303.08797.
"""

from flowjax.interpolants.coefficients import (
    Coefficients,
    Interpolant,
    coefficients,
    derivative,
    noise_level,
    noise_variance,
    time_of_ratio,
)
from flowjax.interpolants.curves import (
    accelerated_line,
    linear,
    linear_variance_preserving,
    minimum_noise,
    polynomial,
    trigonometric,
    variance_preserving,
)
from flowjax.interpolants.path import (
    Path,
    sample_path,
)

__all__ = [
    "Coefficients",
    "Interpolant",
    "Path",
    "accelerated_line",
    "coefficients",
    "derivative",
    "linear",
    "linear_variance_preserving",
    "minimum_noise",
    "noise_level",
    "noise_variance",
    "polynomial",
    "sample_path",
    "time_of_ratio",
    "trigonometric",
    "variance_preserving",
]
