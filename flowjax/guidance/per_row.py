"""Conditions, scales and intervals given for every row of a batch, or for all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from flowjax.checks import check_condition
from flowjax.events import flatten_event, over_event
from flowjax.typing import Condition, State


def null_like(cond: Condition, null: Any) -> Condition:
    """Return ``null`` with the structure, the shapes and the dtypes of ``cond``."""
    leaves = jax.tree.leaves(cond)
    if not leaves:
        raise ValueError(f"guidance needs a condition; got cond={cond}")
    check_condition(cond, len(leaves[0]))
    try:
        prefix = jax.tree.broadcast(null, cond)
    except ValueError as error:
        raise ValueError(f"`null` must match the condition: {error}") from error

    def fill(leaf: Any, value: Any) -> Array:
        dtype = jnp.result_type(leaf)
        whole = jnp.issubdtype(dtype, jnp.integer)
        if whole and not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise ValueError(f"`null` of {dtype} labels must be integer; got {value}")
        return jnp.broadcast_to(jnp.asarray(value, dtype), jnp.shape(leaf))

    return jax.tree.map(fill, cond, prefix)


def equal_rows(cond: Condition, other: Condition, batch: int) -> Bool[Array, "batch"]:
    """Say which rows agree in every leaf."""

    def leaf(a: Any, b: Any) -> Bool[Array, "batch"]:
        return flatten_event(jnp.equal(a, b)).all(axis=1)

    agree = jax.tree.leaves(jax.tree.map(leaf, cond, other))
    return jnp.stack(agree).all(axis=0)


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
