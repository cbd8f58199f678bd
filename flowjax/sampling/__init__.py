"""Samplers: from a field and noise to data, or back.

`few_step` and `restart` jump with an average velocity; `ode` and `sde` integrate a
velocity with the solvers of diffrax; `multistep` runs a solver that is a table of
numbers, from `solvers` or learned (`learned`, `bespoke`), for few evaluations.
`log_density` and `dequantisation` turn a velocity into likelihoods.
"""

from flowjax.sampling import (
    bespoke,
    dequantisation,
    diffusions,
    kernels,
    learned,
    solvers,
    step_choice,
)
from flowjax.sampling.chunks import in_chunks
from flowjax.sampling.few_step import few_step, restart
from flowjax.sampling.flow_turbo import flow_turbo, refiner_loss
from flowjax.sampling.likelihood import (
    end_time_derivative,
    few_step_log_density,
    log_density,
)
from flowjax.sampling.log_det import draw_probes, few_step_log_det, ode_log_det
from flowjax.sampling.multistep import MultistepSolver, multistep, multistep_path
from flowjax.sampling.ode import OdeOptions, OdeStats, ode, ode_at, ode_dense
from flowjax.sampling.sde import sde
from flowjax.sampling.streaming import Stream, stream_start, stream_step
from flowjax.sampling.transitions import (
    Chain,
    sample_chain,
    sample_transition,
    transition_log_density,
)

__all__ = [
    "Chain",
    "MultistepSolver",
    "OdeOptions",
    "OdeStats",
    "Stream",
    "bespoke",
    "dequantisation",
    "diffusions",
    "draw_probes",
    "end_time_derivative",
    "few_step",
    "few_step_log_density",
    "few_step_log_det",
    "flow_turbo",
    "in_chunks",
    "kernels",
    "learned",
    "log_density",
    "multistep",
    "multistep_path",
    "ode",
    "ode_at",
    "ode_dense",
    "ode_log_det",
    "refiner_loss",
    "restart",
    "sample_chain",
    "sample_transition",
    "sde",
    "solvers",
    "step_choice",
    "stream_start",
    "stream_step",
    "transition_log_density",
]
