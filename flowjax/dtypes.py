"""The least precision in which flowjax adds up, averages and integrates."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> np.dtype:
    """Return ``dtype``, or float32 where it is coarser or not floating."""
    # Written out, because type promotion is an error where it is set to strict.
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype if wide else jnp.float32)
