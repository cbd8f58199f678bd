"""The table of objectives: one line per member, all through the laws of test_members.

A loss is ``(u, path, s, truth) -> [batch]``: the field to train, points with the
conditional or the marginal velocity, destinations, and the closed form for teachers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowjax import analytic, objectives
from flowjax.fields import diagonal, difference_quotient
from flowjax.objectives import penalties


class Truth(NamedTuple):
    """The closed form of one problem."""

    u: Any
    v: Any
    interpolant: Any


class Member(NamedTuple):
    """One objective and what its authors claim for it.

    Attributes:
        loss: ``(u, path, s, truth) -> [batch]``.
        conditional: stationary at the truth under the conditional velocity too.
        to_data: only defined for s = 1.
    """

    loss: Callable[..., Any]
    conditional: bool = False
    to_data: bool = False


def truth_of(mixture, interpolant):
    return Truth(
        analytic.average_velocity(mixture, interpolant),
        analytic.velocity(mixture, interpolant),
        interpolant,
    )


def taught(objective, **options):
    """An objective whose target velocity comes from the exact teacher."""
    return lambda u, path, s, truth: objective(u, path, s, velocity=truth.v, **options)


def by_itself(objective, **options):
    """An objective that takes its velocity from the diagonal of the field itself."""

    def loss(u, path, s, truth):
        # Anchored rows on top of the others: twice the batch, half of it with s = t.
        double = jax.tree.map(
            lambda a: jnp.stack([a, a], 1).reshape(-1, *a.shape[1:]), path
        )
        ends = jnp.stack([path.t, s], 1).ravel()
        both = objective(u, double, ends, share_equal=0.5, **options)
        return both.reshape(-1, 2).mean(1)

    return loss


def mean_flow(**options):
    return lambda u, path, s, truth: objectives.mean_flow(u, path, s, **options)


def log_variance(t, s):
    return 0.3 * t - 0.5 * s


def trigonometric_network(u, sigma_data):
    """The F whose trigonometric field is u."""

    def f(y, t, s, cond=None):
        x = sigma_data * y
        gap = (s - t)[:, None]
        end = x + gap * u(x, t, s, cond)
        angle = jnp.pi / 2 * gap
        return (jnp.cos(angle) * x - end) / (sigma_data * jnp.sin(angle))

    return f


def consistency(u, path, s, truth):
    f = trigonometric_network(u, 1.0)
    return objectives.continuous_consistency(f, path)


MEMBERS = {
    "flow_matching": Member(
        lambda u, path, s, truth: objectives.flow_matching(diagonal(u), path),
        conditional=True,
    ),
    "mean_flow": Member(mean_flow(), conditional=True),
    "mean_flow_two_phases": Member(
        lambda u, path, s, truth: objectives.mean_flow(u, path, s, target=u),
        conditional=True,
    ),
    "mean_flow_learned_weight": Member(
        mean_flow(penalty=penalties.learned(log_variance)), conditional=True
    ),
    "mean_flow_adaptive": Member(mean_flow(penalty=penalties.adaptive(power=1.0))),
    "mean_flow_clipped": Member(mean_flow(penalty=penalties.clipped(0.5))),
    "mean_flow_pseudo_huber": Member(
        mean_flow(penalty=penalties.pseudo_huber(scale=0.1))
    ),
    "mean_flow_warming_up": Member(
        # Only the full derivative has its zero at the average velocity.
        mean_flow(derivative_scale=jnp.float32(1.0)),
        conditional=True,
    ),
    "improved_mean_flow": Member(
        lambda u, path, s, truth: objectives.improved_mean_flow(
            u, diagonal(u), path, s
        ),
        conditional=True,
    ),
    "modular_mean_flow": Member(mean_flow(stop="velocity", gradient_share=0.5)),
    "modular_mean_flow_full": Member(mean_flow(stop="velocity")),
    "decoupled_mean_flow": Member(
        mean_flow(penalty=penalties.logarithmic(log_variance))
    ),
    "bidirectional_mean_flow": Member(
        lambda u, path, s, truth: objectives.bidirectional_mean_flow(u, path, s),
        conditional=True,
    ),
    "alpha_flow_continuous": Member(
        lambda u, path, s, truth: objectives.alpha_flow(u, path, s, 0.0),
        conditional=True,
    ),
    "lagrangian_map_distillation": Member(
        taught(objectives.lagrangian, stop="nothing")
    ),
    "lagrangian_taught": Member(taught(objectives.lagrangian)),
    "lagrangian_self_distillation": Member(by_itself(objectives.lagrangian)),
    "lagrangian_self_distillation_pure": Member(
        by_itself(objectives.lagrangian, stop="nothing")
    ),
    "eulerian_map_distillation": Member(taught(objectives.eulerian, stop="velocity")),
    "eulerian_self_distillation_advection": Member(
        by_itself(objectives.eulerian, stop="advection")
    ),
    "eulerian_self_distillation_velocity": Member(
        by_itself(objectives.eulerian, stop="velocity")
    ),
    "eulerian_self_distillation_tangent": Member(
        by_itself(objectives.eulerian, stop="derivative"), conditional=True
    ),
    "eulerian_self_distillation_pure": Member(
        by_itself(objectives.eulerian, stop="nothing")
    ),
    "progressive_self_distillation": Member(by_itself(objectives.semigroup)),
    "split_mean_flow": Member(by_itself(objectives.semigroup, fraction=0.3)),
    "shortcut": Member(by_itself(partial(objectives.shortcut, clip=None))),
    "align_your_flow_eulerian": Member(taught(objectives.align_your_flow)),
    "align_your_flow_lagrangian": Member(
        taught(objectives.align_your_flow, form="lagrangian")
    ),
    "anchored_consistency": Member(
        lambda u, path, s, truth: objectives.anchored_consistency(u, path),
        to_data=True,
    ),
    "continuous_consistency": Member(consistency, to_data=True),
    "trajectory_distillation": Member(
        lambda u, path, s, truth: objectives.trajectory_distillation(
            u, path, s, velocity=truth.v, trajectory=truth.u
        )
    ),
}
"""Members with a zero at the truth; ``conditional`` ones by expectation alone."""


BIASED = {
    "alpha_flow": lambda step: (
        lambda u, path, s, truth: objectives.alpha_flow(u, path, s, step, clip=None)
    ),
    "any_step": lambda step: (
        lambda u, path, s, truth: objectives.any_step(
            u, path, s, step=step, penalty=penalties.mean_square
        )
    ),
    "velocity_matching": lambda step: (
        lambda u, path, s, truth: objectives.velocity_matching(
            u,
            path,
            velocity=truth.v,
            derivative=partial(difference_quotient, step=step),
        )
    ),
}
"""Members that are off the truth by the order of a step."""
