"""Training: a pure step, its state and average, its compilation, its checkpoints.

The road is ``init_state`` and ``make_step``, compiled by ``jit_over_mesh`` or
``pmap_over_devices``, saved by ``Checkpointer``. Needs the extra ``train`` (optax,
orbax); the core of flowjax does not.
"""

from flowjax.extras import require

require("optax", extra="train")

from flowjax.training import ema
from flowjax.training.checkpoint import Checkpointer
from flowjax.training.parallel import (
    Executor,
    StepFactory,
    data_mesh,
    jit_over_mesh,
    pmap_over_devices,
)
from flowjax.training.state import TrainState, init_state
from flowjax.training.step import LossFunction, Step, batch_size, make_step

__all__ = [
    "Checkpointer",
    "Executor",
    "LossFunction",
    "Step",
    "StepFactory",
    "TrainState",
    "batch_size",
    "data_mesh",
    "ema",
    "init_state",
    "jit_over_mesh",
    "make_step",
    "pmap_over_devices",
]
