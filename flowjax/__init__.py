"""flowjax: flow matching and average-velocity models as pure JAX functions.

Time runs from 0 (noise, ``x0 ~ source``) to 1 (data, ``x1``). The road of a batch is

    couplings -> times -> interpolants.sample_path -> objectives.<name> -> loss [batch]

and that of a sample ``field -> guidance, fields -> sampling.<name>(field, x0)``. A
field is a plain callable ``v(x, t, cond)`` or ``u(x, t, s, cond)``.

`flowjax.networks` and `flowjax.training` need the extra ``train``, image sets in
`flowjax.data` the extra ``data``; they are imported by name and not from here.
"""

from flowjax import (
    analytic,
    couplings,
    events,
    fields,
    guidance,
    interpolants,
    likelihood,
    metrics,
    objectives,
    policies,
    sampling,
    sources,
    times,
    typing,
    weights,
)
from flowjax.typing import AverageVelocityField, VelocityField

__version__ = "0.1.0"

__all__ = [
    "AverageVelocityField",
    "VelocityField",
    "analytic",
    "couplings",
    "events",
    "fields",
    "guidance",
    "interpolants",
    "likelihood",
    "metrics",
    "objectives",
    "policies",
    "sampling",
    "sources",
    "times",
    "typing",
    "weights",
]
