"""The run folder: where a training leaves what it did, and where it continues from.

config.json        the experiment with all defaults, and the shape of its data
conditions.npz     some conditions of the data, where they are more than labels
metrics.jsonl      one line of metrics per logging interval
checkpoints/       the newest states, written by orbax
loss.png, samples.png, evaluation.json, evaluation.md
tuning.json, tuning.png, sampler.json, likelihood.json: what those scripts found
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array

from experiments.data.forms import decode_example, encode_example
from experiments.engine.experiment import MAY_DIFFER, Experiment, from_dict, to_dict
from experiments.engine.model import Model
from experiments.engine.some_conditions import SomeConditions
from experiments.language.grammar import differences
from flowjax.extras import require
from flowjax.training import Checkpointer, TrainState
from flowjax.typing import PRNGKey, VelocityField


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the whole new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def load(run: Path) -> Model:
    """Read the experiment of a run folder, and what its data look like.

    Raises:
        FileNotFoundError: if the folder holds no configuration.
        ValueError: if it can't be read; the message names the file.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no config.json")
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict):
            raise ValueError("it is no object")
        shape = stored.pop("example", {})
        experiment = from_dict(stored)
        return Model(experiment, decode_example(shape))
    except KeyError as error:
        raise ValueError(f"{path} lacks the data's {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def claim(run: Path, model: Model) -> None:
    """Write the experiment into the folder of a run, new or continued.

    Raises:
        ValueError: if something was trained there under another experiment, or one of
            another version of the code that says what this one does not read.
        FileNotFoundError: if there are checkpoints, but no configuration.
    """
    run.mkdir(parents=True, exist_ok=True)
    if any((run / "checkpoints").glob("[0-9]*")):
        # An option that the code did not have when the run began has its default.
        old, new = (m.experiment.sentence for m in (load(run), model))
        changed = differences(old, new)
        if lines := [
            f"{flag}: {a} -> {b}"
            for flag, (a, b) in changed.items()
            if flag not in MAY_DIFFER
        ]:
            raise ValueError(
                f"{run} holds a run of another experiment; choose another --run "
                "or go back to its values (old -> new):\n  " + "\n  ".join(lines)
            )
    if jax.process_index() == 0:
        stored = {"example": encode_example(model.example), **to_dict(model.experiment)}
        write_atomically(run / "config.json", json.dumps(stored, indent=2) + "\n")


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


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run folder holds.

    Attributes:
        model: the run's experiment and the shape of its data.
        step: optimiser steps taken.
        params: the averaged parameters, to be passed on when compiling.
        state: the whole training state.
        conditions: some conditions of its data.
    """

    model: Model
    step: int
    params: Any
    state: TrainState
    conditions: SomeConditions

    @property
    def experiment(self) -> Experiment:
        """The run's experiment."""
        return self.model.experiment

    def need_velocity(self, purpose: str) -> None:
        """Raise ValueError if the run leaves no velocity."""
        self.model.need_velocity(purpose)

    def velocity(self, params: Any, scale: Any) -> VelocityField:
        """Return the velocity under guidance of a scale, one for all or per row."""
        return self.model.velocity(params, scale)

    def noise(self, key: PRNGKey, count: int) -> tuple[Array, dict[str, Array]]:
        """Draw noise to start from, and conditions where the run has any, by name."""
        key_noise, key_condition = jax.random.split(key)
        return (
            self.model.noise(key_noise, count),
            self.conditions.draw(key_condition, count),
        )


def restore(run: Path) -> Trained:
    """Read the newest intact checkpoint of a run folder; its data stay closed.

    Raises:
        FileNotFoundError: if the folder holds no configuration or no checkpoint.
        ValueError: if the configuration can't be read.
    """
    model = load(run)
    # Abstract leaves on one device: reading needs no memory for a template, and no
    # device of the machine that wrote.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{run} holds no checkpoints yet")
    with Checkpointer(folder, read_only=True) as checkpointer:
        restored = checkpointer.restore(template)
    if restored is None:
        raise FileNotFoundError(f"{run} holds no checkpoints yet")
    state, step = restored
    some = SomeConditions.read(run, model.example)
    return Trained(model, step, state.ema_params, state, some)
