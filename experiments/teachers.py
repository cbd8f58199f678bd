"""Teachers: a run folder as a velocity field, and as a source of pairs.

A teacher's pairs are noise and where its ODE takes it. They are made once and kept in
the teacher's folder, so that every student of the same teacher learns from the same.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build, run
from experiments.config import Experiment, Objective
from experiments.members import MEMBERS
from experiments.run import Trained
from flowjax import fields, guidance, sampling, times
from flowjax._typing import VelocityField
from flowjax.data import array_batches


def velocity(trained: Trained, options: Objective) -> VelocityField:
    """Return the teacher's velocity field, guided if so configured.

    Raises:
        ValueError: if guidance is wanted of a teacher without labels.
    """
    v = fields.diagonal(trained.functions(trained.params)["field"])
    if options.teacher_guidance == 1.0:
        return v
    if trained.num_classes is None:
        raise ValueError("guidance needs labels, and the teacher was trained without")
    return guidance.classifier_free(
        v, scale=options.teacher_guidance, null=trained.num_classes
    )


def pairs(folder: Path, options: Objective, *, seed: int) -> dict[str, np.ndarray]:
    """Return ``x0``, ``x1`` and, with classes, ``label`` of the teacher's trajectories.

    The solver takes ``teacher_steps`` steps of the midpoint rule. The pairs are made on
    first use and read from the teacher's folder after that.
    """
    name = f"pairs_{options.pairs}_{options.teacher_steps}_{seed}"
    if options.teacher_guidance != 1.0:
        name += f"_{options.teacher_guidance:g}"
    path = folder / f"{name}.npz"
    if not path.is_file():
        made = _make(run.restore(folder), options, seed)
        temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **made)
        os.replace(temporary, path)
    with np.load(path) as archive:
        return dict(archive)


def _make(trained: Trained, options: Objective, seed: int) -> dict[str, np.ndarray]:
    import diffrax

    count = options.pairs
    key_noise, key_label = jax.random.split(jax.random.key(seed))
    x0 = np.asarray(jax.random.normal(key_noise, (count, *trained.event)))
    made: dict[str, np.ndarray] = {"x0": x0}
    if trained.num_classes is not None:
        labels = jax.random.randint(key_label, (count,), 0, trained.num_classes)
        made["label"] = np.asarray(labels, np.int32)
    grid = times.uniform_grid(options.teacher_steps)

    @jax.jit
    def solve(params: Any, x0: Any, cond: Any) -> Any:
        v = velocity(trained._replace(params=params), options)
        return sampling.ode(v, x0, cond=cond, solver=diffrax.Midpoint(), grid=grid)[0]

    parts = []
    for start in range(0, count, 1000):
        rows = slice(start, start + 1000)
        cond = jnp.asarray(made["label"][rows]) if "label" in made else None
        parts.append(np.asarray(solve(trained.params, jnp.asarray(x0[rows]), cond)))
    made["x1"] = np.concatenate(parts)
    if not np.isfinite(made["x1"]).all():
        raise FloatingPointError("the teacher's trajectories are not all finite")
    return made


def open_data(experiment: Experiment) -> build.Dataset:
    """Open the training data: the set itself, or the teacher's pairs.

    Raises:
        ValueError: if the teacher's examples have another shape than the data's.
        FileNotFoundError: if an image set is not prepared.
    """
    dataset = build.open_data(experiment.data, experiment.training.seed)
    options = experiment.objective
    if not build.MEMBERS[options.name].pairs:
        return dataset
    made = pairs(Path(options.teacher or ""), options, seed=experiment.training.seed)
    if options.longest_pair is not None:
        distance = np.square(made["x1"] - made["x0"]).reshape((len(made["x0"]), -1))
        keep = distance.mean(1) <= options.longest_pair
        made = {name: array[keep] for name, array in made.items()}
    if made["x1"].shape[1:] != dataset.event:
        raise ValueError(
            f"the teacher's examples have shape {made['x1'].shape[1:]}, those of "
            f"{experiment.data.name} {dataset.event}"
        )
    batches = array_batches(
        made, batch_size=experiment.data.batch_size, seed=experiment.training.seed
    )
    return dataset._replace(
        batches=batches,
        draw=lambda key, batch: (batch["x0"], batch["x1"], batch.get("label")),
    )


def load(experiment: Experiment) -> Trained | None:
    """Return the teacher of an experiment, or None.

    Raises:
        ValueError: if the teacher's field leaves no velocity to learn from.
    """
    folder = experiment.objective.teacher
    if folder is None:
        return None
    teacher = run.restore(Path(folder))
    name = teacher.config.objective.name
    if not MEMBERS[name].velocity:
        raise ValueError(f"{name} leaves no velocity for a student; got {folder}")
    return teacher
