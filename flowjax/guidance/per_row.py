"""Conditions, scales and intervals given for every row of a batch, or for all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from flowjax.checks import check_condition
from flowjax.contracts import checked
from flowjax.events import flatten_event, over_event
from flowjax.typing import Condition, State


def null_like(cond: Condition, null: Any) -> Condition:
    """Return ``cond`` with the entries that ``null`` names replaced by it.

    Shapes and dtypes stay those of ``cond``, and so do the entries that are not named.

    Raises:
        ValueError: if there is no condition, or ``null`` does not fit it.
    """
    leaves, structure = jax.tree.flatten(cond)
    filled = [
        leaf if value is None else _filled(leaf, value)
        for leaf, value in zip(leaves, _null_values(cond, null), strict=True)
    ]
    return jax.tree.unflatten(structure, filled)


@checked
def is_null(cond: Condition, *, null: Any) -> Bool[Array, "batch"]:
    """Say which rows of a condition mean "none".

    Those that equal ``null`` in every entry that it names; NaN equals NaN. This is how
    a row that `drop_condition` dropped is known, also after the condition has passed
    through a batch, a file or another device. It is exact where no datum can be null: a
    class of its own for labels, NaN for floats. A finite null of floats, an embedding
    of the empty text for instance, stands for every row that holds it, dropped or not:
    nothing that sees the condition can tell them apart.

    Args:
        cond: a pytree with leading axis batch.
        null: the condition that means "none", as in `classifier_free`.

    Raises:
        ValueError: if there is no condition, or ``null`` does not fit it.
    """

    def equal(leaf: Any, value: Any) -> Bool[Array, "batch"]:
        a, b = jnp.asarray(leaf), _filled(leaf, value)
        return flatten_event((a == b) | ((a != a) & (b != b))).all(axis=1)

    pairs = zip(jax.tree.leaves(cond), _null_values(cond, null), strict=True)
    agree = [equal(leaf, value) for leaf, value in pairs if value is not None]
    return jnp.stack(agree).all(axis=0)


def _null_values(cond: Condition, null: Any) -> list[Any]:
    """Return the null of every leaf of ``cond``, None for a leaf that is kept."""
    leaves = jax.tree.leaves(cond)
    if not leaves:
        raise ValueError(f"`cond` must be a condition for guidance; got {cond}")
    check_condition(cond, len(leaves[0]))

    def kept(node: Any) -> bool:
        return node is None

    def spread(value: Any, part: Any) -> list[Any]:
        return [value] * len(jax.tree.leaves(part))

    try:
        named = jax.tree.map(spread, _completed(null, cond), cond, is_leaf=kept)
    except ValueError as error:
        raise ValueError(f"`null` must match the condition: {error}") from error
    values = jax.tree.leaves(named, is_leaf=kept)
    if all(map(kept, values)):
        raise ValueError(f"`null` must name an entry of the condition; got {null}")
    return values


def _completed(null: Any, cond: Condition) -> Any:
    """Return ``null`` with None for every key that only ``cond`` has."""
    if not (isinstance(null, dict) and isinstance(cond, dict)):
        return null
    return dict.fromkeys(cond) | {
        key: _completed(value, cond.get(key)) for key, value in null.items()
    }


def _filled(leaf: Any, value: Any) -> Array:
    """Return ``value`` in the shape and dtype of ``leaf``."""
    dtype, given = jnp.result_type(leaf), jnp.result_type(value)
    whole = jnp.issubdtype(dtype, jnp.integer)
    if whole and not jnp.issubdtype(given, jnp.integer):
        raise ValueError(f"`null` of {dtype} labels must be integer; got {value}")
    if dtype == jnp.bool_ and given != jnp.bool_:
        raise ValueError(f"`null` of flags must be True or False; got {value}")
    try:
        return jnp.broadcast_to(jnp.asarray(value, dtype), jnp.shape(leaf))
    except ValueError as error:
        raise ValueError(
            f"`null` must broadcast against an entry of shape {jnp.shape(leaf)}; "
            f"got shape {jnp.shape(value)}"
        ) from error


def weight(name: str, scale: float | Array, x: State) -> float | Array:
    """Return ``scale`` so that it multiplies ``x``.

    Raises:
        ValueError: if it is an array of another batch.
    """
    if isinstance(scale, float | int):
        return scale
    if scale.ndim and scale.shape != x.shape[:1]:
        raise ValueError(
            f"`{name}` must have shape [batch]=({len(x)},); got {scale.shape}"
        )
    return over_event(jnp.broadcast_to(scale, (len(x),)), x)


def check_interval(interval: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the two ends of ``interval``; those given per row are not checked.

    Raises:
        ValueError: unless ``0 <= low <= high <= 1``.
    """
    low, high = interval
    if isinstance(low, Array) or isinstance(high, Array):
        return low, high
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"`interval` must be (low, high) with 0 <= low <= high <= 1; got {interval}"
        )
    return low, high


def check_number(
    name: str, value: Any, allowed: Callable[[float], bool], text: str
) -> None:
    """Raise ValueError unless ``value`` is a Python number that is ``allowed``."""
    if not isinstance(value, float | int) or not allowed(value):
        raise ValueError(f"`{name}` must be a Python float {text}; got {value}")


def needs_velocity(name: str, rest: tuple[Any, ...]) -> None:
    """Raise ValueError if a field was called with more than ``(x, t, cond)``."""
    if len(rest) > 1:
        raise ValueError(
            f"`{name}` is defined for velocities v(x, t, cond) and was called with a "
            "destination time as well; for an average velocity u give it "
            "`fields.diagonal(u)`"
        )
