"""What a checkpoint stores next to the arrays, as JSON: enough to judge them.

The configuration of the run, name, shape, dtype and checksum of every array, and the
position of every process in the data.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, UInt32

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


class Outdated(ValueError):
    """A record of an earlier version of this code; no damage."""


def seal(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record as text, with a checksum of the text."""
    text = json.dumps(record)
    return {"record": text, "sha256": _digest(text)}


def unseal(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record that `seal` was given.

    Raises:
        Outdated: if it was written before records had a checksum.
        RuntimeError: if it is damaged.
    """
    if stored.keys() == {"config", "leaves", "checksums", "cursors"}:
        raise Outdated(
            "its checkpoints are of an earlier version of this code, without a "
            "checksum of the record; go on with that version, or train again"
        )
    text = stored.get("record")
    if not isinstance(text, str) or stored.get("sha256") != _digest(text):
        raise RuntimeError("the checksum of the record differs")
    return json.loads(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class Survey(NamedTuple):
    """What one pass over the arrays of a state finds.

    Attributes:
        checksums: for every leaf, the sum of its 32-bit words modulo 2^32. Integer
            addition is associative: the sums are computed where the arrays are and
            don't depend on how they are distributed.
        broken: the leaves that hold numbers that are not finite. A scalar of the
            optimiser may be infinite: the best loss so far begins there.
    """

    checksums: dict[str, int]
    broken: list[str]


def survey(state: TrainState) -> Survey:
    """Look at every number of a state once."""
    named = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    bounded = [not n.startswith(".opt_state") or x.ndim > 0 for n, x in named.items()]
    sums, sound = jax.device_get(_survey(list(named.values()), tuple(bounded)))
    return Survey(
        {name: int(value) for name, value in zip(named, sums, strict=True)},
        [name for name, fine in zip(named, sound, strict=True) if not fine],
    )


@partial(jax.jit, static_argnums=1)
def _survey(
    leaves: list[Array], bounded: tuple[bool, ...]
) -> tuple[list[UInt32[Array, ""]], list[Bool[Array, ""]]]:
    sound = [_is_sound(leaf, b) for leaf, b in zip(leaves, bounded, strict=True)]
    return [_sum_of_words(leaf) for leaf in leaves], sound


def _is_sound(x: Array, bounded: bool) -> Bool[Array, ""]:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.array(True)
    return jnp.isfinite(x).all() if bounded else ~jnp.isnan(x).any()


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
