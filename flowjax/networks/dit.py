"""The diffusion transformer on patches, as an average-velocity field.

Plain ``jnp`` throughout: no fused kernel with a custom reverse rule, so `jax.jvp` and
its gradient pass. `jax.nn.dot_product_attention` would pass too, but it takes the
softmax in float32 even of float64 logits.

References:
    Peebles and Xie 2022, Scalable Diffusion Models with Transformers, arXiv:2212.09748.
    In-context conditions: Geng et al. 2025, Improved Mean Flows, arXiv:2512.02012, with
    8 tokens for the label, 4 for a time and the scale, 2 for each end of the interval.
"""

import functools
import math
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.dtypes import at_least_float32
from flowjax.networks.arguments import check_input
from flowjax.networks.base import Embedded, Network
from flowjax.networks.embeddings import position_table

Spatial: TypeAlias = Float[Array, "batch *spatial channels"]
Tokens: TypeAlias = Float[Array, "batch tokens w"]

_xavier = nn.initializers.xavier_uniform()
_zeros = nn.initializers.zeros


class DiT(Network):
    """Transformer over patches with adaLN-zero or in-context conditioning.

    The output is exactly zero at initialisation. States are images [batch, height,
    width, channels], or sequences or volumes with one or three axes in the place of
    height and width. Other sizes than the one the parameters were made with are
    accepted: the positions are computed, not learned.

    Attributes:
        patch_size: side of a patch, in pixels, the same on every axis.
        width: features of a token; a multiple of 4 and of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden features of a block's MLP over ``width``.
        context_tokens: every condition (a time, the label, a number of the guidance)
            enters as this many tokens before those of the patches, each its embedding
            plus a learned vector, and no longer as adaLN-zero: shifts, scales and gates
            become parameters of the block, which has 12 instead of 18 width^2 of them.
            Excludes ``decoder_depth``: a decoder would see the tokens of t.
        qk_norm: normalise queries and keys by their root mean square.
        remat: recompute the blocks in the backward pass instead of storing them.
        scan: run the blocks as one `jax.lax.scan` over stacked parameters: compile
            time no longer grows with ``depth``. XLA's cost analysis then counts one
            block only.

    The other attributes are those of `Network`. Layer norms, modulations, softmax,
    embeddings and the last layer use at least float32, whatever its ``dtype``.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: int = 4
    context_tokens: int = 0
    qk_norm: bool = False
    remat: bool = False
    scan: bool = False

    def _dense(self, features: int, *, name: str, **options: Any) -> nn.Dense:
        """Return a layer of the kind used outside the blocks."""
        options = {"kernel_init": _xavier} | options
        return nn.Dense(
            features,
            dtype=at_least_float32(self.dtype),
            param_dtype=self.param_dtype,
            name=name,
            **options,
        )

    def _grid(self, x: Spatial) -> tuple[int, ...]:
        """Return the number of patches along each axis: rows and columns of images."""
        return tuple(size // self.patch_size for size in x.shape[1:-1])

    @property
    def _separate_conditions(self) -> bool:
        return self.context_tokens > 0

    def _modulates(self, c: Embedded) -> Float[Array, "batch 1 w"] | None:
        """Return what the shifts, scales and gates are computed from."""
        return None if self.context_tokens else c[:, None, :]

    def _read(self, x: Spatial, c: Embedded) -> Tokens:
        h = self._dense(self.width, name="input")(patchify(x, self.patch_size))
        positions = position_table(self._grid(x), self.width)
        h = h + jnp.asarray(positions, h.dtype)[None]
        if self.context_tokens:
            context = jnp.repeat(c, self.context_tokens, axis=1)
            own = self.param(
                "context",
                nn.initializers.normal(0.5),  # the scale of the embeddings at the start
                context.shape[1:],
                self.param_dtype,
            )
            h = jnp.concatenate([context + own.astype(c.dtype)[None], h], axis=1)
        return h.astype(self.dtype)

    def _of_the_state(self, h: Tokens, x: Spatial) -> Float[Array, "batch patches w"]:
        return h[:, h.shape[1] - math.prod(self._grid(x)) :]

    def _write(
        self, prefix: str, h: Tokens, c: Embedded, x: Spatial, channels: int
    ) -> Float[Array, "batch *spatial out"]:
        zero = functools.partial(self._dense, kernel_init=_zeros)
        h = layer_norm(self._of_the_state(h, x))
        modulates = self._modulates(c)
        if modulates is not None:
            modulation = zero(2 * self.width, name=f"{prefix}modulation")(modulates)
            shift, scale = jnp.split(modulation, 2, axis=-1)
            h = h * (1 + scale) + shift
        grid = self._grid(x)
        features = self.patch_size ** len(grid) * channels
        h = zero(features, name=f"{prefix}output")(h)
        return unpatchify(h, grid, self.patch_size)

    def _block(self, prefix: str, index: int, h: Tokens, c: Embedded) -> Tokens:
        return self._make_block(f"{prefix}block_{index}")(h, self._modulates(c))

    def _make_block(self, name: str) -> Any:
        """Return a block with the attributes of the network."""
        block = DiTBlock
        if self.remat:
            # Inside a scan the loop itself keeps XLA from merging the recomputation.
            block = nn.remat(block, prevent_cse=not self.scan)
        return block(
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            qk_norm=self.qk_norm,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def _blocks(
        self,
        prefix: str,
        first: int,
        h: Tokens,
        early: Embedded,
        late: Embedded,
        *,
        keep: Collection[int],
    ) -> dict[int, Tokens]:
        """Apply the blocks, in a loop or a scan.

        A scan hands on what is to be kept beside the tokens. So neither a decoder nor a
        tap nor a second head splits the stack: its parameters are those of the plain
        network.
        """
        if not self.scan:
            return super()._blocks(prefix, first, h, early, late, keep=keep)
        inner = [count for count in keep if count < self.depth]

        def step(
            block: DiTBlock, carry: Any, i: Array, conditions: tuple[Any, ...]
        ) -> tuple[Any, None]:
            h, kept = carry
            c = conditions[-1]
            if len(conditions) > 1:
                c = jnp.where(i < self._decoder, conditions[0], c)
            h = block(h, c)
            kept = {n: jnp.where(i + 1 == n, h, old) for n, old in kept.items()}
            return (h, kept), None

        scanned = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
        )
        conditions = (early, late) if self.decoder_depth else (late,)
        (h, kept), _ = scanned(
            self._make_block(f"{prefix}blocks"),
            (h, dict.fromkeys(inner, h)),
            jnp.arange(first, self.depth),
            tuple(map(self._modulates, conditions)),
        )
        return kept | {self.depth: h}

    def _check(self, x: Array, t: Array, s: Array, cond: Any) -> None:
        for name in ("patch_size", "num_heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1; got {getattr(self, name)}"
                )
        if self.width % self.num_heads or self.width % 4:
            raise ValueError(
                f"`width` must be a multiple of 4 and of `num_heads`={self.num_heads}; "
                f"got {self.width}"
            )
        if self.context_tokens < 0 or (self.context_tokens and self.decoder_depth):
            raise ValueError(
                "`context_tokens` must be at least 0, and 0 with `decoder_depth`; got "
                f"{self.context_tokens} with {self.decoder_depth}"
            )
        spatial = x.shape[1:-1]
        channels = x.shape[-1] + self.array_channels
        check_input(
            x,
            ("batch", "size", "*sizes", "channels"),
            self.variables.get("params", {}),
            features=self.patch_size ** len(spatial) * channels,
            name="input",
        )
        if any(size % self.patch_size for size in spatial):
            raise ValueError(
                "the height and width of `x`, all axes but the first and last, must be "
                f"multiples of `patch_size`={self.patch_size}; got shape {x.shape}"
            )
        super()._check(x, t, s, cond)


class DiTBlock(nn.Module):
    """Attention and MLP, each on a modulated layer norm and behind a gate.

    ``h += g1 * attention(LN(h) (1 + b1) + a1);  h += g2 * mlp(LN(h) (1 + b2) + a2)``
    where (a1, b1, g1, a2, b2, g2) is a linear function of ``c``, zero at the start, or
    without ``c`` itself a parameter.
    """

    num_heads: int
    mlp_ratio: int = 4
    qk_norm: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "batch tokens w"],
        c: Float[Array, "batch 1 w"] | None,
    ) -> Float[Array, "batch tokens w"]:
        """Return the new tokens."""
        width = h.shape[-1]
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=_xavier,
        )
        if c is None:
            modulation = self.param(
                "constant_modulation", _zeros, (1, 1, 6 * width), self.param_dtype
            ).astype(at_least_float32(self.dtype))
        else:
            modulation = dense(
                6 * width, dtype=c.dtype, kernel_init=_zeros, name="modulation"
            )(c)
        a1, b1, g1, a2, b2, g2 = jnp.split(modulation, 6, axis=-1)

        y = (layer_norm(h) * (1 + b1) + a1).astype(self.dtype)
        # No bias: the shift a1 passes through the same kernel, and a key's bias would
        # drop out of the softmax.
        qkv = dense(3 * width, use_bias=False, name="qkv")(y)
        q, k, v = split_heads(qkv, self.num_heads)
        if self.qk_norm:
            q, k = (
                _RMSNorm(param_dtype=self.param_dtype, name=n)(z)
                for n, z in (("query_norm", q), ("key_norm", k))
            )
        y = dense(width, name="projection")(attention(q, k, v))
        h = h + (g1 * y.astype(g1.dtype)).astype(h.dtype)

        y = (layer_norm(h) * (1 + b2) + a2).astype(self.dtype)
        y = nn.gelu(dense(self.mlp_ratio * width, name="mlp_in")(y))
        y = dense(width, name="mlp_out")(y)
        return h + (g2 * y.astype(g2.dtype)).astype(h.dtype)


class _RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, and a learned scale."""

    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
        scale = self.param(
            "scale", nn.initializers.ones, x.shape[-1:], self.param_dtype
        )
        y = x.astype(at_least_float32(x.dtype))
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
        scale = scale.astype(y.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return (y * scale).astype(x.dtype)


def layer_norm(x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
    """Return ``(x - mean) / sqrt(variance + 1e-6)`` over the last axis, unscaled.

    In float32 or the dtype of ``x``, whichever is wider.
    """
    x = x.astype(at_least_float32(x.dtype))
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def split_heads(
    qkv: Float[Array, "batch tokens w3"], num_heads: int
) -> tuple[Float[Array, "batch heads tokens d"], ...]:
    """Split a joint projection into q, k, v [batch, heads, tokens, d]."""
    batch, tokens, features = qkv.shape
    qkv = qkv.reshape(batch, tokens, 3, num_heads, features // (3 * num_heads))
    return tuple(qkv.transpose(2, 0, 3, 1, 4))


def attention(
    q: Float[Array, "batch heads tokens d"],
    k: Float[Array, "batch heads tokens d"],
    v: Float[Array, "batch heads tokens d"],
) -> Float[Array, "batch tokens w"]:
    """Return ``softmax(q k' / sqrt(d)) v``, the heads concatenated.

    Logits and softmax in at least float32. The batch and head axes lead, so both
    products are batched matrix products; the ``bqhd`` layout is slower on a CPU.
    """
    batch, heads, tokens, size = q.shape
    dtype = at_least_float32(q.dtype)
    logits = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=dtype)
    weights = jax.nn.softmax(logits * size**-0.5, axis=-1).astype(v.dtype)
    out = jnp.matmul(weights, v).transpose(0, 2, 1, 3)
    return out.reshape(batch, tokens, heads * size)


def patchify(
    x: Float[Array, "batch *spatial channels"], size: int
) -> Float[Array, "batch tokens features"]:
    """Cut sequences, images or volumes into patches, row by row, each flattened."""
    batch, *spatial, channels = x.shape
    axes = range(1, 2 * len(spatial) + 1)
    x = x.reshape(batch, *(n for s in spatial for n in (s // size, size)), channels)
    x = x.transpose(0, *axes[::2], *axes[1::2], len(axes) + 1)
    return x.reshape(batch, -1, size ** len(spatial) * channels)


def unpatchify(
    x: Float[Array, "batch tokens features"], grid: Sequence[int], size: int
) -> Float[Array, "batch *spatial channels"]:
    """Invert `patchify` for a grid of so many patches of side ``size``."""
    batch, count = len(x), len(grid)
    x = x.reshape(batch, *grid, *(size for _ in grid), -1)
    pairs = (axis for i in range(1, count + 1) for axis in (i, i + count))
    x = x.transpose(0, *pairs, 2 * count + 1)
    return x.reshape(batch, *(n * size for n in grid), -1)
