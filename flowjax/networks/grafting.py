"""Start a larger network from the parameters of a smaller one."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

LeafPath: TypeAlias = tuple[Any, ...]


def graft(params: Any, onto: Any, *, skip: Sequence[str] = ()) -> Any:
    """Return ``onto`` with the leaves of ``params`` in place of those of the same path.

    A network with more heads, conditions or times than another one holds the other's
    parameters under the same names. For example: a velocity network (``times="start"``)
    grafted onto one with ``zero_init_duration`` or ``decoder_depth`` is the old network
    at ``s = t``.

    Args:
        params: the trained parameters, with the outermost key as `init` returns them.
        onto: freshly initialised parameters of the larger network, with the same
            outermost key. Under `jax.jit` those that are replaced are not computed.
        skip: names of modules or parameters that are not copied: what the larger
            network lacks, or has in another shape and is to learn anew.

    Returns:
        A tree of the structure, shapes and dtypes of ``onto``; `ungrafted` names the
        leaves that stayed fresh.

    Raises:
        ValueError: if a leaf of ``params`` has no counterpart in ``onto``, or one of
            another shape.
    """
    old, new = _leaves(params, skip), _leaves(onto, ())
    if unknown := [path for path in old if path not in new]:
        raise ValueError(
            "`onto` must hold every leaf of `params` that is not in `skip`; it lacks "
            + ", ".join(map(keystr, unknown))
        )
    for path, leaf in old.items():
        if jnp.shape(leaf) != jnp.shape(new[path]):
            raise ValueError(
                f"`params{keystr(path)}` must have the shape {jnp.shape(new[path])} "
                f"that it has in `onto`; got {jnp.shape(leaf)}"
            )

    def choose(path: LeafPath, fresh: Any) -> Any:
        return jnp.asarray(old[path], fresh.dtype) if path in old else fresh

    return jax.tree_util.tree_map_with_path(choose, onto)


def ungrafted(params: Any, onto: Any, *, skip: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the paths of the leaves of ``onto`` that `graft` leaves as they are.

    Args:
        params: as in `graft`; arrays or their shapes.
        onto: as in `graft`; arrays or their shapes.
        skip: as in `graft`.

    Returns:
        Paths such as ``"['params']['conditioning']['duration']['Dense_0']['bias']"``.
    """
    old = _leaves(params, skip)
    return tuple(keystr(path) for path in _leaves(onto, ()) if path not in old)


def _leaves(tree: Any, skip: Sequence[str]) -> dict[LeafPath, Any]:
    """Return ``path -> leaf`` of the leaves with none of ``skip`` in their path."""
    return {
        path: leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not any(getattr(entry, "key", None) in skip for entry in path)
    }
