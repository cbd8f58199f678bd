"""The state of a training run: everything that changes from step to step, arrays only.

A plain pytree, so that it can be compiled, donated, sharded and saved without help.
Functions (network, optimiser, loss) stay outside, bound into the step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from flowjax.contracts import checked
from flowjax.training import ema
from flowjax.training.ema import Parameters
from flowjax.typing import PRNGKey


class TrainState(NamedTuple):
    """What `make_step` carries from one optimiser step to the next.

    Attributes:
        step: number of optimiser steps taken, int32 [].
        params: the parameters, any pytree of arrays.
        opt_state: the state of the optimiser.
        ema_params: exponential moving average of ``params``, at least float32.
        key: typed key; it never changes, step n draws from ``fold_in(key, n)``.
    """

    step: Int[Array, ""]
    params: Parameters
    opt_state: optax.OptState
    ema_params: Parameters
    key: PRNGKey


@checked
def init_state(
    key: PRNGKey, params: Parameters, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step; the average starts at ``params``.

    Args:
        key: one typed key (`jax.random.key`), the source of all randomness in training.
        params: the initial parameters, any pytree of arrays.
        optimizer: its state is initialised here.

    Raises:
        ValueError: if ``key`` is not a single typed key.
    """
    params = jax.tree.map(jnp.asarray, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=ema.init(params),
        # A buffer of its own: the caller may go on using the key after the state has
        # been donated.
        key=jnp.copy(key),
    )
