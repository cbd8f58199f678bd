"""Large batches in bounded memory: one compiled program, a chunk of rows at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.contracts import checked
from flowjax.typing import Count


@checked
def in_chunks(sample: Callable[[Any], Any], rows: Any, *, chunks: Count) -> Any:
    """Return ``sample(rows)``, computed for ``len / chunks`` rows at a time.

    Only one chunk's activations are alive at once, inside a single `jax.jit`. Chunk j
    holds the rows j, j + chunks, ...: where the rows are sharded over devices and every
    device's share divides by ``chunks``, each device works on its own rows throughout
    and nothing is moved.

    Args:
        sample: maps the pytree of some rows to a pytree, each row by itself. Every leaf
            of its result either has the batch axis first or belongs to the chunk as a
            whole, like the statistics of a solve; the latter must not have a first axis
            as long as a chunk.
        rows: pytree whose leaves all have the leading axis batch: noise, conditions, a
            key per row.
        chunks: number of chunks, a divisor of the batch.

    Returns:
        The result of ``sample`` on all rows; what belongs to a chunk as a whole gets a
        leading axis [chunks].

    Raises:
        ValueError: if the leaves of ``rows`` have no common leading axis, or ``chunks``
            does not divide it.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(rows)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"the leaves of `rows` must have one leading axis; got {sorted(sizes)}"
        )
    ((batch,),) = sizes
    if chunks < 1 or batch % chunks:
        raise ValueError(f"`chunks` must divide the batch {batch}; got {chunks}")
    size = batch // chunks

    def split(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape((size, chunks, *leaf.shape[1:])), 1, 0)

    def join(leaf: Array) -> Array:
        if leaf.shape[1:2] != (size,):
            return leaf
        return jnp.moveaxis(leaf, 0, 1).reshape((batch, *leaf.shape[2:]))

    return jax.tree.map(join, jax.lax.map(sample, jax.tree.map(split, rows)))
