"""Likelihoods: how probable data are under a flow, in nats or bits per dimension.

`log_density` follows the ODE back to the source and `few_step_log_density` a few jumps;
`ode_log_det` and `few_step_log_det` give the change of volume alone, in either
direction of time. `dequantisation` bounds the probability of discrete data, such as
pixels.
"""

from flowjax.likelihood import dequantisation
from flowjax.likelihood.density import (
    LogDensity,
    end_time_derivative,
    few_step_log_density,
    log_density,
    standard_normal,
)
from flowjax.likelihood.log_det import (
    Probes,
    draw_probes,
    few_step_log_det,
    ode_log_det,
)

__all__ = [
    "LogDensity",
    "Probes",
    "dequantisation",
    "draw_probes",
    "end_time_derivative",
    "few_step_log_density",
    "few_step_log_det",
    "log_density",
    "ode_log_det",
    "standard_normal",
]
