"""What a checkpoint stores next to the arrays, as JSON: enough to judge them.

The configuration of the run, name, shape, dtype and checksum of every array, and the
position of every process in the data.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from flowjax.training.state import TrainState


@runtime_checkable
class Resumable(Protocol):
    """An iterator that can say where it stands and go there: grain's, or one's own."""

    def get_state(self) -> Any:
        """Return the position, as UTF-8 bytes or as what JSON can represent."""
        ...

    def set_state(self, state: Any, /) -> None:
        """Continue from a position that `get_state` returned."""
        ...


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` as JSON gives it back (tuples as lists, keys as strings).

    Raises:
        ValueError: if JSON can't represent it.
    """
    try:
        return json.loads(json.dumps(dict(config)))
    except TypeError as error:
        raise ValueError(f"`config` must be representable in JSON: {error}") from error


def config_differences(
    stored: dict[str, Any] | None, given: dict[str, Any], may_differ: Collection[str]
) -> list[str]:
    """Return ``"a.b: old -> new"`` for every entry that differs and may not."""
    old, new = dict(_flatten(stored or {})), dict(_flatten(given))
    return [
        f"{name}: {_shown(old, name)} -> {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if _shown(old, name) != _shown(new, name)
        and not any(f"{name}.".startswith(f"{free}.") for free in may_differ)
    ]


def describe(state: TrainState) -> dict[str, list[Any]]:
    """Return ``{path of a leaf: [shape, dtype]}``; abstract leaves will do."""
    return {
        jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def check_storable(state: TrainState) -> None:
    """Raise ValueError for arrays without elements, which orbax can't store.

    Orbax would notice after its threads have started, and they would keep the failed
    process from ending for minutes.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.size == 0:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} of shape {leaf.shape} is empty: "
                "an array without elements can't be saved"
            )


def leaf_differences(stored: Mapping[str, Any], template: TrainState) -> list[str]:
    """Return ``"path: old -> new"`` where names, shapes or dtypes differ."""
    wanted = describe(template)
    return [
        f"state{name}: {stored.get(name, 'absent')} -> {wanted.get(name, 'absent')}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]


def checksums(state: TrainState) -> dict[str, int]:
    """Return, for every leaf, the sum of its 32-bit words modulo 2^32.

    Integer addition is associative: the sums are computed where the arrays are and
    don't depend on how they are distributed.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    sums = jax.device_get(_sums(jax.tree.leaves(state)))
    return {
        jax.tree_util.keystr(path): int(value)
        for path, value in zip(paths, sums, strict=True)
    }


@jax.jit
def _sums(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_sum_of_words(leaf) for leaf in leaves]


def _sum_of_words(x: Array) -> UInt32[Array, ""]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, word)
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested dictionaries as ``("a.b", value)``."""
    if not isinstance(value, dict) or (name and not value):
        yield name, value
        return
    for key, entry in value.items():
        yield from _flatten(entry, f"{name}.{key}" if name else key)


def _shown(entries: Mapping[str, Any], name: str) -> str:
    return json.dumps(entries[name]) if name in entries else "absent"


def cursors(data_iterator: Resumable | None) -> list[str] | None:
    """Return the position of every process, in the order of the processes."""
    if data_iterator is None:
        return None
    position = data_iterator.get_state()
    text = position if isinstance(position, bytes) else json.dumps(position).encode()
    if jax.process_count() == 1:
        return [text.decode()]
    size = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    rows = multihost_utils.process_allgather(
        np.frombuffer(text.ljust(size), dtype=np.uint8)
    )
    return [bytes(row).decode().rstrip() for row in np.asarray(rows)]


def own_cursor(stored: list[str] | None, data_iterator: Resumable | None) -> Any:
    """Return the position of this process, as ``data_iterator`` wants it.

    Raises:
        ValueError: if there is not exactly one position for each process.
    """
    if data_iterator is None:
        return None
    count = len(stored or ())
    if stored is None or count != jax.process_count():
        raise ValueError(
            f"`data_iterator` needs a position for each of {jax.process_count()} "
            f"processes; the checkpoint holds {count}"
        )
    text = stored[jax.process_index()]
    takes_bytes = isinstance(data_iterator.get_state(), bytes)
    return text.encode() if takes_bytes else json.loads(text)
