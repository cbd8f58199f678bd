"""Exponential Adams methods in the log-SNR.

With ``lam = log(alpha / sigma)`` and the prediction of the data
``D = E[x1 | x_t = x]``, the equation ``dx/dt = v`` is linear but for D, and from t to s

    x_s = (sigma_s / sigma_t) x_t + gain * mean of D,
    gain = alpha_s - alpha_t sigma_s / sigma_t,

where the mean over [lam_t, lam_s] has the weight ``exp(lam)``. A method replaces D by
the polynomial in lam through its last values. The mean of a polynomial is known, so
that what is left is a weight for each of these values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.contracts import checked
from flowjax.interpolants import Interpolant, coefficients, linear, noise_variance
from flowjax.sampling.multistep import MultistepSolver
from flowjax.sampling.solvers.explicit import (
    Grid,
    check_enough_steps,
    interpolation_weights,
)


@checked
def dpm_solver(
    grid: Grid,
    *,
    order: int = 2,
    interpolant: Interpolant | None = None,
) -> MultistepSolver:
    """Return DPM-Solver++(2M), one evaluation per step.

    ``x_s = (sigma_s / sigma_t) x_t + gain [D_t + (D_t - D_r) / (2 rho)]`` with the data
    prediction D, r the time before t and ``rho = (lam_t - lam_r) / (lam_s - lam_t)``.
    Without the difference it is the first order, DDIM: Euler's method for x / sigma in
    the variable alpha / sigma, and on the linear path for x in t. The first step takes
    it, and so do those that start next to or end at an infinite log-SNR, which is the
    limit at t=0 and keeps the last step to t=1 finite.

    Args:
        grid: N + 1 strictly monotone times in [0, 1], in either direction, with
            ``N >= order``. Best with equal steps of lam: `flowjax.times.log_snr_grid`.
        order: 1 or 2.
        interpolant: the path of the field, by default the linear one. The ratio
            alpha / sigma must rise along it, latent noise counted as sigma.

    Raises:
        ValueError: if an option does not fit, or where ``grid`` begins at t=1 on a path
            whose velocity is infinite there.

    References:
        Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
        Probabilistic Models, arXiv:2211.01095, Alg. 2.
    """
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2; got {order}")
    times = check_enough_steps(grid, order)
    return _exponential(times, _log_snr(interpolant, times), order, corrected=False)


@checked
def unipc(
    grid: Grid,
    *,
    order: int = 2,
    interpolant: Interpolant | None = None,
) -> MultistepSolver:
    """Return UniPC: each evaluation predicts the next point and corrects the last.

    Predictor: the polynomial through the last ``order`` data predictions. Corrector:
    through these and the newest, made at the predicted point and used again for the
    next one: one evaluation per step. The mean of a line is taken at its middle, as
    published, which makes the predictor of order 2 that of `dpm_solver`. The published
    ``B(h)`` cancels elsewhere; there it is ``expm1``, "bh2". The order of convergence
    is 3 for both orders, because the first step knows one prediction only; the errors
    of 3 are the smaller ones where the log-SNR rises by equal steps, and the larger
    ones on uniform grids of [0, 1]. The last point is not corrected.

    Args:
        grid: as for `dpm_solver`.
        order: of the predictor, 2 or 3.
        interpolant: as for `dpm_solver`.

    Raises:
        ValueError: as `dpm_solver`.

    References:
        Zhao et al. 2023, UniPC: A Unified Predictor-Corrector Framework for Fast
        Sampling of Diffusion Models, arXiv:2302.04867, Alg. 5-8 (data prediction).
    """
    if order not in (2, 3):
        raise ValueError(f"`order` must be 2 or 3; got {order}")
    times = check_enough_steps(grid, order)
    return _exponential(times, _log_snr(interpolant, times), order, corrected=True)


class _LogSnr(NamedTuple):
    """A path at the times of a grid, each [n + 1]; ``lam`` may be infinite at its ends.

    ``state`` and ``slope`` make the data prediction ``D = state x + slope v``.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    d_alpha: np.ndarray
    d_sigma: np.ndarray
    lam: np.ndarray
    state: np.ndarray
    slope: np.ndarray


@np.errstate(divide="ignore", invalid="ignore")
def _log_snr(interpolant: Interpolant | None, times: np.ndarray) -> _LogSnr:
    """Return the path at ``times``, latent noise counted as sigma.

    Raises:
        ValueError: if alpha / sigma does not rise with time.
    """
    path = linear() if interpolant is None else interpolant
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        t = jnp.asarray(times)
        squared = np.asarray(noise_variance(path, t))
        c = jax.tree.map(np.asarray, coefficients(path, t))
    alpha, sigma = c.alpha, np.sqrt(squared)
    d_sigma = np.where(
        sigma > 0, c.variance_rate / sigma, -np.hypot(c.d_sigma, c.d_gamma)
    )
    lam = np.log(alpha) - np.log(sigma)
    if not (np.diff(lam) * np.diff(times) > 0).all():
        raise ValueError(
            "the log-SNR of `interpolant` must rise strictly with time; got "
            f"{lam.tolist()} at {times.tolist()}"
        )
    # x = alpha D + sigma E and v = alpha' D + sigma' E, solved for D.
    determinant = c.d_alpha * sigma - alpha * d_sigma
    return _LogSnr(
        alpha,
        sigma,
        c.d_alpha,
        d_sigma,
        lam,
        -d_sigma / determinant,
        sigma / determinant,
    )


def _exponential(
    times: np.ndarray, path: _LogSnr, order: int, *, corrected: bool
) -> MultistepSolver:
    """Return the rows of the predictor, and of the corrector folded into them.

    The corrected point is the predicted one plus a combination of evaluations, so that
    the next prediction starts from the predicted one too: no point but those of the
    evaluations is kept.
    """
    steps, width = len(times) - 1, order + corrected
    state, slope, scale = (np.zeros(steps) for _ in range(3))
    weights = np.zeros((steps, width))
    correction = np.zeros(width)
    for i in range(steps):
        if path.sigma[i] == 0:
            # From clean data: D = x / alpha says nothing, so v is kept, for this row.
            slope[i] = 1.0
            scale[i], weights[i, 0] = _leave_data(path, i)
            continue
        state[i], slope[i] = path.state[i], path.slope[i]
        scale[i] = path.sigma[i + 1] / path.sigma[i]
        gain = path.alpha[i + 1] - path.alpha[i] * scale[i]
        past = np.arange(i, max(i - order, -1), -1)
        predictor = gain * _mean_weights(path.lam, i, past, width)
        weights[i] = predictor + scale[i] * correction
        if corrected and i + 1 < steps:
            corrector = gain * _mean_weights(path.lam, i, np.append(i + 1, past), width)
            correction = corrector - np.append(0, predictor[:-1])
    solver = MultistepSolver(times[:-1], state, slope, scale, weights)
    if not all(np.isfinite(leaf).all() for leaf in solver):
        raise ValueError(
            f"at t={times[0]} the velocity of `interpolant` does not tell the data "
            "from the noise: begin the grid elsewhere"
        )
    return solver


def _mean_weights(lam: np.ndarray, i: int, nodes: np.ndarray, width: int) -> np.ndarray:
    """Return the weights of the predictions at ``nodes``, newest first [width].

    For the mean over the step from i to i + 1, whose ends are at 0 and 1 in u.
    """
    h = lam[i + 1] - lam[i]
    if np.isfinite(h):
        # A node at infinity has no influence in the limit: the polynomial is bounded.
        nodes = nodes[np.isfinite(lam[nodes])]
        u = (lam[nodes] - lam[i]) / h
    else:
        nodes = nodes[nodes >= i]
        u = (nodes - i).astype(float)
    moments = np.array([1.0, 0.5])[: len(nodes)]
    if len(nodes) > 2:
        # Here and not above: `import flowjax` need not wait for it.
        from scipy.special import hyp1f1

        powers = np.arange(len(nodes))
        # The integral of exp(-h (1 - u)) u^k over [0, 1].
        moments = hyp1f1(1, powers + 2, -h) / (powers + 1)
        moments = moments / moments[0]
    weights = interpolation_weights(u, moments)
    return np.pad(weights, (0, width - len(nodes)))


def _leave_data(path: _LogSnr, i: int) -> tuple[float, float]:
    """Return the factors of x and v in the step from clean data at i.

    ``x_s = alpha_s D + sigma_s E``, ``D = x / alpha``, ``E = (v - alpha' D) / sigma'``.
    """
    rate = path.d_sigma[i]
    if not np.isfinite(rate) or rate == 0:
        return np.nan, np.nan
    per_velocity = path.sigma[i + 1] / rate
    scale = (path.alpha[i + 1] - per_velocity * path.d_alpha[i]) / path.alpha[i]
    return scale, per_velocity
