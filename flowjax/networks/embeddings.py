"""What the networks share: the embedding of (t, s, label), positions, checks.

Everything here computes in at least float32, whatever the compute dtype of the network
that uses it: the tangent of a MeanFlow target enters through the times, and half
precision would round it away.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax._typing import Condition, Time

MAX_FREQUENCY = 4.0
"""Default highest angular frequency of the time features, in radians per unit time.

The tangent of ``sin(w t)`` is ``w cos(w t)``: the ``du/dt`` in the target of MeanFlow
grows with w, and with it the noise of the target while the network is young. Sharp
dependence on time is left to the MLP behind the features. MeanFlow of a mixture of
eight Gaussians in the plane (`MLP`, 2000 steps, two seeds) ended with one-step sliced
Wasserstein errors of 0.11 and 0.09 for w = 4, 0.23 and 0.09 for 16, 0.38 and 0.78 for
512, where the loss had grown a hundredfold.
"""


def at_least_float32(dtype: DTypeLike) -> np.dtype:
    """Return ``dtype`` widened to float32 where it is narrower."""
    # jnp.promote_types refuses any mixed pair under strict promotion.
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)


def sinusoidal(
    t: Float[Array, "batch"], *, features: int, max_frequency: float = MAX_FREQUENCY
) -> Float[Array, "batch features"]:
    """Return ``[sin(w_k t), cos(w_k t)]``, w_k geometric from 1 to ``max_frequency``.

    Args:
        t: times or time differences, of either sign [batch].
        features: how many, even and at least 4.
        max_frequency: the highest w in radians per unit time, at least 1.

    Returns:
        The features in the dtype of ``t``, [batch, features].

    Raises:
        ValueError: if ``features`` or ``max_frequency`` is out of range.
    """
    if features < 4 or features % 2:
        raise ValueError(f"`features` must be even and at least 4; got {features}")
    if not max_frequency >= 1:
        raise ValueError(f"`max_frequency` must be at least 1; got {max_frequency}")
    frequencies = np.geomspace(1.0, max_frequency, features // 2)
    angles = t[:, None] * jnp.asarray(frequencies, t.dtype)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def position_table(height: int, width: int, features: int) -> np.ndarray:
    """Return fixed sin-cos positions of a grid, [height * width, features], float64.

    The first half of the features encodes the row, the second the column, each as
    ``[sin(w_k i), cos(w_k i)]`` with ``w_k = 10000^(-k/n)``, ``n = features / 4``.

    Raises:
        ValueError: if ``features`` is not a positive multiple of 4.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, Section 3.5; in two dimensions as in
        Peebles and Xie 2022, arXiv:2212.09748.
    """
    if features < 4 or features % 4:
        raise ValueError(f"`features` must be a multiple of 4; got {features}")
    count = features // 4
    frequencies = 10_000.0 ** (-np.arange(count) / count)

    def encode(position: np.ndarray) -> np.ndarray:
        angles = position.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.concatenate([encode(rows), encode(columns)], axis=1)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a time followed by ``Dense, SiLU, Dense``."""

    width: int
    features: int = 64
    max_frequency: float = MAX_FREQUENCY
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Float[Array, "batch"]) -> Float[Array, "batch width"]:
        """Embed ``t`` [batch] as [batch, width]."""
        h = sinusoidal(t, features=self.features, max_frequency=self.max_frequency)
        h = nn.Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype)(h)
        h = nn.silu(h)
        return nn.Dense(self.width, dtype=self.dtype, param_dtype=self.param_dtype)(h)


class Conditioning(nn.Module):
    """Sum of the embeddings of ``t``, of ``s - t`` and of the label.

    The label table has one row more than there are classes: row ``num_classes`` is the
    null class of classifier-free guidance, taken also where ``cond`` is None.

    References:
        Geng et al. 2025, Mean Flows for One-step Generative Modeling,
        arXiv:2505.13447, Section 4.3 (the pair (t, t - r) in their clock).
    """

    width: int
    num_classes: int | None = None
    max_frequency: float = MAX_FREQUENCY
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Time, s: Time, cond: Condition) -> Float[Array, "batch w"]:
        """Embed times ``t``, ``s`` [batch] and labels [batch] as [batch, width]."""
        dtype = at_least_float32(self.dtype)
        t, s = t.astype(dtype), s.astype(dtype)

        def embed(time: Time, name: str) -> Float[Array, "batch w"]:
            return TimeEmbedding(
                self.width,
                max_frequency=self.max_frequency,
                dtype=dtype,
                param_dtype=self.param_dtype,
                name=name,
            )(time)

        c = embed(t, "start") + embed(s - t, "duration")
        if self.num_classes is None:
            return c
        table = self.param(
            "labels",
            nn.initializers.normal(0.5),  # the scale of the time embedding at the start
            (self.num_classes + 1, self.width),
            self.param_dtype,
        ).astype(dtype)
        if cond is None:
            return c + table[None, -1]
        # A label past the table that is known only at run time gives NaN, not a guess.
        return c + jnp.take(table, cond, axis=0, mode="fill")


def check_times(t: Array, s: Array, batch: int) -> None:
    """Raise ValueError unless ``t`` and ``s`` are floating and [batch].

    Their values are not restricted: a network is a function on the whole line, and some
    methods use times past 1 as a flag.
    """
    for name, time in (("t", t), ("s", s)):
        if not jnp.issubdtype(time.dtype, jnp.floating):
            raise ValueError(f"`{name}` must have a floating dtype; got {time.dtype}")
        if time.shape != (batch,):
            raise ValueError(
                f"`{name}` must have shape [batch]=({batch},); got {time.shape}"
            )


def check_labels(cond: Condition, batch: int, num_classes: int | None) -> None:
    """Raise ValueError unless ``cond`` is None or integer labels that the table holds.

    Raises:
        ValueError: if the network has no classes, or the labels are not an integer
            array [batch] or, where known, lie outside [0, num_classes].
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1 or None; got {num_classes}")
    if cond is None:
        return
    if num_classes is None:
        raise ValueError("`cond` needs a network with `num_classes`; this one has None")
    if not isinstance(cond, jax.Array | np.ndarray):
        raise ValueError(f"`cond` must be an array of labels; got {type(cond)}")
    if not jnp.issubdtype(cond.dtype, jnp.integer):
        raise ValueError(f"`cond` must have an integer dtype; got {cond.dtype}")
    if cond.shape != (batch,):
        raise ValueError(f"`cond` must have shape [batch]=({batch},); got {cond.shape}")
    if isinstance(cond, Tracer) or not batch:
        return
    labels = np.asarray(cond)
    if labels.min() < 0 or labels.max() > num_classes:
        raise ValueError(
            f"`cond` must lie in [0, {num_classes}] ({num_classes} is the null class); "
            f"got values from {labels.min()} to {labels.max()}"
        )


def check_input(
    x: Array, axes: Sequence[str], params: Any, *, features: int, name: str
) -> None:
    """Raise ValueError unless ``x`` is floating, ``[axes]``, and fits ``params``.

    Args:
        x: the state.
        axes: the names of its axes.
        params: the module's parameters, empty while it is being initialised.
        features: the input features of the first layer that ``x`` implies.
        name: the name of the first layer.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`x` must have a floating dtype; got {x.dtype}")
    if x.ndim != len(axes):
        raise ValueError(f"`x` must have shape [{', '.join(axes)}]; got {x.shape}")
    if name in params and params[name]["kernel"].shape[0] != features:
        expected = params[name]["kernel"].shape[0]
        raise ValueError(
            f"`x` must give {expected} features to the first layer, as when the "
            f"parameters were made; got {features} from shape {x.shape}"
        )
