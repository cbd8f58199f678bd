"""Fields: from one description of a flow to another.

Conversions between the things a network may predict (velocity, clean data, noise,
score), between average and instantaneous velocities, and the derivatives that
objectives and likelihoods need. Transformers take a field and return a field.
"""

from flowjax.fields.average import (
    chained,
    compose,
    diagonal,
    euler_step,
    flow_map,
    trigonometric_field,
)
from flowjax.fields.derivatives import (
    TotalDerivative,
    destination_derivative,
    difference_quotient,
    total_derivative,
)
from flowjax.fields.divergence import (
    divergence,
    hutchinson_divergence,
    velocity_and_divergence,
)
from flowjax.fields.predictions import (
    Prediction,
    convert,
    reparameterize,
)

__all__ = [
    "Prediction",
    "TotalDerivative",
    "chained",
    "compose",
    "convert",
    "destination_derivative",
    "diagonal",
    "difference_quotient",
    "divergence",
    "euler_step",
    "flow_map",
    "hutchinson_divergence",
    "reparameterize",
    "total_derivative",
    "trigonometric_field",
    "velocity_and_divergence",
]
