"""A static split of the rows of a batch into two groups, safe under sharding.

MeanFlow needs a derivative only on the rows with s != t. Which rows those are must be
known when the program is compiled, or no work is saved; and each device must own its
share of both groups, or splitting would move data between devices. So the rows are
viewed as ``[batch / period, period]`` and split along the second axis: a batch sharded
over its first axis stays where it is.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

Tree = TypeVar("Tree")
Result = TypeVar("Result")


class RowLayout(NamedTuple):
    """In every ``period`` consecutive rows, the first ``first`` are the first group."""

    first: int
    period: int


def row_layout(batch: int, share: float) -> RowLayout:
    """Return the layout whose first group holds ``share`` of the ``batch`` rows.

    Raises:
        ValueError: if ``share`` is outside [0, 1], is no fraction with a denominator of
            at most 64, or its denominator does not divide ``batch``.
    """
    if isinstance(share, Tracer):
        raise ValueError(
            "`share_equal` must be known before tracing, as it decides shapes; got a "
            "traced number"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"`share_equal` must lie in [0, 1]; got {share}")
    fraction = Fraction(share).limit_denominator(64)
    if abs(float(fraction) - share) > 1e-6:
        raise ValueError(
            f"`share_equal` must be a fraction with a denominator of at most 64; "
            f"got {share}"
        )
    if batch % fraction.denominator:
        raise ValueError(
            f"`share_equal`={fraction} needs a batch that is a multiple of "
            f"{fraction.denominator}; got {batch}"
        )
    return RowLayout(fraction.numerator, fraction.denominator)


def in_first_group(layout: RowLayout, batch: int) -> Array:
    """Return a boolean mask [batch] of the rows of the first group."""
    return jnp.arange(batch) % layout.period < layout.first


def map_rows(
    first: Callable[[Tree], Result],
    second: Callable[[Tree], Result],
    tree: Tree,
    layout: RowLayout,
) -> Result:
    """Apply ``first`` and ``second`` to the rows of their group, in the rows' order.

    Args:
        first: maps the rows of the first group to a pytree of arrays [rows, ...].
        second: maps the others; an empty group is never evaluated.
        tree: arrays [batch, ...].
        layout: which rows belong to which group.

    Returns:
        The results of all rows, each leaf [batch, ...].
    """
    if layout.first == 0:
        return second(tree)
    if layout.first == layout.period:
        return first(tree)

    def rows(columns: slice) -> Tree:
        def leaf(a: Array) -> Array:
            view = a.reshape((-1, layout.period, *a.shape[1:]))[:, columns]
            return view.reshape((-1, *a.shape[1:]))

        return jax.tree.map(leaf, tree)

    def join(a: Array, b: Array) -> Array:
        groups = len(a) // layout.first
        views = [part.reshape((groups, -1, *part.shape[1:])) for part in (a, b)]
        return jnp.concatenate(views, axis=1).reshape((-1, *a.shape[1:]))

    return jax.tree.map(
        join,
        first(rows(slice(None, layout.first))),
        second(rows(slice(layout.first, None))),
    )


def count_groups(batch: int, group: int) -> int:
    """Return how many groups a batch has, or raise ValueError."""
    if group < 2 or batch % group:
        raise ValueError(
            f"`group` must be at least 2 and divide the batch of {batch}; got {group}"
        )
    return batch // group
