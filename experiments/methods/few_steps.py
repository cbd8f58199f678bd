"""How few steps are taken, where they are not jumps of the flow map."""

import numpy as np

from experiments.methods.base import Functions, Guide
from flowjax import sampling
from flowjax.fields import diagonal, euler_step
from flowjax.interpolants import Interpolant
from flowjax.typing import (
    Condition,
    PRNGKey,
    State,
)


def euler_steps(
    key: PRNGKey,
    functions: Functions,
    guide: Guide,
    x0: State,
    cond: Condition,
    grid: np.ndarray,
    path: Interpolant,
    /,
) -> tuple[State, int]:
    """Take Euler steps along the velocity."""
    u = euler_step(diagonal(guide(functions.u)))
    return sampling.few_step(u, x0, cond=cond, grid=grid), len(grid) - 1


def restarts(
    key: PRNGKey,
    functions: Functions,
    guide: Guide,
    x0: State,
    cond: Condition,
    grid: np.ndarray,
    path: Interpolant,
    /,
) -> tuple[State, int]:
    """Jump to the data and back with fresh noise: the field is defined for s = 1."""
    x = sampling.restart(
        key,
        guide(functions.u),
        x0,
        cond=cond,
        grid=grid,
        gamma=1.0,
        interpolant=path,
    )
    return x, len(grid) - 1
