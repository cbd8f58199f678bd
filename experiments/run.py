"""The run folder: where a training leaves what it did, and where it continues from.

config.json        the resolved configuration
metrics.jsonl      one line of metrics per logging interval
checkpoints/       the newest states, written by orbax
loss.png, samples.png, evaluation.json, evaluation.md
tuning.json, tuning.png, sampler.json, likelihood.json: what those scripts found
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import build, config
from experiments.config import Experiment
from flowjax._extra import require
from flowjax.networks import graft
from flowjax.training import Checkpointer, TrainState, init_state


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the whole new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def claim(run: Path, experiment: Experiment) -> None:
    """Write the configuration into the folder of a run, new or continued.

    Raises:
        ValueError: if something was trained there under another configuration, or one
            of another version of the code with entries that this one lacks.
        FileNotFoundError: if there are checkpoints, but no configuration.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / "config.json"
    given = config.to_dict(experiment)
    if any((run / "checkpoints").glob("[0-9]*")):
        # An entry that the code did not have when the run began has its default.
        stored = config.to_dict(config.load(run))
        if lines := _differences(stored, given):
            raise ValueError(
                f"{run} holds a run with another configuration; choose another --run "
                "or go back to its values (old -> new):\n  " + "\n  ".join(lines)
            )
    if jax.process_index() == 0:
        write_atomically(path, json.dumps(given, indent=2) + "\n")


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return ``part.entry: old -> new`` for what may not change in a run."""
    lines = []
    for part, entries in given.items():
        for entry, new in entries.items():
            name, old = f"{part}.{entry}", stored[part][entry]
            free = part in config.MAY_DIFFER or name in config.MAY_DIFFER
            if not free and old != new:
                lines.append(f"{name}: {old} -> {new}")
    return lines


Writer = Callable[[int, Mapping[str, float]], None]


def _tensorboard(folder: Path) -> Writer:
    module = require("tensorboardX", extra="log")
    summary = module.SummaryWriter(str(folder / "tensorboard"))

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            summary.add_scalar(name, value, step)
        summary.flush()

    return write


def _wandb(folder: Path) -> Writer:
    module = require("wandb", extra="log")
    module.init(dir=str(folder), name=folder.name, id=folder.name, resume="allow")
    return lambda step, metrics: module.log(dict(metrics), step=step)


WRITERS: dict[str, Callable[[Path], Writer]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
"""Where metrics can go besides the file, by name; called with the run folder."""


class MetricLog:
    """Appends JSON lines to a file; a continued run drops the lines it repeats."""

    def __init__(
        self, path: Path, *, first_step: int, log_to: Sequence[str] = ()
    ) -> None:
        """Open the log and forget the lines after ``first_step``.

        They were written by a process that died before its next checkpoint. A last
        line that was cut off is forgotten too.

        Args:
            path: the file of JSON lines.
            first_step: the step that the run continues from.
            log_to: names of `WRITERS` to write to as well.

        Raises:
            ImportError: if a writer's package is not installed.
        """
        self._writers = [WRITERS[name](path.parent) for name in log_to]
        self._path = path
        if path.is_file():
            kept = [row for row in read_metrics(path) if row["step"] <= first_step]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; it is on disk when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for writer in self._writers:
            writer(step, metrics)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics file, without a last line that was cut off."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Trained(NamedTuple):
    """What a run folder holds.

    Attributes:
        config: the run's configuration.
        step: optimiser steps taken.
        event: shape of one example.
        num_classes: number of labels, or None.
        functions: ``params -> name -> function``; ``field`` is the average velocity
            ``u(x, t, s, label)``. See `experiments.build.bind`.
        params: the averaged parameters, to be passed on when compiling.
        state: the whole training state.
    """

    config: Experiment
    step: int
    event: tuple[int, ...]
    num_classes: int | None
    functions: Callable[[Any], dict[str, Any]]
    params: Any
    state: TrainState


def restore(run: Path) -> Trained:
    """Read the newest intact checkpoint of a run folder.

    Raises:
        FileNotFoundError: if the folder holds no configuration or no checkpoint.
    """
    experiment = config.load(run)
    dataset = build.open_data(experiment.data, experiment.training.seed)
    modules = build.make_modules(experiment, dataset, need_teacher=False)
    init = make_init(experiment, modules, dataset)
    # Abstract leaves on one device: reading needs no memory for a template, and no
    # device of the machine that wrote.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(init, jax.random.key(0)),
    )
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{run} holds no checkpoints yet")
    with Checkpointer(folder, read_only=True) as checkpointer:
        restored = checkpointer.restore(template)
    if restored is None:
        raise FileNotFoundError(f"{run} holds no checkpoints yet")
    state, step = restored
    return Trained(
        experiment,
        step,
        dataset.event,
        dataset.num_classes,
        partial(build.bind, experiment, modules),
        state.ema_params,
        state,
    )


def make_init(
    experiment: Experiment,
    modules: Any,
    dataset: build.Dataset,
    start: Any = None,
) -> Any:
    """Return ``key -> TrainState``, traceable.

    ``start`` holds a teacher's parameters, copied where names and shapes agree.
    """
    steps = experiment.training.steps
    optimizer = build.make_optimizer(experiment.optimizer, steps)

    def init(key: Any) -> TrainState:
        key_params, key_training = jax.random.split(key)
        params = build.init_parameters(
            modules, key_params, dataset, guidance=experiment.network.guidance
        )
        if start is not None:
            params = {**params, "field": graft(start["field"], params["field"])}
        return init_state(key_training, params, optimizer)

    return init
