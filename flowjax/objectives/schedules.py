"""Schedules: numbers in [0, 1] that change with the training step.

Each returns a function of the step (an integer array or a Python number), traceable, so
that one compiled training step serves the whole run.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.typing import Count, Natural, Positive, Share

Schedule: TypeAlias = Callable[[ArrayLike], Float[Array, ""]]
"""``step -> value``, float32."""


@checked
def warmup(steps: Natural, *, maximum: Share = 1.0) -> Schedule:
    """Return ``min(maximum, step / steps)``, and ``maximum`` throughout for 0 steps.

    The tangent warm-up of sCM and Align Your Flow (maximum 0.99) and the share of the
    gradient through the derivative in Modular MeanFlow.

    Raises:
        ValueError: unless ``steps >= 0`` and ``0 <= maximum <= 1``.
    """

    def value(step: ArrayLike) -> Float[Array, ""]:
        done = jnp.asarray(step, jnp.float32) / jnp.float32(max(steps, 1))
        return jnp.minimum(done if steps else 1.0, jnp.float32(maximum))

    return value


@checked
def sigmoid_decay(
    start: Natural, end: Count, *, steepness: Positive = 25.0, snap: float = 5e-3
) -> Schedule:
    """Return ``1 - sigmoid(steepness (step - middle) / (end - start))``, snapped.

    Within ``snap`` of 0 or 1 the value is exactly 0 or 1, so that AlphaFlow ends in
    MeanFlow and starts in trajectory flow matching.

    Raises:
        ValueError: unless ``start < end``.

    References:
        Zhang et al. 2025, AlphaFlow, arXiv:2510.20771.
    """
    if not start < end:
        raise ValueError(f"`start` must be less than `end`; got {start} and {end}")

    def value(step: ArrayLike) -> Float[Array, ""]:
        phase = (jnp.asarray(step, jnp.float32) - (start + end) / 2) / (end - start)
        alpha = 1 - jax.nn.sigmoid(steepness * phase)
        alpha = jnp.where(alpha < snap, 0.0, alpha)
        return jnp.where(alpha > 1 - snap, 1.0, alpha)

    return value
