"""Teachers: a velocity to learn from, and a source of pairs of noise and data.

A run's pairs are noise and where its ODE takes it. They are made once and kept in the
teacher's folder, so that every student of the same teacher learns from the same.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset
from flowjax import fields, sampling, times
from flowjax.data import BatchIterator, array_batches
from flowjax.interpolants import Interpolant
from flowjax.typing import PRNGKey, State, VelocityField


class Teacher(NamedTuple):
    """A teacher that is ready to be learned from.

    Attributes:
        params: its parameters, handed on to ``velocity`` when compiling; None without.
        velocity: ``(params, scale) -> v(x, t, cond)``; the scale is a factor of the
            teacher's own guidance, one for all rows or one each.
        pairs: ``seed -> {"x0", "x1"}`` and conditions by name, of one length.
    """

    params: Any
    velocity: Callable[[Any, Any], VelocityField]
    pairs: Callable[[int], dict[str, np.ndarray]]

    def batches(self, event: tuple[int, ...], **options: Any) -> BatchIterator:
        """Return endless batches of the pairs.

        Raises:
            ValueError: if they have another shape than the data's examples.
        """
        made = self.pairs(options["seed"])
        if made["x1"].shape[1:] != event:
            raise ValueError(
                f"the teacher's examples have shape {made['x1'].shape[1:]}, those of "
                f"the data {event}"
            )
        return array_batches(made, **options)


class TrainedModel(Protocol):
    """What a teacher needs of a run: `experiments.engine.run.Trained`."""

    params: Any
    model: Any  # an `experiments.engine.model.Model`, which imports this module

    def need_velocity(self, purpose: str) -> None:
        """Raise ValueError if the run leaves no velocity."""
        ...

    def velocity(self, params: Any, scale: Any) -> VelocityField:
        """Return the velocity under guidance of a scale, one for all or per row."""
        ...

    def noise(self, key: PRNGKey, count: int) -> tuple[State, Mapping[str, Any]]:
        """Return noise, and conditions by name."""
        ...


Restore = Callable[[Path], Any]
"""``folder -> `` `TrainedModel`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, whose averaged parameters are used.

    Attributes:
        folder: its run folder.
        guidance: classifier-free guidance scale of its velocity; 1 is none.
        steps: steps of the midpoint rule that make a pair.
        count: number of pairs.
        longest: leave out pairs whose mean squared distance exceeds this; None: none.
    """

    folder: str
    guidance: float = 1.0
    steps: int = 32
    count: int = 10_000
    longest: float | None = None

    def check(self) -> None:
        """Raise ValueError unless the folder is a run's."""
        if not (Path(self.folder) / "config.json").is_file():
            raise ValueError(
                f"the teacher {self.folder} is no run folder; train it first, or say "
                "--teacher.folder"
            )

    def open(self, restore: Restore, data: Dataset, path: Interpolant) -> Teacher:
        """Read the run.

        Raises:
            ValueError: if it leaves no velocity, or guidance is wanted of a run without
                labels.
        """
        trained: TrainedModel = restore(Path(self.folder))
        trained.need_velocity("a student to learn from")

        def velocity(params: Any, scale: Any) -> VelocityField:
            return trained.velocity(params, scale * self.guidance)

        return Teacher(
            trained.params, velocity, lambda seed: self._pairs(trained, seed)
        )

    def _pairs(self, trained: TrainedModel, seed: int) -> dict[str, np.ndarray]:
        name = f"pairs_{self.count}_{self.steps}_{seed}"
        if self.guidance != 1.0:
            name += f"_{self.guidance:g}"
        file = Path(self.folder) / f"{name}.npz"
        if not file.is_file():
            made = self._make(trained, seed)
            temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
            with temporary.open("wb") as opened:
                np.savez(opened, allow_pickle=False, **made)
            os.replace(temporary, file)
        with np.load(file) as archive:
            made = dict(archive)
        if self.longest is None:
            return made
        distance = np.square(made["x1"] - made["x0"]).reshape((len(made["x0"]), -1))
        keep = distance.mean(1) <= self.longest
        return {name: array[keep] for name, array in made.items()}

    def _make(self, trained: TrainedModel, seed: int) -> dict[str, np.ndarray]:
        x0, named = trained.noise(jax.random.key(seed), self.count)
        made = {"x0": np.asarray(x0)} | {k: np.asarray(c) for k, c in named.items()}
        grid = times.uniform_grid(self.steps)

        @jax.jit
        def solve(params: Any, x0: Any, cond: Any) -> Any:
            v = trained.velocity(params, self.guidance)
            solver = diffrax.Midpoint()
            return sampling.ode(v, x0, cond=cond, solver=solver, steps=grid)[0]

        parts = []
        for start in range(0, self.count, 1000):
            rows = slice(start, start + 1000)
            cond = trained.model.example.conditions.join(
                {name: jnp.asarray(made[name][rows]) for name in named}
            )
            x = jnp.asarray(made["x0"][rows])
            parts.append(np.asarray(solve(trained.params, x, cond)))
        made["x1"] = np.concatenate(parts)
        if not np.isfinite(made["x1"]).all():
            raise FloatingPointError("the teacher's trajectories are not all finite")
        return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact:
    """The closed form of a data set that knows it.

    Attributes:
        count: number of pairs.
    """

    count: int = 10_000

    def check(self) -> None:
        """Do nothing: there is no folder."""

    def open(self, restore: Restore, data: Dataset, path: Interpolant) -> Teacher:
        """Take the closed form.

        Raises:
            ValueError: if the data have none.
        """
        v = data.velocity(path)
        jump = jax.jit(fields.flow_map(data.average_velocity(path)))

        def pairs(seed: int) -> dict[str, np.ndarray]:
            x0 = jax.random.normal(
                jax.random.key(seed), (self.count, *data.example().event)
            )
            zero = jnp.zeros(self.count)
            x1 = jump(x0, zero, zero + 1)
            return {"x0": np.asarray(x0), "x1": np.asarray(x1)}

        return Teacher(None, lambda params, scale: v, pairs)
