"""A learned weight of the loss at every pair of times."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from flowjax.dtypes import at_least_float32
from flowjax.networks.arguments import check_times
from flowjax.networks.embeddings import MAX_FREQUENCY, Conditioning
from flowjax.typing import PerExample, Time


class LogVariance(nn.Module):
    """The logarithm ``w(t, s)`` of the loss expected at a pair of times.

    To be trained with the network on ``exp(-w) l + w``, which is least where ``w`` is
    the logarithm of the mean of the loss ``l`` at ``(t, s)``. Zero at initialisation.

    Attributes:
        width: hidden features.
        max_frequency: highest frequency of the time features.
        dtype: dtype of the arithmetic, at least float32.
        param_dtype: dtype of the parameters.

    References:
        Karras et al. 2023, Analyzing and Improving the Training Dynamics of Diffusion
        Models, arXiv:2312.02696.
    """

    width: int = 64
    max_frequency: float = MAX_FREQUENCY
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Time, s: Time) -> PerExample:
        """Return ``w`` at the times ``t`` and ``s`` [batch].

        Returns:
            The log-variance [batch], float32 or the dtype of ``t`` if wider.

        Raises:
            ValueError: if ``t`` and ``s`` are not floating of one length.
        """
        check_times(t, s, t.size)
        h = Conditioning(
            self.width,
            max_frequency=self.max_frequency,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conditioning",
        )(t, s, None)
        output = nn.Dense(
            1,
            dtype=h.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.zeros,
            name="output",
        )
        return output(nn.silu(h))[:, 0].astype(at_least_float32(t.dtype))
