"""What the networks read: embeddings of times, labels and guidance, positions.

Everything here computes in at least float32, whatever the compute dtype of the network
that uses it: the tangent of a MeanFlow target enters through the times, and half
precision would round it away.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flowjax.dtypes import at_least_float32
from flowjax.networks.arguments import named_conditions
from flowjax.typing import Condition, Time

SeenTimes: TypeAlias = Literal["start_duration", "start", "duration"]
"""What a network sees of ``(t, s)``: t and s - t, only t, or only s - t."""

MAX_FREQUENCY = 4.0
"""Default highest angular frequency of the time features, in radians per unit time.

The tangent of ``sin(w t)`` is ``w cos(w t)``: the ``du/dt`` in the target of MeanFlow
grows with w, and with it the noise of the target while the network is young. Sharp
dependence on time is left to the MLP behind the features. MeanFlow of a mixture of
eight Gaussians in the plane (`MLP`, 2000 steps, two seeds) ended with one-step sliced
Wasserstein errors of 0.11 and 0.09 for w = 4, 0.23 and 0.09 for 16, 0.38 and 0.78 for
512, where the loss had grown a hundredfold.
"""


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


def position_table(grid: Sequence[int], features: int) -> np.ndarray:
    """Return fixed sin-cos positions of a grid, [prod(grid), features], float64.

    Every axis of the grid has an equal share of the features (of an image the first
    half encodes the row, the second the column), as ``[sin(w_k i), cos(w_k i)]`` with
    ``w_k = 10000^(-k/n)``, ``n = features // (2 axes)``. Features that are left over
    are zero.

    Raises:
        ValueError: if ``features`` is not a positive multiple of 4, or too small for
            so many axes.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, Section 3.5; in two dimensions as in
        Peebles and Xie 2022, arXiv:2212.09748.
    """
    axes = len(grid)
    if features < max(4, 2 * axes) or features % 4:
        raise ValueError(
            f"`features` must be a multiple of 4, and at least {2 * axes} on {axes} "
            f"axes; got {features}"
        )
    count = features // (2 * axes)
    frequencies = 10_000.0 ** (-np.arange(count) / count)

    def encode(position: np.ndarray) -> np.ndarray:
        angles = position.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    places = np.meshgrid(*map(np.arange, grid), indexing="ij")
    encoded = np.concatenate([encode(axis) for axis in places], axis=1)
    return np.pad(encoded, ((0, 0), (0, features - encoded.shape[1])))


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a time followed by ``Dense, SiLU, Dense``.

    With ``zero_init`` the last kernel starts at zero, and with it the embedding.
    """

    width: int
    features: int = 64
    max_frequency: float = MAX_FREQUENCY
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Float[Array, "batch"]) -> Float[Array, "batch width"]:
        """Embed ``t`` [batch] as [batch, width]."""
        dense = functools.partial(
            nn.Dense, self.width, dtype=self.dtype, param_dtype=self.param_dtype
        )
        initializers = nn.initializers
        last = initializers.zeros if self.zero_init else initializers.lecun_normal()
        h = sinusoidal(t, features=self.features, max_frequency=self.max_frequency)
        # One after the other: their names count the layers as they are made.
        h = nn.silu(dense()(h))
        return dense(kernel_init=last)(h)


class Conditioning(nn.Module):
    """Sum of the embeddings of the times, of the conditions and of the guidance.

    The label table has one row more than there are classes: row ``num_classes`` is the
    null class of classifier-free guidance, taken also where the label is None. Rows
    that are not given a vector or an array have a learned embedding in its place. The
    guidance is seen as ``1 - 1 / scale`` and the two ends of its interval.

    Attributes:
        width: features of the embedding.
        num_classes: number of labels, the null class not counted, or None.
        vector_features: entries of a vector to embed; 0 is none.
        array_channels: channels of an array that the network reads beside the state: a
            row without it has an embedding of its own; 0 is none.
        guidance: embed the guidance too, see `check_network_condition`.
        times: which times to embed.
        zero_init_duration: start the embedding of ``s - t`` at zero.
        separate: return the embeddings side by side and not their sum, in the order of
            the times, the guidance, the label and the rest.
        max_frequency: highest frequency of the time features.
        dtype: dtype of the arithmetic, at least float32.
        param_dtype: dtype of the parameters.

    References:
        Geng et al. 2025, Mean Flows for One-step Generative Modeling,
        arXiv:2505.13447, Section 4.3 (the pair (t, t - r) in their clock); guidance:
        Geng et al. 2025, Improved Mean Flows, arXiv:2512.02012.
    """

    width: int
    num_classes: int | None = None
    vector_features: int = 0
    array_channels: int = 0
    guidance: bool = False
    times: SeenTimes = "start_duration"
    zero_init_duration: bool = False
    separate: bool = False
    max_frequency: float = MAX_FREQUENCY
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, t: Time, s: Time, cond: Condition
    ) -> Float[Array, "batch *conditions w"]:
        """Embed times ``t``, ``s`` [batch] and the condition.

        Returns:
            [batch, width] or, where ``separate``, [batch, conditions, width].
        """
        dtype = at_least_float32(self.dtype)
        t, s = t.astype(dtype), s.astype(dtype)
        numbers = {}
        if self.times != "duration":
            numbers["start"] = t
        if self.times != "start":
            numbers["duration"] = s - t
        named = named_conditions(cond)
        if self.guidance:
            scale, interval = (
                jnp.asarray(named[name], dtype) for name in ("scale", "interval")
            )
            numbers["guidance_scale"] = 1 - 1 / scale
            numbers["guidance_low"], numbers["guidance_high"] = interval.T

        def embed(name: str) -> Float[Array, "batch w"]:
            return TimeEmbedding(
                self.width,
                max_frequency=self.max_frequency,
                zero_init=name == "duration" and self.zero_init_duration,
                dtype=dtype,
                param_dtype=self.param_dtype,
                name=name,
            )(numbers[name])

        embedded = [embed(name) for name in numbers]
        if self.num_classes is not None:
            labels = named.get("label")
            embedded.append(self._embed_label(labels, self.num_classes, len(t)))
        if self.vector_features or self.array_channels:
            embedded.append(self._embed_rest(named, len(t)))
        if self.separate:
            return jnp.stack(embedded, axis=1)
        return functools.reduce(jnp.add, embedded)

    def _embed_label(
        self, labels: Condition, classes: int, batch: int
    ) -> Float[Array, "batch w"]:
        table = self.param(
            "labels",
            nn.initializers.normal(0.5),  # the scale of the time embedding at the start
            (classes + 1, self.width),
            self.param_dtype,
        ).astype(at_least_float32(self.dtype))
        if labels is None:
            return jnp.broadcast_to(table[None, -1], (batch, self.width))
        # A label off the table that is known only at run time gives NaN, not a guess; a
        # negative one would otherwise count from the end.
        labels = jnp.where(labels < 0, classes + 1, labels)
        return jnp.take(table, labels, axis=0, mode="fill")

    def _embed_rest(
        self, named: Mapping[str, Any], batch: int
    ) -> Float[Array, "batch w"]:
        """Embed the vector, where it is given, and that a row is given neither."""
        dtype = at_least_float32(self.dtype)
        absent = self.param(
            "absent", nn.initializers.normal(0.5), (self.width,), self.param_dtype
        )
        h = jnp.zeros((batch, self.width), dtype)
        if self.vector_features:
            vector = named.get("vector", jnp.zeros((batch, self.vector_features)))
            dense = functools.partial(
                nn.Dense, self.width, dtype=dtype, param_dtype=self.param_dtype
            )
            h = dense(name="vector_out")(nn.silu(dense(name="vector_in")(vector)))
        given = given_rows(named, batch)[:, None]
        return jnp.where(given, h, absent.astype(dtype)[None])


def given_rows(named: Mapping[str, Any], batch: int) -> Bool[Array, "batch"]:
    """Say which rows of a network's conditions hold a vector or an array."""
    if not named.keys() & {"vector", "array"}:
        return jnp.zeros(batch, bool)
    return jnp.asarray(named.get("given", jnp.ones(batch, bool)))
