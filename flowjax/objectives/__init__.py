"""Objectives: one equation per function, one loss per row.

Every objective takes a field and a `flowjax.interpolants.Path` and returns the loss of
each row [batch]; the training step takes the mean. Parameters are bound to the field
beforehand, so an objective works with any network library or a closed-form field.
"""

from flowjax.objectives.flow_matching import (
    flow_matching,
    likelihood_weight,
    prediction_weight,
)
from flowjax.objectives.mean_flow import mean_flow

__all__ = ["flow_matching", "likelihood_weight", "mean_flow", "prediction_weight"]
