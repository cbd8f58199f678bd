"""Trace-time checks of what is given to a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from flowjax.typing import Condition


def check_times(t: Array, s: Array, batch: int) -> None:
    """Raise ValueError unless ``t`` and ``s`` are floating and [batch].

    Their values are not restricted: a network is a function on the whole line, and some
    methods use times past 1 as a flag.
    """
    for name, time in (("t", t), ("s", s)):
        if not jnp.issubdtype(time.dtype, jnp.floating):
            raise ValueError(f"`{name}` must have a floating dtype; got {time.dtype}")
        if time.shape != (batch,):
            raise ValueError(
                f"`{name}` must have shape [batch]=({batch},); got {time.shape}"
            )


def named_conditions(cond: Condition) -> Mapping[str, Any]:
    """Return the conditions of a network by name; labels alone are ``"label"``."""
    if cond is None:
        return {}
    return cond if isinstance(cond, Mapping) else {"label": cond}


def check_network_condition(
    cond: Condition,
    event: tuple[int, ...],
    batch: int,
    *,
    num_classes: int | None,
    vector_features: int = 0,
    array_channels: int = 0,
    guidance: bool = False,
) -> None:
    """Raise ValueError unless ``cond`` is what a network conditions on.

    That is None, or a dict of what the network's options name; labels may stand alone:

    - ``"label"``: labels [batch], of a network with ``num_classes``.
    - ``"vector"``: numbers [batch, vector_features].
    - ``"array"``: numbers [batch, *spatial, array_channels], beside the state's
      channels.
    - ``"given"``: bool [batch]; where False, the row has neither vector nor array, and
      what these hold is not read. Without it all rows have both.
    - ``"scale"``: guidance scales [batch], positive; 1 is none. With ``"interval"``,
      first and last time that is guided [batch, 2], required with ``guidance``.

    What is left out is not given for any row. As any pytree it passes
    `flowjax.guidance`: a ``null`` for it is for instance ``{"label": 10, "vector": 0.0,
    "given": False}``, which no row of data equals.

    Raises:
        ValueError: if keys, shapes or dtypes are others, or a known scale is not
            positive; for the labels see `check_labels`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if vector_features:
        shapes["vector"] = (batch, vector_features)
    if array_channels:
        shapes["array"] = (batch, *event[:-1], array_channels)
    if guidance:
        shapes |= {"scale": (batch,), "interval": (batch, 2)}
    if not shapes:
        return check_labels(cond, batch, num_classes)
    known = [*(["label"] if num_classes is not None else []), *shapes]
    if vector_features or array_channels:
        known.append("given")
    needed = ["scale", "interval"] if guidance else []
    if cond is None and not needed:
        return
    if not isinstance(cond, Mapping) or not (
        set(needed) <= set(cond) <= {*known, "label"}  # for which see below
    ):
        got = sorted(cond) if isinstance(cond, Mapping) else type(cond)
        raise ValueError(
            f"`cond` must be a dict of {', '.join(map(repr, known))} for this network"
            + (", 'scale' and 'interval' required" if needed else "")
            + f"; got {got}"
        )
    check_labels(cond.get("label"), batch, num_classes, name="cond['label']")
    for key in shapes.keys() & cond.keys():
        _check_entry(key, cond[key], shapes[key], jnp.floating)
    if "given" in cond:
        _check_entry("given", cond["given"], (batch,), jnp.bool_)
    scale = cond.get("scale", 1.0)
    if not isinstance(scale, Tracer) and not (np.asarray(scale) > 0).all():
        raise ValueError(f"`cond['scale']` must be positive; got {np.min(scale)}")


def _check_entry(key: str, value: Any, shape: tuple[int, ...], kind: Any) -> None:
    if not isinstance(value, jax.Array | np.ndarray) or value.shape != shape:
        raise ValueError(
            f"`cond['{key}']` must have shape {shape}; got {jnp.shape(value)}"
        )
    if not jnp.issubdtype(value.dtype, kind):
        wanted = "a floating dtype" if kind is jnp.floating else "dtype bool"
        raise ValueError(f"`cond['{key}']` must have {wanted}; got {value.dtype}")


def check_labels(
    cond: Condition, batch: int, num_classes: int | None, *, name: str = "cond"
) -> None:
    """Raise ValueError unless ``cond`` is None or integer labels that the table holds.

    Raises:
        ValueError: if the network has no classes, or the labels are not an integer
            array [batch] or, where known, lie outside [0, num_classes].
    """
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1 or None; got {num_classes}")
    if cond is None:
        return
    if num_classes is None:
        raise ValueError(
            f"`{name}` needs a network with `num_classes`; this one has None"
        )
    if not isinstance(cond, jax.Array | np.ndarray):
        raise ValueError(f"`{name}` must be an array of labels; got {type(cond)}")
    if not jnp.issubdtype(cond.dtype, jnp.integer):
        raise ValueError(f"`{name}` must have an integer dtype; got {cond.dtype}")
    if cond.shape != (batch,):
        raise ValueError(
            f"`{name}` must have shape [batch]=({batch},); got {cond.shape}"
        )
    if isinstance(cond, Tracer) or not batch:
        return
    labels = np.asarray(cond)
    if labels.min() < 0 or labels.max() > num_classes:
        raise ValueError(
            f"`{name}` must lie in [0, {num_classes}] ({num_classes} is the null "
            f"class); got values from {labels.min()} to {labels.max()}"
        )


def check_input(
    x: Array, axes: Sequence[str], params: Any, *, features: int, name: str
) -> None:
    """Raise ValueError unless ``x`` is floating, ``[axes]``, and fits ``params``.

    Args:
        x: the state.
        axes: the names of its axes; ``*name`` stands for any number of them.
        params: the module's parameters, empty while it is being initialised.
        features: the input features of the first layer that ``x`` implies.
        name: the name of the first layer.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`x` must have a floating dtype; got {x.dtype}")
    if x.ndim < len([axis for axis in axes if not axis.startswith("*")]):
        raise ValueError(f"`x` must have shape [{', '.join(axes)}]; got {x.shape}")
    if name in params and params[name]["kernel"].shape[0] != features:
        expected = params[name]["kernel"].shape[0]
        raise ValueError(
            f"`x` must give {expected} features to the first layer, as when the "
            f"parameters were made; got {features} from shape {x.shape}"
        )
