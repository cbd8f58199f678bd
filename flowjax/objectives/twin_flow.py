"""TwinFlow: any-step training with a fake branch of the same network as its critic."""

import jax
import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.fields import chained
from flowjax.interpolants import Interpolant, Path, sample_path
from flowjax.objectives.bootstrap import alpha_flow
from flowjax.objectives.flow_matching import flow_matching
from flowjax.objectives.penalties import Penalty, clipped, root_mean_square
from flowjax.objectives.velocity_distillation import pushed
from flowjax.row_groups import map_rows, row_layout
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Count,
    PerExample,
    Positive,
    PRNGKey,
    Share,
    State,
    Time,
    VelocityField,
)

_sg = jax.lax.stop_gradient


@checked
def any_step(
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    target: AverageVelocityField | None = None,
    step: Positive = 0.01,
    jumps: Count = 2,
    penalty: Penalty | None = None,
) -> PerExample:
    """Return TwinFlow's base loss, a difference quotient of the semigroup.

    `alpha_flow` with ``alpha = step / (s - t)``: a step along the velocity of the path
    and then ``jumps`` equal jumps of the target to ``s``. The average velocity is off
    the minimum by O(step). The loss is weighed by ``tan(pi (1 - |s - t|) / 2.5) + 1``.

    Args:
        u: the average-velocity field to train.
        path: a batch of points on conditional paths, guided ones if wanted.
        s: destination times [batch].
        target: the field of the jumps, usually the average of the parameters.
        step: length of the first step; rows with ``|s - t| <= step`` regress the path.
        jumps: of the target.
        penalty: from the residual to the loss; None: `root_mean_square` of the residual
            clipped to [-1, 1], the paper's.

    Returns:
        The loss [batch].

    References:
        Cheng et al. 2025, TwinFlow, arXiv:2512.05150.
    """
    gap = s - path.t
    alpha = jnp.minimum(step / jnp.maximum(jnp.abs(gap), step), 1)
    loss = alpha_flow(
        u,
        path,
        s,
        alpha,
        second=chained(u if target is None else target, jumps),
        clip=None,
        penalty=_CLIPPED_ROOT if penalty is None else penalty,
    )
    return (jnp.tan((1 - jnp.abs(gap)) * (jnp.pi / 2.5)) + 1) * loss


_CLIPPED_ROOT: Penalty = clipped(1.0, penalty=root_mean_square)


@checked
def twin_flow(
    key: PRNGKey,
    u: AverageVelocityField,
    path: Path,
    s: Time,
    *,
    interpolant: Interpolant,
    fake: VelocityField | None = None,
    target: AverageVelocityField | None = None,
    step: Positive = 0.01,
    jumps: Count = 2,
    penalty: Penalty | None = None,
    weight: float = 0.5,
    share: Share = 0.25,
) -> PerExample:
    """Return `any_step` plus, on a share of the rows, the two self-adversarial terms.

    On these rows the network draws one-step samples ``y = x0 + u(x0, 0, 1)`` and noises
    them to a time r. Its fake branch learns their velocity by flow matching, and the
    samples are `pushed` against ``clip(fake - u(., r, r))``: towards where the real
    velocity differs from that of the own samples.

    Args:
        key: typed random key.
        u: the average-velocity field to train.
        path: a batch of points on conditional paths.
        s: destination times [batch].
        interpolant: joins fresh noise to the own samples.
        fake: velocity field of the fake branch; None: ``u(x, 2 - r, 2 - r)``, the same
            network at mirrored times.
        target: as in `any_step`.
        step: as in `any_step`.
        jumps: as in `any_step`.
        penalty: of the base residual and of the push, as in `any_step`.
        weight: of the push, as a mean over the rows that bear it.
        share: of the rows that bear the two terms, a simple fraction.

    Returns:
        The loss [batch].

    References:
        Cheng et al. 2025, TwinFlow, arXiv:2512.05150.
    """

    def mirrored(x: State, t: Time, cond: Condition = None, /) -> State:
        return u(x, 2 - t, 2 - t, cond)

    critic = mirrored if fake is None else fake
    key_noise, key_time = jax.random.split(key)
    noise = jax.random.normal(key_noise, path.x.shape, path.x.dtype)
    times = jax.random.uniform(key_time, path.t.shape, path.t.dtype)

    def adversarial(rows: tuple[Path, State, Time]) -> PerExample:
        (path, noise, r), zero = rows, jnp.zeros_like(rows[2])
        own = _sg(path.x0 + u(path.x0, zero, jnp.ones_like(r), path.cond))
        noised = sample_path(interpolant, noise, own, r, path.cond)
        learn = flow_matching(critic, noised, penalty=root_mean_square)
        real = u(noised.x, r, r, path.cond)
        direction = _sg(critic(noised.x, r, path.cond) - real)
        push = _CLIPPED_ROOT if penalty is None else penalty
        moved = pushed(u, path.x0, direction, path.cond, penalty=push)
        # The paper adds the two means; here one mean runs over all rows.
        return learn + weight / share * moved

    base = any_step(u, path, s, target=target, step=step, jumps=jumps, penalty=penalty)
    extra = map_rows(
        adversarial,
        lambda rows: jnp.zeros_like(rows[2]),
        (path, noise, times),
        row_layout(len(path.x), share),
    )
    return base + extra
