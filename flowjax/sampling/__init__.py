"""Samplers: from a field and noise to data, or back.

`few_step` and `restart` jump with an average velocity; `ode` and `sde` integrate a
velocity with the solvers of diffrax; `multistep` runs a solver that is a table of
numbers, from `solvers` or learned (`solver_search`, `bespoke`), for few evaluations.
"""

from flowjax.sampling import (
    bespoke,
    diffusions,
    kernels,
    solver_search,
    solvers,
    step_choice,
)
from flowjax.sampling.chunks import in_chunks
from flowjax.sampling.few_step import few_step, restart
from flowjax.sampling.flow_turbo import flow_turbo, refiner_loss
from flowjax.sampling.multistep import MultistepSolver, multistep, multistep_path
from flowjax.sampling.ode import OdeStats, ode, ode_at, ode_dense
from flowjax.sampling.sde import sde
from flowjax.sampling.steps import Adaptive
from flowjax.sampling.streaming import Stream, stream_start, stream_step
from flowjax.sampling.transitions import (
    Chain,
    sample_chain,
    sample_transition,
    transition_log_density,
)

__all__ = [
    "Adaptive",
    "Chain",
    "MultistepSolver",
    "OdeStats",
    "Stream",
    "bespoke",
    "diffusions",
    "few_step",
    "flow_turbo",
    "in_chunks",
    "kernels",
    "multistep",
    "multistep_path",
    "ode",
    "ode_at",
    "ode_dense",
    "refiner_loss",
    "restart",
    "sample_chain",
    "sample_transition",
    "sde",
    "solver_search",
    "solvers",
    "step_choice",
    "stream_start",
    "stream_step",
    "transition_log_density",
]
