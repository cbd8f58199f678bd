"""Objectives: one equation per function, one loss per row.

Every objective takes a field and a `flowjax.interpolants.Path` and returns the loss of
each row [batch]; the training step takes the mean. Parameters are bound to the field
beforehand, so an objective works with any network library or a closed-form field.

All are ``penalty(residual(...))``: the residual of an identity (`residuals`: the
velocity on the diagonal, the Eulerian and the Lagrangian derivative, the semigroup) and
a penalty that clips, normalises, weighs and reduces it (`penalties`). The velocity in a
target is that of the path, or a field handed in: a teacher's, a guided one, the
network's own, a closed form.
"""

from flowjax.objectives import adversarial, features, penalties, residuals, schedules
from flowjax.objectives.bootstrap import (
    alpha_flow,
    consistency_flow_matching,
    shortcut,
    snap_flow,
)
from flowjax.objectives.consistency import (
    anchored_consistency,
    continuous_consistency,
)
from flowjax.objectives.constant_acceleration import (
    constant_acceleration,
    constant_acceleration_field,
    constant_acceleration_velocity,
)
from flowjax.objectives.distillation import (
    flow_guided_distillation,
    self_corrected_distillation,
    trajectory_distillation,
)
from flowjax.objectives.flow_map import (
    align_your_flow,
    eulerian,
    lagrangian,
    semigroup,
)
from flowjax.objectives.flow_matching import flow_matching
from flowjax.objectives.mean_flow import (
    bidirectional_mean_flow,
    improved_mean_flow,
    mean_flow,
)
from flowjax.objectives.moments import inductive_moment_matching
from flowjax.objectives.policy_imitation import policy_imitation
from flowjax.objectives.twin_flow import any_step, twin_flow
from flowjax.objectives.velocity_distillation import (
    pushed,
    velocity_distillation,
    velocity_matching,
)

__all__ = [
    "adversarial",
    "align_your_flow",
    "alpha_flow",
    "anchored_consistency",
    "any_step",
    "bidirectional_mean_flow",
    "consistency_flow_matching",
    "constant_acceleration",
    "constant_acceleration_field",
    "constant_acceleration_velocity",
    "continuous_consistency",
    "eulerian",
    "features",
    "flow_guided_distillation",
    "flow_matching",
    "improved_mean_flow",
    "inductive_moment_matching",
    "lagrangian",
    "mean_flow",
    "penalties",
    "policy_imitation",
    "pushed",
    "residuals",
    "schedules",
    "self_corrected_distillation",
    "semigroup",
    "shortcut",
    "snap_flow",
    "trajectory_distillation",
    "twin_flow",
    "velocity_distillation",
    "velocity_matching",
]
