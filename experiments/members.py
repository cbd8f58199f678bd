"""The objectives that an experiment can name: one entry of `MEMBERS` each.

A member is a loss of a `Batch` on its road, built from `flowjax.objectives`, and the
way its field is sampled. Everything that members share (laws of times, penalty, guided
and taught velocities, target fields) is a method of `Batch`, so that swapping one
member for another is one entry of the configuration.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from experiments import losses, taught_losses
from experiments.batch import Batch, Metrics
from flowjax._typing import PerExample


class Member(NamedTuple):
    """An objective and what it needs.

    Attributes:
        loss: ``batch -> (loss [batch], metrics)``.
        about: one line.
        sampler: how few steps are taken: ``"map"`` jumps along a grid, ``"euler"``
            Euler steps of the velocity, ``"restart"`` jumps to the data and back,
            ``"acceleration"`` from one initial velocity, ``"policy"`` along a policy
            per segment.
        teacher: whether it needs one.
        pairs: whether it learns from a teacher's pairs of noise and data.
        velocity: whether its field has a velocity at every time, ``u(x, t, t)``, for an
            ODE solver to follow.
    """

    loss: Callable[[Batch], tuple[PerExample, Metrics]]
    about: str
    sampler: str = "map"
    teacher: bool = False
    pairs: bool = False
    velocity: bool = True


MEMBERS: dict[str, Member] = {
    "flow_matching": Member(losses.flow_matching, "flow matching", "euler"),
    "reflow": Member(
        losses.flow_matching, "flow matching of a teacher's pairs", "euler", pairs=True
    ),
    "annealing_reflow": Member(
        taught_losses.annealing_reflow,
        "SlimFlow's annealing reflow",
        "euler",
        pairs=True,
    ),
    "mean_flow": Member(losses.mean_flow, "MeanFlow"),
    "dispersive_mean_flow": Member(
        losses.mean_flow, "MeanFlow with dispersed features"
    ),
    "improved_mean_flow": Member(losses.improved_mean_flow, "improved MeanFlow"),
    "modular_mean_flow": Member(losses.modular_mean_flow, "Modular MeanFlow"),
    "decoupled_mean_flow": Member(
        taught_losses.decoupled_mean_flow, "Decoupled MeanFlow"
    ),
    "re_mean_flow": Member(
        taught_losses.re_mean_flow, "Re-MeanFlow, on reflow pairs", pairs=True
    ),
    "alpha_flow": Member(losses.alpha_flow, "AlphaFlow"),
    "split_mean_flow": Member(partial(losses.semigroup, random=True), "SplitMeanFlow"),
    "bidirectional_mean_flow": Member(losses.bidirectional, "BiFM"),
    "shortcut": Member(losses.shortcut, "shortcut model"),
    "lagrangian": Member(losses.lagrangian, "Lagrangian self-distillation"),
    "eulerian": Member(losses.eulerian, "Eulerian self-distillation"),
    "progressive": Member(
        partial(losses.semigroup, random=False), "progressive self-distillation"
    ),
    "snap_flow": Member(losses.snap_flow, "SnapFlow", "restart"),
    "moment_matching": Member(losses.moment_matching, "inductive moment matching"),
    "twin_flow": Member(losses.twin_flow, "TwinFlow"),
    "anchored_consistency": Member(
        losses.anchored_consistency, "flow-anchored consistency", "restart"
    ),
    "continuous_consistency": Member(
        losses.continuous_consistency,
        "continuous-time consistency (sCM)",
        "restart",
        velocity=False,
    ),
    "consistency_flow_matching": Member(
        losses.consistency_flow_matching, "Consistency Flow Matching", "euler"
    ),
    "lagrangian_distillation": Member(
        losses.lagrangian, "Lagrangian map distillation", teacher=True
    ),
    "eulerian_distillation": Member(
        losses.eulerian, "Eulerian map distillation", teacher=True
    ),
    "align_your_flow": Member(
        partial(taught_losses.align_your_flow, form="eulerian"),
        "AYF, Eulerian",
        teacher=True,
    ),
    "align_your_flow_lagrangian": Member(
        partial(taught_losses.align_your_flow, form="lagrangian"),
        "AYF, Lagrangian",
        teacher=True,
    ),
    "trajectory_distillation": Member(
        taught_losses.trajectory, "TraFlow", teacher=True
    ),
    "velocity_matching": Member(
        taught_losses.velocity_matching,
        "MDT-dist",
        "restart",
        teacher=True,
        velocity=False,
    ),
    "flow_guided_distillation": Member(
        taught_losses.flow_guided,
        "SlimFlow, one step",
        "euler",
        teacher=True,
        pairs=True,
        velocity=False,
    ),
    "pi_flow": Member(
        taught_losses.policy_imitation,
        "pi-Flow, Gaussian mixture policy",
        "policy",
        teacher=True,
        velocity=False,
    ),
    "arc_flow": Member(
        taught_losses.policy_imitation,
        "ArcFlow, momentum policy",
        "policy",
        teacher=True,
        velocity=False,
    ),
    "constant_acceleration": Member(
        taught_losses.constant_acceleration,
        "constant acceleration",
        "acceleration",
        pairs=True,
        velocity=False,
    ),
    "self_corrected_distillation": Member(
        taught_losses.self_corrected,
        "self-corrected flow distillation",
        "restart",
        teacher=True,
    ),
}
