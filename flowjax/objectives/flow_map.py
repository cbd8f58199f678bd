"""Flow maps from one off-diagonal identity and the diagonal as its anchor.

``X(x, t, s) = x + (s - t) u(x, t, s)`` obeys, and is determined by ``u(x, t, t) = v``
together with any one of

    Lagrangian   d_s X(x, t, s) = v(X(x, t, s), s)
    Eulerian     d_t X + (v . grad_x) X = 0           (`flowjax.objectives.mean_flow`)
    semigroup    X(x, t, s) = X(X(x, t, m), m, s)     for m between t and s

Without a teacher ``v`` is the network's own diagonal, learned by flow matching on the
rows with s = t; with one, the same residuals distil it.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.fields import diagonal
from flowjax.interpolants import Path
from flowjax.objectives.mean_flow import mean_flow
from flowjax.objectives.penalties import Loss, Terms, mean_square, normalised
from flowjax.objectives.residuals import (
    EulerianStop,
    LagrangianStop,
    anchored,
    eulerian_residual,
    lagrangian_residual,
    semigroup_residual,
)
from flowjax.typing import (
    AnyTime,
    AverageVelocityField,
    Positive,
    Share,
    Time,
    VelocityField,
)


@checked
def lagrangian(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
    share_equal: Share = 0.0,
    velocity: VelocityField | None = None,
    stop: LagrangianStop = "velocity",
) -> Loss:
    """Return the penalty of ``d_s X(x_t, t, s) - v(X, s)`` for every row.

    The derivative runs along the destination alone, one forward-mode pass with the
    tangent ``(0, 0, 1)``: no spatial derivative of the network enters.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch].
        penalty: from the residual to the loss; see `flowjax.objectives.penalties`.
        share_equal: the share of rows with ``s = t`` (`flowjax.times.ordered_pairs`),
            on which ``u(x, t, t)`` regresses ``path.v``. Without a teacher some are
            needed: off the diagonal alone any consistent flow is a solution.
        velocity: the teacher ``v(x, t, cond)``; None: the diagonal of ``u`` (Lagrangian
            self-distillation, LSD).
        stop: what carries no gradient: ``"derivative"`` all but ``u(x, t, s)``, onto
            which the residual is applied (as in Align Your Flow), ``"velocity"`` the
            value ``v(X, s)``, ``"nothing"`` nothing (Lagrangian map distillation, where
            the gradient passes through X into the teacher).

    Returns:
        What the penalty returns, by default the loss [batch].

    Raises:
        ValueError: if ``s`` or ``share_equal`` do not fit or ``stop`` is unknown.

    References:
        Boffi et al. 2024, Flow Map Matching, arXiv:2406.07507, Eq. 8; Boffi et al.
        2025, arXiv:2505.18825 (LSD).
    """
    if velocity is None:
        _need_anchor(share_equal)
    identity = partial(lagrangian_residual, u, velocity=velocity, stop=stop)
    return penalty(anchored(u, path, s, identity, share_equal=share_equal))


@checked
def eulerian(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
    share_equal: Share = 0.0,
    velocity: VelocityField | None = None,
    stop: EulerianStop = "velocity",
) -> Loss:
    """Return `mean_flow` whose velocity is a teacher's or the network's own.

    The residual is ``-(d_t X + (v . grad_x) X)``. Because ``v`` is a marginal velocity
    the gradient may pass through the derivative: with a teacher ``stop="velocity"`` is
    Eulerian map distillation, without one any of the four is Eulerian self-distillation
    (ESD). ``"advection"`` is the gradient of no function, and the truth repels it: an
    error of X descends along ``d_t* (d_t + v . grad_x)``, under which waves of the
    field that are shorter than the way ``v (s - t)`` of a jump grow. It suits fields
    that are smoother than that; on a mixture in one dimension it diverged, where
    ``"velocity"`` and ``"derivative"`` did not.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch].
        penalty: from the residual to the loss.
        share_equal: as in `lagrangian`.
        velocity: the teacher; None: the diagonal of ``u``.
        stop: as in `mean_flow`.

    Returns:
        What the penalty returns, by default the loss [batch].

    Raises:
        ValueError: as `mean_flow`, or without teacher and ``share_equal``.

    References:
        arXiv:2406.07507, Eq. 10; arXiv:2505.18825 (ESD).
    """
    if velocity is None:
        _need_anchor(share_equal)
    return mean_flow(
        u,
        path,
        s,
        penalty=penalty,
        share_equal=share_equal,
        velocity=diagonal(u) if velocity is None else velocity,
        stop=stop,
    )


@checked
def semigroup(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    fraction: float | AnyTime = 0.5,
    penalty: Callable[[Terms], Loss] = mean_square,
    share_equal: Share = 0.0,
    first: AverageVelocityField | None = None,
    second: AverageVelocityField | None = None,
    clip: Positive | None = None,
) -> Loss:
    """Return the penalty of one jump against two, ``u(x, t, s) - sg[two jumps]``.

    The target ``f first(x, t, m) + (1 - f) second(y, m, s)`` is the average velocity of
    two jumps that meet at ``m = t + f (s - t)`` in ``y``
    (`flowjax.fields.compose`); no derivative is taken. With both fields the network
    itself this is progressive self-distillation (PSD), SplitMeanFlow, and on dyadic
    intervals with averaged parameters the shortcut models.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch].
        fraction: ``f``, one number or one per row [batch]; outside [0, 1] the two jumps
            go opposite ways.
        penalty: from the residual to the loss.
        share_equal: as in `lagrangian`; needed unless ``first`` and ``second`` are
            anchored by themselves.
        first: field of the first jump, without gradient; None: ``u``.
        second: field of the second jump, without gradient; None: ``u``.
        clip: bound of the entries of the target.

    Returns:
        What the penalty returns, by default the loss [batch].

    Raises:
        ValueError: if ``s``, ``share_equal`` or ``fraction`` do not fit, or nothing
            anchors the identity.

    References:
        arXiv:2505.18825 (PSD); Guo et al. 2025, SplitMeanFlow, arXiv:2507.16884; Frans
        et al. 2024, Shortcut Models, arXiv:2410.12557.
    """
    if first is None and second is None and share_equal == 0:
        raise ValueError(
            "the diagonal is the anchor of the semigroup: `share_equal` must be "
            "positive unless `first` or `second` is given; got 0"
        )
    fractions = jnp.broadcast_to(jnp.asarray(fraction, path.t.dtype), path.t.shape)

    identity = partial(semigroup_residual, u, first=first, second=second, clip=clip)
    terms = anchored(u, path, s, identity, fractions, share_equal=share_equal)
    return penalty(terms)


@checked
def align_your_flow(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    velocity: VelocityField,
    form: Literal["eulerian", "lagrangian"] = "eulerian",
    warmup: float | Float[Array, ""] = 1.0,
    penalty: Callable[[Terms], Loss] | None = None,
    share_equal: Share = 0.0,
) -> Loss:
    """Distil a teacher with a normalised residual (AYF-EMD, AYF-LMD).

    The residual is that of `eulerian` or `lagrangian`; its gradient passes through
    ``u(x, t, s)`` alone, which makes the step the one of the continuous-time limit of
    flow-map consistency, divided by ``|s - t|``.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch]; `flowjax.times.interval_pairs` has the law of
            the paper.
        velocity: the teacher; autoguided by `flowjax.guidance` if wanted.
        form: which identity.
        warmup: ``r`` in [0, 1), the weight of ``(s - t) du/dt`` (Eulerian only).
        penalty: None: `penalties.normalised` with offset 0.1.
        share_equal: as in `lagrangian`.

    Returns:
        What the penalty returns, by default the loss [batch]. With the normalised
        residual its value says nothing about progress: watch `penalties.diagnosed`.

    Raises:
        ValueError: for an unknown form, or arguments that do not fit.

    References:
        Sabour et al. 2025, Align Your Flow, arXiv:2506.14603.
    """
    if form == "lagrangian":
        residual = partial(lagrangian_residual, stop="derivative")
    else:
        residual = partial(eulerian_residual, derivative_scale=warmup)
    identity = partial(residual, u, velocity=velocity)
    terms = anchored(u, path, s, identity, share_equal=share_equal)
    return cast(Loss, normalised()(terms)) if penalty is None else penalty(terms)


def _need_anchor(share_equal: float) -> None:
    """Raise ValueError where nothing but the diagonal could be the anchor."""
    if share_equal == 0:
        raise ValueError(
            "without a teacher `velocity` the diagonal is the anchor: `share_equal` "
            "must be positive; got 0"
        )
