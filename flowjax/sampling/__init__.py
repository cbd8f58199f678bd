"""Samplers: from a field and noise to data, or back."""

from flowjax.sampling.few_step import few_step, restart
from flowjax.sampling.ode import OdeOptions, OdeStats, ode, ode_at, ode_dense

__all__ = [
    "OdeOptions",
    "OdeStats",
    "few_step",
    "ode",
    "ode_at",
    "ode_dense",
    "restart",
]
