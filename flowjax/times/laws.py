"""Laws of one time per row."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.typing import Count, Positive, PRNGKey, Range, Time


@checked
def uniform(
    key: PRNGKey, batch: Count, /, *, low: float = 0.0, high: float = 1.0
) -> Time:
    """Draw ``t ~ U[low, high)``, in the default floating dtype.

    Args:
        key: typed random key.
        batch: number of times.
        low: least time.
        high: upper end of the times.

    Raises:
        ValueError: unless ``0 <= low < high <= 1``.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1; got low={low}, high={high}")
    return jax.random.uniform(key, (batch,), minval=low, maxval=high)


@checked
def logit_normal(
    key: PRNGKey, batch: Count, /, *, mean: float = 0.0, std: Positive = 1.0
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
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,)))


@checked
def arctan_normal(
    key: PRNGKey, batch: Count, /, *, mean: float = -0.8, std: Positive = 1.6
) -> Time:
    """Draw ``t = 1 - (2 / pi) arctan(exp(mean + std n))``, ``n ~ N(0, 1)``.

    On the trigonometric path the exponential is the ratio sigma / alpha of noise to
    data, so that the noise level is log-normal.

    Args:
        key: typed random key.
        batch: number of times.
        mean: mean logarithm of the ratio: negative means nearer data, unlike that of
            `logit_normal`. Where the noise has the scale ``sigma_data`` and is counted
            in, subtract its logarithm.
        std: standard deviation of the logarithm, positive.

    Raises:
        ValueError: unless ``std > 0``.

    References:
        Peng et al. 2025, FACM, arXiv:2507.03738; Lu and Song 2024, arXiv:2410.11081
        (sCM: mean -1.0 - log 0.5, std 1.4).
    """
    # arctan(1 / r) = pi / 2 - arctan(r) spares the subtraction next to t=0.
    ratio = jnp.exp(-(mean + std * jax.random.normal(key, (batch,))))
    return jnp.minimum((2 / math.pi) * jnp.arctan(ratio), 1.0)


@checked
def u_shaped(
    key: PRNGKey, batch: Count, /, *, a: Annotated[float, Range(0, 100, "(]")] = 4.0
) -> Time:
    """Draw ``t`` in [0, 1] with a density proportional to ``exp(a t) + exp(a (1-t))``.

    By its inverse distribution function: ``t = 1/2 + arcsinh(w sinh(a / 2)) / a`` with
    ``w ~ U[-1, 1)``.

    Args:
        key: typed random key.
        batch: number of times.
        a: in (0, 100]; the larger, the more mass at both ends.

    Raises:
        ValueError: if ``a`` is outside (0, 100].

    References:
        Lee et al. 2024, Improving the Training of Rectified Flows, arXiv:2405.20320,
        Sec. 4.1.
    """
    w = jax.random.uniform(key, (batch,), minval=-1.0, maxval=1.0)
    return jnp.clip(0.5 + jnp.arcsinh(w * math.sinh(a / 2)) / a, 0.0, 1.0)
