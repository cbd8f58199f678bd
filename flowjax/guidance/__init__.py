"""Guidance: sharpen a conditional field, or steer it towards what a function prefers.

Everything here goes from field to field. At sampling time `classifier_free`,
`autoguidance` and `residual` move away from another field by a rule of
`flowjax.guidance.rules`, `classifier` adds a gradient. `manifold_projection` and
`flow_chef` change the state before a step: they return an average velocity, whose call
``u(x, t, s, cond)`` knows the step, for `sampling.few_step`. At training time
`drop_condition` teaches a network both fields (`is_null` knows the rows that it
dropped), and `guided_velocity` puts the guidance
inside the target, so that the trained average velocity is guided at the price of one
evaluation.
"""

from flowjax.guidance import rules
from flowjax.guidance.at_sampling import (
    autoguidance,
    classifier_free,
    residual,
    zero_start,
)
from flowjax.guidance.at_training import draw_guidance, drop_condition, guided_velocity
from flowjax.guidance.manifold import anderson, manifold_projection
from flowjax.guidance.per_row import is_null
from flowjax.guidance.rules import Rule
from flowjax.guidance.steering import classifier, flow_chef, rectif_id

__all__ = [
    "Rule",
    "anderson",
    "autoguidance",
    "classifier",
    "classifier_free",
    "draw_guidance",
    "drop_condition",
    "flow_chef",
    "guided_velocity",
    "is_null",
    "manifold_projection",
    "rectif_id",
    "residual",
    "rules",
    "zero_start",
]
