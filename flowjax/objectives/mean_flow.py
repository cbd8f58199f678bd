"""MeanFlow: learn the average velocity from its differential identity."""

import jax
import jax.numpy as jnp

from flowjax._checks import check_time
from flowjax._rows import map_rows, row_layout
from flowjax._typing import AverageVelocityField, PerExample, State, Time
from flowjax.fields import total_derivative
from flowjax.interpolants import Path, expand_like
from flowjax.objectives._residual import adaptive_weight, mean_square


def mean_flow(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    share_equal: float = 0.0,
    weight_power: float = 0.0,
    weight_offset: float = 1e-2,
) -> PerExample:
    """Return ``w |u(x_t, t, s) - sg[v + (s - t) du/dt]|^2 / dim`` for every row.

    ``du/dt = (v . grad_x) u + d_t u`` is one forward-mode pass along ``(v, 1, 0)`` in
    ``(x, t, s)``; ``sg`` stops the gradient. On rows with ``s = t`` the target is ``v``
    and the loss is flow matching of the diagonal ``u(x, t, t)``.

    ``v`` is ``path.v``: the conditional velocity, or whatever the caller puts there
    with ``path._replace(v=...)`` (guided, from a teacher, marginal). The paper writes
    ``u = v - (t - r) du/dt`` on the clock ``1 - t``.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch], on either side of ``path.t``.
        share_equal: the share of rows with ``s = t`` laid out as by
            `flowjax.times.ordered_pairs`. These rows are spared the derivative, which
            changes the cost but not the value. Rows that break this promise get NaN.
            The default 0 is right for every ``s``.
        weight_power: ``p`` of the weight ``w = sg[(|residual|^2 + c)^-p]``. 0 is
            unbiased. With a *conditional* velocity, ``p > 0`` weighs the residuals of
            one (x, t) unequally and moves the minimiser away from the mean: use it for
            images, where the squared norm concentrates, not in a few dimensions.
        weight_offset: ``c`` of that weight, in units of the squared norm of the event.

    Returns:
        The loss [batch]: a mean over the event, so that power 0 on rows with ``s = t``
        is exactly `flowjax.objectives.flow_matching`.

    Raises:
        ValueError: if ``s`` is not [batch] in [0, 1] or ``share_equal`` does not fit
            the batch.

    References:
        Geng et al. 2025, Mean Flows for One-step Generative Modeling, arXiv:2505.13447,
        Eq. 9-11 and 22.
    """
    batch, dimension = len(path.x), path.x[0].size
    check_time("s", s, batch)
    layout = row_layout(batch, share_equal)
    error = map_rows(
        lambda rows: mean_square(_equal_residual(u, *rows)),
        lambda rows: mean_square(_residual(u, *rows)),
        (path, s),
        layout,
    )
    return error * adaptive_weight(
        error, dimension, power=weight_power, offset=weight_offset
    )


def _residual(u: AverageVelocityField, path: Path, s: Time) -> State:
    """Return ``u - sg[v + (s - t) du/dt]``."""
    prediction, derivative = total_derivative(u, path.x, path.t, s, path.v, path.cond)
    target = path.v + expand_like(s - path.t, path.x).astype(path.x.dtype) * derivative
    return prediction - jax.lax.stop_gradient(target)


def _equal_residual(u: AverageVelocityField, path: Path, s: Time) -> State:
    """Return ``u(x, t, t) - sg[v]``, NaN on rows where s is not t after all."""
    residual = u(path.x, path.t, path.t, path.cond) - jax.lax.stop_gradient(path.v)
    return jnp.where(expand_like(s == path.t, path.x), residual, jnp.nan)
