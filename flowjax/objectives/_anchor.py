"""The diagonal as the anchor of every identity between average velocities."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowjax._checks import check_time
from flowjax._rows import map_rows, row_layout
from flowjax._typing import AverageVelocityField, Time
from flowjax.interpolants import Path, expand_like
from flowjax.objectives.penalties import Terms


def anchored(
    u: AverageVelocityField | None,
    path: Path,
    s: Time,
    off_diagonal: Callable[[Path, Time, Any], Terms],
    *,
    share_equal: float,
    extra: Any = None,
) -> Terms:
    """Return ``u(x, t, t) - v`` on the rows with s = t, another identity elsewhere.

    The rows with ``s = t`` are those of `flowjax.times.ordered_pairs`; a row that
    should be one of them and is not gets NaN.

    Args:
        u: the average-velocity field to train; None leaves the rows with s = t out: a
            residual of zero.
        path: a batch of points on conditional paths.
        s: destination times [batch].
        off_diagonal: ``(path, s, extra) -> terms`` of the other rows.
        share_equal: the share of the rows with ``s = t``.
        extra: a pytree with leading axis batch, handed on row by row.

    Raises:
        ValueError: if ``s`` is not [batch] in [0, 1] or ``share_equal`` does not fit
            the batch.
    """
    check_time("s", s, len(path.x))
    return map_rows(
        lambda rows: _diagonal(u, *rows[:2]),
        lambda rows: off_diagonal(*rows),
        (path, s, extra),
        row_layout(len(path.x), share_equal),
    )


def _diagonal(u: AverageVelocityField | None, path: Path, s: Time) -> Terms:
    residual = jnp.zeros_like(path.x)
    if u is not None:
        residual = u(path.x, path.t, path.t, path.cond) - jax.lax.stop_gradient(path.v)
    residual = jnp.where(expand_like(s == path.t, path.x), residual, jnp.nan)
    return Terms(residual, path.t, s, jnp.zeros_like(residual))
