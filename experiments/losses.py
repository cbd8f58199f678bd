"""The losses of the members: a `Batch` and an objective of `flowjax.objectives`.

Those of members that only exist with a teacher: `experiments.taught_losses`.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.batch import Batch
from flowjax import objectives, times
from flowjax.fields import diagonal
from flowjax.objectives import moments, penalties


def flow_matching(b: Batch) -> Any:
    """The diagonal alone, against the conditional velocity."""
    return objectives.flow_matching(diagonal(b.u), b.one_time(), penalty=b.penalty)


def mean_flow(b: Batch, **options: Any) -> Any:
    """MeanFlow, with the spread of features where `dispersion` asks for it."""
    path, s = b.ordered()
    loss = objectives.mean_flow(
        b.u,
        path,
        s,
        target=b.nested_target,
        derivative_scale=b.warmup if b.options.warmup else 1.0,
        **b.shared,
        **options,
    )
    if not b.options.dispersion:
        return loss
    spread = objectives.features.infonce_relative(
        b.modules["features"](path.x, path.t, s, path.cond)
    )
    return penalties.plus(loss, spread, weight=b.options.dispersion)


def improved_mean_flow(b: Batch) -> Any:
    """MeanFlow along the network's own second head."""
    path, s = b.ordered()
    v = b.modules["velocity"]
    return objectives.improved_mean_flow(
        b.u, v, path, s, target=b.nested_target, **b.shared
    )


def modular_mean_flow(b: Batch) -> Any:
    """MeanFlow whose gradient through the target grows with the warm-up."""
    path, s = b.ordered()
    # A marginal velocity: with the conditional one the minimiser would be another.
    return objectives.mean_flow(
        b.u,
        path,
        s,
        velocity=b.teacher or diagonal(b.u),
        stop="velocity",
        gradient_share=b.warmup,
        **b.shared,
    )


def alpha_flow(b: Batch) -> Any:
    """From flow matching's target to MeanFlow's, as its schedule says."""
    path, s = b.draw(
        partial(
            times.ordered_pairs,
            sampler=b.law,
            share_equal=b.options.share_equal,
            equal="single",
        )
    )
    clip = b.options.target_clip
    return objectives.alpha_flow(b.u, path, s, b.decay(), clip=clip, **b.shared)


def bidirectional(b: Batch) -> Any:
    """MeanFlow of intervals of either sign, and their round trip."""
    ordered = partial(
        times.ordered_pairs, sampler=b.law, share_equal=b.options.share_equal
    )
    path, s = b.draw(times.either_direction(ordered))
    return objectives.bidirectional_mean_flow(
        b.u, path, s, weight=b.options.second_weight * b.warmup, **b.shared
    )


def semigroup(b: Batch, *, random: bool) -> Any:
    """Two jumps against one, split at the middle or anywhere."""
    path, s = b.ordered()
    key = b.draw_key("fraction")
    fraction = jax.random.uniform(key, path.t.shape) if random else 0.5
    return objectives.semigroup(
        b.u, path, s, fraction=fraction, first=b.target, second=b.target, **b.shared
    )


def shortcut(b: Batch) -> Any:
    """Two jumps of half the dyadic step against one."""
    path, s = b.draw(partial(times.dyadic_pairs, share_equal=b.options.share_equal))
    return objectives.shortcut(
        b.u, path, s, target=b.target, clip=b.options.target_clip, **b.shared
    )


def lagrangian(b: Batch) -> Any:
    """The derivative in the destination against the velocity there.

    No gradient passes through a teacher's velocity: with it (Lagrangian map
    distillation as published) the one-step Fréchet distance on the digits was 15.6
    instead of 6.1.
    """
    path, s = b.ordered()
    return objectives.lagrangian(b.u, path, s, velocity=b.teacher, **b.shared)


def eulerian(b: Batch) -> Any:
    """The derivative in the start against the velocity there."""
    path, s = b.ordered()
    return objectives.eulerian(b.u, path, s, velocity=b.teacher, **b.shared)


def snap_flow(b: Batch) -> Any:
    """Flow matching, and the one step against the diagonal's two Euler steps."""
    return objectives.snap_flow(
        b.u, b.one_time(), weight=b.options.second_weight, penalty=b.penalty
    )


def anchored_consistency(b: Batch) -> Any:
    """The jump to the data, anchored by flow matching or a teacher."""
    path = b.one_time()
    if b.teacher is not None:
        path = path._replace(v=b.teacher(path.x, path.t, path.cond))
    plain = b.plain_penalty
    if b.options.clip is None and b.teacher is not None:
        plain = objectives.clipped_cosine
    return objectives.anchored_consistency(
        b.u, path, penalty=penalties.diagnosed(plain), target=b.nested_target
    )


def continuous_consistency(b: Batch) -> Any:
    """Continuous consistency (sCM) in TrigFlow's coordinates, of data or a teacher."""
    path = b.one_time()
    if b.teacher is not None:
        path = path._replace(v=b.teacher(path.x, path.t, path.cond))
    return objectives.continuous_consistency(
        b.modules["network"], path, warmup=b.warmup, penalty=b.penalty
    )


def consistency_flow_matching(b: Batch) -> Any:
    """Consistency of velocity within each of the segments."""
    return objectives.consistency_flow_matching(
        diagonal(b.u),
        b.one_time(),
        segments=b.options.segments,
        weight=b.options.second_weight,
        penalty=b.penalty,
    )


def twin_flow(b: Batch) -> Any:
    """Twin trajectories: the network's own samples as a second flow."""
    path, s = b.draw(times.any_step_pairs)
    loss = objectives.twin_flow(
        b.draw_key("noise"),
        b.u,
        path,
        s,
        interpolant=b.interpolant,
        target=b.target,
        step=b.options.step,
        weight=b.options.second_weight,
    )
    return loss, {}


def moment_matching(b: Batch) -> Any:
    """IMM: the moments of groups that jump to one time from two."""
    group = b.options.group
    if b.pairs.cond is not None:
        # A group should share its label: neighbours in the order of labels mostly do.
        order = jnp.argsort(b.pairs.cond)
        pairs = jax.tree.map(lambda leaf: leaf[order], b.pairs)
        b = dataclasses.replace(b, pairs=pairs)
    t, q, s = moments.grouped_times(
        b.draw_key("times"), len(b.pairs.x1), group=group, gap=10.0
    )
    loss = moments.inductive_moment_matching(
        b.u,
        b.at(t),
        b.at(q),
        s,
        group=group,
        target=b.target,
        weight=moments.moment_weight(b.interpolant),
    )
    return loss, {}
