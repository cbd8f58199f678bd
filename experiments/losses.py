"""The losses of the members: a `Batch` and an objective of `flowjax.objectives`."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.batch import Batch
from flowjax import fields, objectives, times
from flowjax._typing import PRNGKey, Time
from flowjax.fields import diagonal
from flowjax.objectives import adversarial, moments, penalties, schedules


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


def decoupled_mean_flow(b: Batch) -> Any:
    """Flow matching and MeanFlow, each on the whole batch, under logarithms."""
    logarithm = penalties.logarithmic(b.modules.get("log_variance"))
    match = b.second().one_time()
    first = objectives.flow_matching(diagonal(b.u), match, penalty=logarithm)
    path, s = b.draw(
        partial(
            times.ordered_pairs,
            sampler=partial(times.logit_normal, mean=-0.4),
            second=partial(times.logit_normal, mean=1.2),
            share_equal=0.0,
        )
    )
    second = objectives.mean_flow(
        b.u, path, s, penalty=penalties.diagnosed(logarithm), target=b.nested_target
    )
    return penalties.plus(second, first)


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


def re_mean_flow(b: Batch) -> Any:
    """MeanFlow on the pairs of a teacher."""
    path, s = b.draw(partial(times.reflow_pairs, share_equal=b.options.share_equal))
    return objectives.mean_flow(b.u, path, s, target=b.nested_target, **b.shared)


def annealing_reflow(b: Batch) -> Any:
    """Flow matching of pairs whose noise is less and less mixed with fresh noise."""
    beta = 1 - schedules.warmup(b.config.training.steps)(b.step)
    x0 = objectives.anneal_source(b.draw_key("noise"), b.pairs.x0, beta)
    return flow_matching(dataclasses.replace(b, pairs=b.pairs._replace(x0=x0)))


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


def lagrangian(b: Batch, **options: Any) -> Any:
    """The derivative in the destination against the velocity there."""
    path, s = b.ordered()
    return objectives.lagrangian(
        b.u, path, s, velocity=b.teacher, **b.shared, **options
    )


def eulerian(b: Batch, **options: Any) -> Any:
    """The derivative in the start against the velocity there."""
    path, s = b.ordered()
    return objectives.eulerian(b.u, path, s, velocity=b.teacher, **b.shared, **options)


def align_your_flow(b: Batch, form: Any) -> Any:
    """Align Your Flow's tangent, normalised, of a velocity or its teacher."""
    path, s = b.draw(times.interval_pairs)
    penalty = penalties.diagnosed(penalties.normalised(offset=0.1))
    return objectives.align_your_flow(
        b.u,
        path,
        s,
        velocity=b.teacher,
        form=form,
        warmup=jnp.minimum(b.warmup, 0.99),
        penalty=penalty,
    )


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


def trajectory(b: Batch) -> Any:
    """One jump against a teacher's Euler steps."""
    path, s = b.ordered()
    solver = fields.chained(fields.euler(b.teacher), b.options.teacher_steps)
    return objectives.trajectory_distillation(
        b.u,
        path,
        s,
        velocity=b.teacher,
        trajectory=solver,
        target=b.target,
        penalty=b.penalty,
    )


def velocity_matching(b: Batch) -> Any:
    """MDT-dist: marginal velocities matched, and a push of densities."""
    o = b.options
    derivative = partial(fields.difference_quotient, step=o.step)

    def earlier(key: PRNGKey, batch: int, /) -> Time:
        return (1 - o.step) * b.law(key, batch)

    path, _ = b.draw(times.to_data(earlier))
    loss = objectives.velocity_matching(
        b.u, path, velocity=b.teacher, derivative=derivative, penalty=b.penalty
    )
    if not o.second_weight:
        return loss
    x0, x1, cond = b.pairs
    push = objectives.velocity_distillation(
        b.u,
        x0,
        jax.random.normal(b.draw_key("noise"), x1.shape, x1.dtype),
        earlier(b.draw_key("second"), len(x1)),
        cond,
        velocity=b.teacher,
        interpolant=b.interpolant,
        derivative=derivative,
        penalty=b.plain_penalty,
    )
    return penalties.plus(loss, push, weight=o.second_weight)


def flow_guided(b: Batch) -> Any:
    """SlimFlow: the pair, and a step of the student's finished by the teacher."""
    fraction = times.uniform(b.draw_key("fraction"), len(b.pairs.x1), low=0.2, high=0.8)
    return objectives.flow_guided_distillation(
        diagonal(b.u),
        b.one_time(),
        fraction,
        velocity=b.teacher,
        weight=b.options.second_weight,
        penalty=b.penalty,
    )


def self_corrected(b: Batch) -> Any:
    """SCFlow, with a discriminator where `adversarial_weight` asks for one."""
    path = b.one_time()
    v = diagonal(b.u)
    loss = objectives.self_corrected_distillation(
        b.draw_key("fraction"),
        v,
        path,
        velocity=b.teacher,
        target=diagonal(b.target),
        interpolant=b.interpolant,
    )
    if not b.options.adversarial_weight:
        return loss, {}
    x0, x1, cond = b.pairs
    own = x0 + v(x0, jnp.zeros_like(path.t), cond)
    judge = b.modules["discriminator"]
    deceive = adversarial.generator_loss(b.still["discriminator"], own, cond)
    # Its own parameters, so that both sides descend in one optimiser step.
    discern = adversarial.discriminator_loss(judge, x1, own, cond)
    discern += adversarial.gradient_penalty(judge, x1, cond) / 2
    return loss + b.options.adversarial_weight * deceive + discern, {
        "discriminator": discern
    }


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


def policy_imitation(b: Batch) -> Any:
    """From the starts of one, two and four equal segments all the way to the data."""
    quarter = times.uniform(b.draw_key("fraction"), len(b.pairs.x1))
    path = b.at(jnp.floor(4 * quarter) / 4)
    return objectives.policy_imitation(
        b.draw_key("times"),
        b.modules["policy"],
        path,
        jnp.ones_like(path.t),
        velocity=b.teacher,
        states=b.options.states,
        substeps=32,
        teacher_ratio=1 - b.warmup,
        penalty=b.penalty,
    )


def constant_acceleration(b: Batch) -> Any:
    """Both stages at once; no gradient of the second reaches the first."""
    path = b.one_time()
    first = objectives.constant_acceleration_velocity(
        b.modules["velocity"], path, penalty=b.penalty
    )
    second = objectives.constant_acceleration(
        b.modules["acceleration"],
        path,
        velocity=b.still["velocity"],
        penalty=b.plain_penalty,
    )
    return penalties.plus(first, second)
