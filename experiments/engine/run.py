"""The run folder: where a training leaves what it did, and where it continues from.

config.json        the experiment with all defaults, and the shape of its data
conditions.npz     some conditions of the data, where they are more than labels
record.json        every start: command, code, versions, machine
metrics.jsonl      one line of metrics per logging interval
checkpoints/       the newest states, written by orbax
previews/          samples at the checkpoints, where they are asked for
lock               who is training here
loss.png, samples.png, evaluation.json, evaluation.md
tuning.json, tuning.png, sampler.json, likelihood.json: what those scripts found
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import msgspec
from jaxtyping import Array

from experiments.data.example_record import decode_example, encode_example
from experiments.engine.experiment import Experiment, from_dict, to_dict
from experiments.engine.files import read_object, write_atomically
from experiments.engine.model import Model
from experiments.engine.some_conditions import SomeConditions
from experiments.language.grammar import differences, leaves, nodes
from experiments.language.sentence import Use
from flowjax.training import Checkpointer, TrainState
from flowjax.typing import PRNGKey, VelocityField

LARGEST = 2**20
"""A size that no network here comes near to; with such a one nothing would ever end."""


def load(run: Path) -> Model:
    """Read the experiment of a run folder, and what its data look like.

    Raises:
        FileNotFoundError: if the folder holds no configuration.
        ValueError: if it can't be read; the message names the file.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no config.json")
    stored = read_object(path)
    try:
        shape, _ = stored.pop("example", {}), stored.pop("fingerprint", "")
        experiment = from_dict(stored)
        shape = msgspec.convert(shape, dict[str, Any])
        model = Model(experiment, decode_example(shape))
        _check(model)
        return model
    except KeyError as error:
        raise ValueError(f"{path} lacks the data's {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def _check(model: Model) -> None:
    """Raise ValueError for a value that is out of range; opens no data."""
    for leaf in leaves(model.experiment.sentence):
        sized = leaf.place[0] in ("network", "method") and isinstance(leaf.value, int)
        if sized and leaf.value > LARGEST:
            raise ValueError(f"{leaf.flag} is absurd: {leaf.value}")
    for name, part in vars(model.experiment).items():
        if name not in ("network", "optimizer"):  # they need what the road gives
            part.build()
    # Abstract arrays need no memory. A network looks at its sizes when it is called.
    jax.eval_shape(model.init, jax.random.key(0))


def claim(
    run: Path, model: Model, same_steps: Callable[[int], bool] = lambda _: False
) -> None:
    """Write the experiment into the folder of a run, new or continued.

    Args:
        run: the folder.
        model: what is to be trained there.
        same_steps: whether the model would take the same steps with another number of
            them in all, so that a run of that number may be extended.

    Raises:
        ValueError: if something was trained there under another experiment or on data
            that looked otherwise, or one of another version of the code that says what
            this one does not read.
        FileNotFoundError: if there are checkpoints, but no configuration.
    """
    run.mkdir(parents=True, exist_ok=True)
    fingerprint = model.experiment.data.build().fingerprint()
    if any((run / "checkpoints").glob("[0-9]*")):
        # An option that the code did not have when the run began has its default.
        before = load(run)
        old, new = (m.experiment.sentence for m in (before, model))
        _check_same(run, differences(old, new), may_differ(old, new), same_steps)
        _check_data(run, before, model, fingerprint)
    if jax.process_index() == 0:
        stored = {
            "example": encode_example(model.example),
            "fingerprint": fingerprint,
            **to_dict(model.experiment),
        }
        write_atomically(run / "config.json", json.dumps(stored, indent=2) + "\n")


def _check_data(run: Path, before: Model, model: Model, fingerprint: str) -> None:
    """Raise ValueError if the data are not those that the run began with."""
    old, new = (encode_example(m.example) for m in (before, model))
    changed = [name for name in old if old[name] != new[name]]
    stored = read_object(run / "config.json").get("fingerprint", "")
    if not changed and stored == fingerprint:
        return
    lines = [f"{name}: {old[name]} -> {new[name]}"[:300] for name in changed]
    if stored != fingerprint:
        lines.append(f"{stored} -> {fingerprint}")
    raise ValueError(
        f"the data are not those that {run} began with; choose another --run, or go "
        "back to them (old -> new):\n  " + "\n  ".join(lines)
    )


def may_differ(*sentences: Use) -> set[str]:
    """Return the flags that their things declare free to change in a continued run."""
    free = set()
    for root in sentences:
        things = {n.place: n.value.thing for n in nodes(root) if n.value is not None}
        for leaf in leaves(root):
            thing = things.get(leaf.place[:-1])
            if leaf.option.name in getattr(thing, "may_differ", ()):
                free.add(leaf.flag)
    return free


def _check_same(
    run: Path,
    changed: Mapping[str, tuple[Any, Any]],
    free: Collection[str],
    same_steps: Callable[[int], bool],
) -> None:
    lines = {f: f"{f}: {a} -> {b}" for f, (a, b) in changed.items() if f not in free}
    steps = "training.steps"
    if [*lines] == [steps] and changed[steps][0] < changed[steps][1]:
        if same_steps(changed[steps][0]):
            return
        lines[steps] += (
            " (what a step does depends on it: a schedule of the optimiser or of the "
            "method, such as --optimizer.schedule cosine; a new run may start from "
            "this one with --training.start-from)"
        )
    if lines:
        raise ValueError(
            f"{run} holds a run of another experiment; choose another --run "
            "or go back to its values (old -> new):\n  " + "\n  ".join(lines.values())
        )


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run folder holds.

    Attributes:
        model: the run's experiment and the shape of its data.
        step: optimiser steps taken.
        params: the parameters to use, to be passed on when compiling.
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


def restore(run: Path, *, step: int | None = None, averaged: bool = True) -> Trained:
    """Read a checkpoint of a run folder; its data stay closed.

    Args:
        run: the folder.
        step: which checkpoint; None: the newest that is intact.
        averaged: take the averaged parameters, or those that the optimiser has moved.

    Raises:
        FileNotFoundError: if the folder holds no configuration or no checkpoint.
        OSError: if all checkpoints are damaged.
        ValueError: if the configuration can't be read, or there is no such checkpoint.
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
        restored = checkpointer.restore(template, step=step)
    if restored is None:
        raise FileNotFoundError(f"{run} holds no checkpoints yet")
    state, found = restored
    some = SomeConditions.read(run, model.example)
    params = state.ema_params if averaged else state.params
    return Trained(model, found, params, state, some)
