"""What the networks share: the road from condition to heads, and its options.

A subclass says how a state becomes hidden activations, what one block does, and how
hidden activations become a velocity. The order of the blocks, what each one is
conditioned on, the second head and the tap are decided here, once for all of them.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.dtypes import at_least_float32
from flowjax.events import expand_like
from flowjax.networks.arguments import (
    check_network_condition,
    check_times,
    named_conditions,
)
from flowjax.networks.embeddings import (
    MAX_FREQUENCY,
    Conditioning,
    SeenTimes,
    given_rows,
)
from flowjax.typing import Condition, State, Time

Embedded: TypeAlias = Float[Array, "batch *conditions w"]
Hidden: TypeAlias = Float[Array, "batch *hidden"]


class Outputs(NamedTuple):
    """All that one pass gives: both velocities (``v`` or None) and the tapped block."""

    u: Float[Array, "batch *out"]
    v: Float[Array, "batch *event"] | None
    features: Hidden


class Network(nn.Module, kw_only=True):
    """The attributes and methods that every network has; keyword-only.

    Each option only adds parameters to those of the plain network or leaves some away;
    what keeps its name keeps its shape, so `graft` starts one network from another.

    Attributes:
        num_classes: number of labels, the null class not counted, or None.
        vector_features: entries of a vector of numbers to condition on; 0 is none.
        array_channels: channels of an array of the state's spatial shape to condition
            on, read beside the state's channels; 0 is none.
        guidance: condition on a guidance scale and interval too, see
            `check_network_condition`.
        times: what the network sees of its two times: ``"start_duration"`` t and s - t,
            ``"start"`` only t, so that it is a velocity field, ``"duration"`` only
            s - t.
        zero_init_duration: start the embedding of s - t at zero: with the parameters of
            a ``"start"`` network the new one is that velocity field for every s.
        decoder_depth: this many blocks at the end, and the output layer, see the
            embedding of s instead of that of t, made by the same parameters. At s = t
            this is the ``"start"`` network of the same parameters. Needs that option.
        velocity_head: this many blocks at the end, and the output layer, exist twice;
            the second branch predicts a velocity, returned by `heads`.
        tap: the block whose output `features` returns, counted as in a list.
        out_features: channels of ``u`` where they are not those of ``x``.
        max_frequency: highest frequency of the time features.
        dtype: dtype of the blocks' products; everything else uses at least float32.
        param_dtype: dtype of the parameters.

    References:
        times, velocity_head, guidance: Geng et al. 2025, Improved Mean Flows,
        arXiv:2512.02012. decoder_depth: Lee et al. 2025, Decoupled MeanFlow,
        arXiv:2510.24474. zero_init_duration: Luan et al. 2026, SnapFlow,
        arXiv:2604.05656.
    """

    if TYPE_CHECKING:  # Fields of the subclasses, which choose their order and default.
        width: int
        depth: int

    num_classes: int | None = None
    vector_features: int = 0
    array_channels: int = 0
    guidance: bool = False
    times: SeenTimes = "start_duration"
    zero_init_duration: bool = False
    decoder_depth: int = 0
    velocity_head: int = 0
    tap: int = -1
    out_features: int | None = None
    max_frequency: float = MAX_FREQUENCY
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __call__(
        self, x: State, t: Time, s: Time, cond: Condition = None
    ) -> Float[Array, "batch *out"]:
        """Return the average velocity over [t, s] at ``x``.

        Args:
            x: states [batch, *event].
            t: times [batch].
            s: destination times [batch]; ``s = t`` gives the velocity.
            cond: labels [batch], ``num_classes`` being the null class; None: all null.
                Conditions of other kinds in a dict, see `check_network_condition`.

        Returns:
            An array of the shape of ``x``, but for its last axis where ``out_features``
            says so; float32 or the dtype of ``x`` if wider.

        Raises:
            ValueError: if shapes, dtypes or attributes do not fit together, or a known
                label is out of range.
        """
        return self.outputs(x, t, s, cond).u

    def heads(
        self, x: State, t: Time, s: Time, cond: Condition = None
    ) -> tuple[Float[Array, "batch *out"], Float[Array, "batch *event"]]:
        """Return ``(u, v)`` of both heads, arguments and errors as in `__call__`.

        ``v`` has the shape of ``x``. What trains it decides what it is; of improved
        MeanFlow it is the velocity at ``(x, t)``, read off at ``s = t``.

        Raises:
            ValueError: if the network has no velocity head.
        """
        if not self.velocity_head:
            raise ValueError("`heads` needs a network with `velocity_head` > 0; got 0")
        u, v, _ = self.outputs(x, t, s, cond)
        assert v is not None
        return u, v

    def features(self, x: State, t: Time, s: Time, cond: Condition = None) -> Hidden:
        """Return the activations after block ``tap``, arguments as in `__call__`.

        Beside a call with equal arguments in the same compiled program the forward pass
        costs nothing, as XLA merges the two (but not two scans with an inner tap). A
        backward pass is not merged: train on `outputs`.

        Returns:
            [batch, width] of the `MLP`, [batch, tokens, width] of the `DiT`, in the
            dtype that the blocks hand on.
        """
        return self.outputs(x, t, s, cond).features

    @nn.compact
    def outputs(self, x: State, t: Time, s: Time, cond: Condition = None) -> Outputs:
        """Return all that one pass gives, arguments and errors as in `__call__`.

        What is not used is dropped by the compiler; what is used shares one forward and
        one backward pass.
        """
        self._check(x, t, s, cond)
        conditioning = Conditioning(
            self.width,
            num_classes=self.num_classes,
            vector_features=self.vector_features,
            array_channels=self.array_channels,
            guidance=self.guidance,
            times=self.times,
            zero_init_duration=self.zero_init_duration,
            separate=self._separate_conditions,
            max_frequency=self.max_frequency,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conditioning",
        )
        early = late = nn.silu(conditioning(t, s, cond))
        if self.decoder_depth:
            late = nn.silu(conditioning(s, s, cond))

        seen = self._beside(x, cond) if self.array_channels else x
        fork, tap = self.depth - self.velocity_head, self.tap % self.depth + 1
        states = self._blocks(
            "", 0, self._read(seen, early), early, late, keep={fork, tap, self.depth}
        )
        channels = x.shape[-1]
        wide = at_least_float32(x.dtype)
        u = self._write("", states[self.depth], late, x, self.out_features or channels)
        v = None
        if self.velocity_head:
            ends = self._blocks(
                "velocity_", fork, states[fork], early, late, keep={self.depth}
            )
            v = self._write("velocity_", ends[self.depth], late, x, channels)
            v = v.astype(wide)
        return Outputs(u.astype(wide), v, self._of_the_state(states[tap], x))

    def _blocks(
        self,
        prefix: str,
        first: int,
        h: Hidden,
        early: Embedded,
        late: Embedded,
        *,
        keep: Collection[int],
    ) -> dict[int, Hidden]:
        """Apply the blocks from ``first`` on.

        Args:
            prefix: of the names of the blocks' parameters.
            first: index of the first block.
            h: its input.
            early: the condition of the blocks before the decoder.
            late: the condition of the decoder.
            keep: counts of blocks.

        Returns:
            ``count -> the activations after that many blocks`` for every count kept.
        """
        states = {first: h}
        for i in range(first, self.depth):
            h = self._block(prefix, i, h, early if i < self._decoder else late)
            states[i + 1] = h
        return {count: states[count] for count in keep}

    def _beside(self, x: State, cond: Condition) -> Float[Array, "batch *joined"]:
        """Return ``x`` with the channels of the array, zero where none is given."""
        named = named_conditions(cond)
        shape = (*x.shape[:-1], self.array_channels)
        array = jnp.asarray(named.get("array", jnp.zeros(shape)), x.dtype)
        array = jnp.where(expand_like(given_rows(named, len(x)), x), array, 0)
        return jnp.concatenate([x, array], axis=-1)

    @property
    def _decoder(self) -> int:
        """The first block of the decoder."""
        return self.depth - self.decoder_depth

    @property
    def _separate_conditions(self) -> bool:
        """Whether the conditions are embedded side by side, see `Conditioning`."""
        return False

    def _read(self, x: State, c: Embedded) -> Hidden:
        """Return the input of the first block."""
        raise NotImplementedError

    def _of_the_state(self, h: Hidden, x: State) -> Hidden:
        """Return the activations that belong to ``x``, not to its condition."""
        del x
        return h

    def _block(self, prefix: str, index: int, h: Hidden, c: Embedded) -> Hidden:
        """Apply one block."""
        raise NotImplementedError

    def _write(
        self, prefix: str, h: Hidden, c: Embedded, x: State, channels: int
    ) -> Float[Array, "batch *out"]:
        """Return the velocity, of the shape of ``x`` but for its channels."""
        raise NotImplementedError

    def _check(self, x: Array, t: Array, s: Array, cond: Any) -> None:
        """Raise ValueError unless the attributes and inputs fit together."""
        depth = self.depth
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1; got {getattr(self, name)}"
                )
        if self.times not in get_args(SeenTimes):
            raise ValueError(
                f"`times` must be one of {get_args(SeenTimes)}; got {self.times!r}"
            )
        for name, needed in (
            ("decoder_depth", "start"),
            ("zero_init_duration", "start_duration"),
        ):
            if getattr(self, name) and self.times != needed:
                raise ValueError(
                    f"`{name}` needs a network with times={needed!r}; "
                    f"got {self.times!r}"
                )
        # A decoder of all blocks would leave none to see t.
        for name, low, high in (
            ("velocity_head", 0, depth),
            ("decoder_depth", 0, depth - 1),
            ("tap", -depth, depth - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"`{name}` must lie in [{low}, {high}] with `depth`={depth}; "
                    f"got {getattr(self, name)}"
                )
        if self.out_features is not None and self.out_features < 1:
            raise ValueError(
                f"`out_features` must be at least 1 or None; got {self.out_features}"
            )
        check_times(t, s, len(x))
        for name in ("vector_features", "array_channels"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"`{name}` must not be negative; got {getattr(self, name)}"
                )
        check_network_condition(
            cond,
            x.shape[1:],
            len(x),
            num_classes=self.num_classes,
            vector_features=self.vector_features,
            array_channels=self.array_channels,
            guidance=self.guidance,
        )
