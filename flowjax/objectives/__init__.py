"""Objectives: one equation per function, one loss per row.

Every objective takes a field and a `flowjax.interpolants.Path` and returns the loss of
each row [batch]; the training step takes the mean. Parameters are bound to the field
beforehand, so an objective works with any network library or a closed-form field.

All are built from four residuals (the velocity on the diagonal, the Eulerian and the
Lagrangian derivative, the semigroup) and a penalty that clips, normalises, weighs and
reduces the residual. The velocity in a target is that of the path, or a field handed
in: a teacher's, a guided one, the network's own, a closed form.
"""

from flowjax.objectives import adversarial, features, penalties, schedules
from flowjax.objectives.bootstrap import (
    alpha_flow,
    consistency_flow_matching,
    shortcut,
    snap_flow,
)
from flowjax.objectives.consistency import (
    anchored_consistency,
    clipped_cosine,
    continuous_consistency,
    trigonometric_field,
)
from flowjax.objectives.distillation import (
    anneal_source,
    flow_guided_distillation,
    pushed,
    self_corrected_distillation,
    trajectory_distillation,
    velocity_distillation,
    velocity_matching,
)
from flowjax.objectives.flow_map import (
    align_your_flow,
    eulerian,
    lagrangian,
    semigroup,
)
from flowjax.objectives.flow_matching import (
    flow_matching,
    likelihood_weight,
    prediction_weight,
)
from flowjax.objectives.mean_flow import (
    bidirectional_mean_flow,
    improved_mean_flow,
    mean_flow,
)
from flowjax.objectives.moments import (
    grouped_times,
    inductive_moment_matching,
    moment_weight,
)
from flowjax.objectives.policy import (
    accelerated_line,
    constant_acceleration,
    constant_acceleration_field,
    constant_acceleration_velocity,
    policy_imitation,
    segment_pairs,
)
from flowjax.objectives.twin_flow import any_step, twin_flow

__all__ = [
    "accelerated_line",
    "adversarial",
    "align_your_flow",
    "alpha_flow",
    "anchored_consistency",
    "anneal_source",
    "any_step",
    "bidirectional_mean_flow",
    "clipped_cosine",
    "consistency_flow_matching",
    "constant_acceleration",
    "constant_acceleration_field",
    "constant_acceleration_velocity",
    "continuous_consistency",
    "eulerian",
    "features",
    "flow_guided_distillation",
    "flow_matching",
    "grouped_times",
    "improved_mean_flow",
    "inductive_moment_matching",
    "lagrangian",
    "likelihood_weight",
    "mean_flow",
    "moment_weight",
    "penalties",
    "policy_imitation",
    "prediction_weight",
    "pushed",
    "schedules",
    "segment_pairs",
    "self_corrected_distillation",
    "semigroup",
    "shortcut",
    "snap_flow",
    "trajectory_distillation",
    "trigonometric_field",
    "twin_flow",
    "velocity_distillation",
    "velocity_matching",
]
