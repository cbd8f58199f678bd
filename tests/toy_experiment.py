"""A labelled data set on the line, its exact fields, and experiments on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Conditions, Example
from experiments.data.base import Conditional
from experiments.data.forms import PointForm
from experiments.engine.experiment import Experiment, Training, with_method
from experiments.engine.model import Model
from experiments.engine.optimizers import adamw
from experiments.engine.teachers import Teacher
from experiments.language.sentence import Use, use
from experiments.methods import METHODS
from experiments.methods.base import Functions
from experiments.methods.mean_flow import MeanFlow
from flowjax.data import index_batches
from flowjax.networks import MLP

MEAN, STD = 0.7, 0.5
"""The data are N(MEAN, STD^2), whatever the label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line(Conditional):
    """Gaussian data with a label out of three that says nothing."""

    def example(self):
        return Example((1,), Conditions(3), PointForm())

    def batches(self, *, batch_size, seed, process_index=None, process_count=None):
        return index_batches(
            batch_size=batch_size,
            process_index=process_index,
            process_count=process_count,
        )

    def read(self, key, batch):
        rows = len(batch["index"])
        x = MEAN + STD * jax.random.normal(key, (rows, 1))
        return x, jnp.arange(rows) % 3


def sgd(*, learning_rate: float = 0.1):
    """Gradient descent: Adam of optax promotes dtypes, which the tests forbid.

    Args:
        learning_rate: its rate.
    """
    return optax.sgd(learning_rate)


def velocity(x, t, cond=None, /):
    """The marginal velocity of the linear path."""
    a, b = t[:, None], (1 - t)[:, None]
    variance = a**2 * STD**2 + b**2
    return MEAN + (a * STD**2 - b) / variance * (x - a * MEAN)


def average_velocity(x, t, s, cond=None, /):
    """The average of that velocity along its flow."""

    def std(time):
        return jnp.sqrt(time**2 * STD**2 + (1 - time) ** 2)

    # (std(s) / std(t) - 1) / (s - t), with the difference of squares divided out.
    slope = (t + s) * (STD**2 + 1) - 2
    rate = (slope / (std(t) * (std(s) + std(t))))[:, None]
    return MEAN + rate * (x - t[:, None] * MEAN)


def straight_velocity(x, t, cond=None, /):
    """The velocity of the straight lines between noise and its end."""
    x0 = (x - t[:, None] * MEAN) / (1 - t + t * STD)[:, None]
    return MEAN + (STD - 1) * x0


def pairs(seed, guidance, count=64):
    """Noise and where the flow takes it, with labels."""
    rng = np.random.default_rng(seed)
    x0 = rng.normal(size=(count, 1)).astype(np.float32)
    x1 = guidance * (MEAN + STD * x0)
    return {"x0": x0, "x1": x1, "label": np.arange(count, dtype=np.int32) % 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """The exact velocity as a teacher.

    Attributes:
        guidance: a factor, to see that it is read.
    """

    guidance: float = 1.0

    def check(self):
        """There is nothing that could be missing."""

    def open(self, restore, data, path):
        """Return the teacher."""
        return Teacher(
            {"factor": jnp.ones(())},
            lambda params, scale: (
                lambda x, t, cond=None: (
                    params["factor"]
                    * jnp.broadcast_to(self.guidance * scale, (len(x),))[:, None]
                    * velocity(x, t)
                )
            ),
            lambda seed: pairs(seed, self.guidance),
        )


def experiment_of(name, **parts):
    """A small experiment of a method on the line."""
    base = Experiment(
        data=use(Line),
        method=use(MeanFlow),
        network=use(MLP, width=8, depth=2),
        optimizer=use(adamw),
        training=use(
            Training, steps=400, batch_size=16, log_every=1, checkpoint_every=1
        ),
    )
    experiment = with_method(base, METHODS[name], teacher="none")
    if "teacher" in experiment.method and isinstance(experiment.method["teacher"], Use):
        experiment = experiment.vary(method={"teacher": use(Known)})
    experiment = experiment.vary(training={"start_from": None}, optimizer=use(sgd))
    return experiment.vary(**parts)


def model_of(experiment):
    """The model of an experiment, and its teacher."""
    data = experiment.data.build()
    model = Model(experiment, data.example())
    teacher = None
    if "teacher" in experiment.method and experiment.method["teacher"] is not None:
        teacher = experiment.method["teacher"].build().open(None, data, model.path)
    return model, teacher


def exact_functions(u, v):
    """Functions whose field is given, without any module."""

    def features(x, t, s, cond=None):
        return x

    return Functions({}, u, u, v, features)
