"""Whether a run may go on for longer than it was made for."""

import re
from typing import Any

import jax

from experiments.engine.model import Model
from experiments.engine.road import make_loss, make_prepare
from experiments.engine.teachers import Teacher
from flowjax.data import BatchIterator
from flowjax.training import make_step


def takes_the_same_steps(
    model: Model, steps: int, batches: BatchIterator, teacher: Teacher | None
) -> bool:
    """Say whether the model would take the same steps with another number in all.

    A schedule of the optimiser or of the method may depend on that number. Whether one
    does is seen from the program of a step, not from its name.

    Args:
        model: what is trained.
        steps: the other number of steps.
        batches: the data, which stand where they stood afterwards.
        teacher: whom the model learns from, or None.
    """
    place = batches.get_state()
    batch = next(batches)
    batches.set_state(place)
    experiment = model.experiment.vary(training={"steps": steps})
    other = Model(experiment, model.example)
    return _program(model, batch, teacher) == _program(other, batch, teacher)


def _program(model: Model, batch: Any, teacher: Teacher | None) -> str:
    def step(state: Any, batch: Any, params: Any) -> Any:
        return make_step(
            make_loss(model, teacher, params),
            model.optimizer(),
            ema_decay=model.experiment.ema.build(),
            prepare=make_prepare(model),
        )(state, batch)

    state = jax.eval_shape(model.init, jax.random.key(0))
    params = None if teacher is None else teacher.params
    text = jax.jit(step).lower(state, batch, params).as_text()
    # Names of functions are numbered in the order of their tracing.
    return re.sub(r"@\w+", "@", text)
