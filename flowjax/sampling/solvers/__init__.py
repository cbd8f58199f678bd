"""Solvers as data: from a grid of times to the numbers of a `MultistepSolver`.

Each function takes the grid, n + 1 times that rise or fall strictly inside [0, 1], and
computes in NumPy's float64; `flowjax.sampling.multistep` runs the result. The number of
evaluations of the field is the number of rows of the solver. With N steps:

=====================  ======================  =====
solver                 evaluations             order
=====================  ======================  =====
`euler`                N                       1
`midpoint`             2 N                     2
`heun`, `ralston`      2 N                     2
`rk4`                  4 N                     4
`fireflow`             N + 1                   2
`pseudo_corrector`     N + 1                   2
`adams_bashforth`      N, N + 2, N + 6         2, 3, 4
`dpm_solver`           N                       1, 2
`unipc`                N                       3
=====================  ======================  =====

The orders of the last two hold between times of finite log-SNR. On grids that reach its
infinite ends, t=0 and t=1 of most paths, they are 2 at most.

What is not here does not fit the form: implicit and adaptive methods, which decide from
the values they see (see `flowjax.sampling.ode`); Taylor methods, which take derivatives
of the field; and methods with a second network or with fresh noise.
"""

from flowjax.sampling.solvers.explicit import (
    adams_bashforth,
    chain,
    euler,
    fireflow,
    heun,
    midpoint,
    pseudo_corrector,
    ralston,
    rk4,
    runge_kutta,
)
from flowjax.sampling.solvers.exponential import (
    dpm_solver,
    unipc,
)

__all__ = [
    "adams_bashforth",
    "chain",
    "dpm_solver",
    "euler",
    "fireflow",
    "heun",
    "midpoint",
    "pseudo_corrector",
    "ralston",
    "rk4",
    "runge_kutta",
    "unipc",
]
