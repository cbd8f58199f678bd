"""The losses of members that only exist with a teacher.

They learn from its velocity or its samples, or start from its parameters. Those that
take a teacher's velocity as one of several are in `experiments.losses`.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.batch import Batch
from experiments.losses import flow_matching
from flowjax import fields, objectives, times
from flowjax._typing import PRNGKey, Time
from flowjax.fields import diagonal
from flowjax.objectives import adversarial, penalties, schedules


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


def re_mean_flow(b: Batch) -> Any:
    """MeanFlow on the pairs of a teacher."""
    path, s = b.draw(partial(times.reflow_pairs, share_equal=b.options.share_equal))
    return objectives.mean_flow(b.u, path, s, target=b.nested_target, **b.shared)


def annealing_reflow(b: Batch) -> Any:
    """Flow matching of pairs whose noise is less and less mixed with fresh noise."""
    beta = 1 - schedules.warmup(b.config.training.steps)(b.step)
    x0 = objectives.anneal_source(b.draw_key("noise"), b.pairs.x0, beta)
    return flow_matching(dataclasses.replace(b, pairs=b.pairs._replace(x0=x0)))


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
