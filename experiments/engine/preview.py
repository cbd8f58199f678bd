"""Pictures of samples in the course of training."""

import warnings
from pathlib import Path

import numpy as np

from experiments.engine.model import Guidance, Model
from experiments.engine.run import Trained
from experiments.engine.samples import draw
from experiments.engine.sampling import Jumps
from experiments.engine.some_conditions import SomeConditions
from experiments.language.sentence import use
from flowjax.times import uniform_grid
from flowjax.training import TrainState

COUNT = 40


def draw_preview(model: Model, state: TrainState, run: Path) -> None:
    """Draw samples of the averaged parameters into ``previews/STEP.png``.

    The noise is the same at every step. Samples that are not finite are no picture, and
    no reason to end the training; a warning says so.
    """
    options, step = model.experiment.evaluation.build(), int(state.step)
    some = SomeConditions.read(run, model.example)
    sampler = Jumps(grid=use(uniform_grid, steps=min(options.steps, default=1)))
    try:
        x = draw(
            Trained(model, step, state.ema_params, state, some),
            sampler,
            some.rows(np.arange(COUNT)),
            count=COUNT,
            seed=options.seed,
            batch_size=COUNT,
            guide=Guidance(options.guidance),
        ).x
    except FloatingPointError as error:
        warnings.warn(f"no picture of step {step}: {error}", stacklevel=2)
        return
    path = run / "previews" / f"{step:08}.png"
    path.parent.mkdir(exist_ok=True)
    model.example.form.draw_samples(f"step {step}", x, path)
