"""The grids, solvers, diffusions and rules of guidance that scripts know by name."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from flowjax import times
from flowjax.guidance import Rule, rules
from flowjax.interpolants import Interpolant
from flowjax.sampling import diffusions, solvers
from flowjax.sampling.diffusions import Diffusion
from flowjax.sampling.multistep import MultistepSolver

GRIDS: dict[str, Callable[[int], np.ndarray]] = {
    "uniform": times.uniform_grid,
    "shift 2": partial(times.shifted_grid, shift=2.0),
    "shift 1/2": partial(times.shifted_grid, shift=0.5),
    "power 2": partial(times.power_grid, power=2.0),
    "circular": times.circular_grid,
    "log-SNR": times.log_snr_grid,
    "EDM": times.edm_grid,
}
"""Name -> (steps -> times)."""


class Solver(NamedTuple):
    """A family of table solvers.

    Attributes:
        make: from a grid to the table.
        per_step: evaluations per step of the grid.
        beyond: evaluations beyond those.
        needs_path: whether ``make`` takes the interpolant as well.
    """

    make: Callable[..., MultistepSolver]
    per_step: int = 1
    beyond: int = 0
    needs_path: bool = False

    def on(self, grid: np.ndarray, path: Interpolant) -> MultistepSolver:
        """Return the table for a grid of a run's path."""
        return self.make(grid, **({"interpolant": path} if self.needs_path else {}))


SOLVERS: dict[str, Solver] = {
    "euler": Solver(solvers.euler),
    "midpoint": Solver(solvers.midpoint, 2),
    "heun": Solver(solvers.heun, 2),
    "ralston": Solver(solvers.ralston, 2),
    "rk4": Solver(solvers.rk4, 4),
    "fireflow": Solver(solvers.fireflow, 1, 1),
    "pseudo-corrector": Solver(solvers.pseudo_corrector, 1, 1),
    "adams-bashforth 2": Solver(solvers.adams_bashforth),
    "adams-bashforth 3": Solver(partial(solvers.adams_bashforth, order=3), 1, 2),
    "dpm-solver": Solver(solvers.dpm_solver, needs_path=True),
    "unipc": Solver(solvers.unipc, needs_path=True),
}

DIFFUSIONS: dict[str, Callable[[], Diffusion]] = {
    "sigma": diffusions.sigma,
    "linear": diffusions.linear,
    "memoryless": diffusions.memoryless,
    "decreasing": diffusions.decreasing,
    "increasing-decreasing": diffusions.increasing_decreasing,
    "quartic": diffusions.quartic,
    "flow-grpo": diffusions.flow_grpo,
}

RULES: dict[str, Rule] = {
    "extrapolation": rules.extrapolation,
    "optimal-scale": rules.optimal_scale,
    "rescaled": rules.rescaled(),
}

GridName = Literal[
    "uniform", "shift 2", "shift 1/2", "power 2", "circular", "log-SNR", "EDM"
]
MethodName = Literal[
    "jumps",
    "ode",
    "sde",
    "euler",
    "midpoint",
    "heun",
    "ralston",
    "rk4",
    "fireflow",
    "pseudo-corrector",
    "adams-bashforth 2",
    "adams-bashforth 3",
    "dpm-solver",
    "unipc",
]
DiffusionName = Literal[
    "sigma",
    "linear",
    "memoryless",
    "decreasing",
    "increasing-decreasing",
    "quartic",
    "flow-grpo",
]
RuleName = Literal["extrapolation", "optimal-scale", "rescaled"]


class Guidance(NamedTuple):
    """How sampling is guided.

    Attributes:
        scale: classifier-free guidance scale; 1 is none.
        rule: one of `RULES`.
        interval: times to guide at.
    """

    scale: float = 1.0
    rule: RuleName = "extrapolation"
    interval: tuple[float, float] = (0.0, 1.0)

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `guidance.classifier_free`."""
        rule = RULES[self.rule]
        return {"scale": self.scale, "rule": rule, "interval": self.interval}
