"""The Fréchet distance of sets of features, whichever network made the features.

Nothing is downloaded here: the features are arrays [n, dim] (or the samples themselves,
whose events are flattened). A value is comparable only with values from the same
feature network, sample count and preprocessing.
"""

import numpy as np

from flowjax.contracts import checked
from flowjax.metrics.sample_sets import Samples, check_finite, check_pair, host_pair


@checked
def frechet_distance(features_x: Samples, features_y: Samples) -> float:
    """Return the squared Fréchet distance of Gaussian fits, the number called FID.

    Fits mean and covariance (divisor n - 1) to either set and calls
    `frechet_from_moments`, in float64 on the host. The estimate is biased upwards, the
    more so the fewer the samples: compare values at equal n only.

    Args:
        features_x: features [n, *event] of one set, n >= 2; flattened.
        features_y: features [m, *event] of the other, m >= 2.

    Raises:
        ValueError: if the feature shapes differ, or a set has fewer than two rows or is
            not finite.

    References:
        Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule,
        arXiv:1706.08500, Eq. 6.
    """
    check_pair(features_x, features_y, names=("features_x", "features_y"), minimum=2)
    x, y = host_pair(features_x, features_y)
    return frechet_from_moments(*_moments(x), *_moments(y))


@checked
def frechet_from_moments(
    mean_x: Samples, cov_x: Samples, mean_y: Samples, cov_y: Samples
) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians.

    ``d^2 = ||m_x - m_y||^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2})``. The trace of the root
    is the sum of the singular values of ``C_x^{1/2} C_y^{1/2}``, both roots taken
    through eigenvalues of symmetric matrices: real and stable also for singular C.

    Args:
        mean_x: mean [dim].
        cov_x: covariance [dim, dim].
        mean_y: mean [dim].
        cov_y: covariance [dim, dim].

    Raises:
        ValueError: if shapes do not fit, a value is not finite, or a covariance is not
            symmetric positive semi-definite up to rounding.

    References:
        arXiv:1706.08500, Eq. 6; Dowson and Landau 1982, Journal of Multivariate
        Analysis 12.
    """
    names = ("mean_x", "cov_x", "mean_y", "cov_y")
    for name, value in zip(names, (mean_x, cov_x, mean_y, cov_y), strict=True):
        dim = mean_x.size
        expected = (dim,) if name.startswith("mean") else (dim, dim)
        if value.shape != expected or dim == 0:
            raise ValueError(f"`{name}` must have shape {expected}; got {value.shape}")
        check_finite(name, value)
    m_x, c_x, m_y, c_y = (
        np.asarray(value).astype(np.float64) for value in (mean_x, cov_x, mean_y, cov_y)
    )
    product = _symmetric_root("cov_x", c_x) @ _symmetric_root("cov_y", c_y)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    squared = np.sum((m_x - m_y) ** 2) + np.trace(c_x) + np.trace(c_y) - 2 * overlap
    # Below zero only by rounding, where the two Gaussians agree.
    return float(max(squared, 0.0))


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def _symmetric_root(name: str, matrix: np.ndarray) -> np.ndarray:
    """Return the root of a positive semi-definite matrix, whose rounding is cut off."""
    # Covariances computed in float32 are off by about 1e-7 of their scale.
    tolerance = 1e-5 * np.abs(matrix).max()
    if not np.allclose(matrix, matrix.T, rtol=0, atol=tolerance):
        raise ValueError(f"`{name}` must be symmetric; it is not")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] < -tolerance * len(matrix):
        raise ValueError(
            f"`{name}` must be positive semi-definite; got the eigenvalue {values[0]}"
        )
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
