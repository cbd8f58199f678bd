"""Conditions that a run folder keeps, so that it can be sampled without its data."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.data import Dataset, Example
from flowjax.data import open_arrays
from flowjax.typing import PRNGKey

_CONDITIONS = "conditions.npz"


@dataclasses.dataclass(frozen=True)
class SomeConditions:
    """Conditions of a run's data that are kept with it, to sample without the data.

    Labels alone need no keeping: all are known.

    Attributes:
        example: what the data look like.
        kept: the rows that are kept, by name.
    """

    example: Example
    kept: Mapping[str, np.ndarray]

    @staticmethod
    def write(run: Path, data: Dataset, example: Example, *, count: int = 1000) -> None:
        """Keep some conditions of the training data in a run folder."""
        kinds = example.conditions.kinds
        if set(kinds) <= {"label"}:
            return
        row = data.draw(count, 0, held_out=False)
        target = run / _CONDITIONS
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{kind: row[kind] for kind in kinds})
        os.replace(temporary, target)

    @classmethod
    def read(cls, run: Path, example: Example) -> "SomeConditions":
        """Read what `write` has kept.

        Raises:
            FileNotFoundError: if it should be there and is not.
            ValueError: if it is damaged, or of other data.
        """
        kinds = example.conditions.kinds
        if set(kinds) <= {"label"}:
            return cls(example, {})
        kept = open_arrays(run / _CONDITIONS)
        zeros = example.conditions.zeros(1, example.event)
        for kind, zero in example.conditions.split(zeros).items():
            array = kept.get(kind)
            if array is None or array.shape[1:] != zero.shape[1:] or not len(array):
                raise ValueError(
                    f"{run / _CONDITIONS} does not hold {kind}s of this run"
                )
            if array.dtype != zero.dtype or not np.isfinite(array).all():
                raise ValueError(f"{run / _CONDITIONS} holds {kind}s that are none")
        return cls(example, {kind: kept[kind] for kind in kinds})

    def rows(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Return conditions by number: in turn, all labels or those that are kept."""
        if self.kept:
            count = len(next(iter(self.kept.values())))
            return {name: rows[numbers % count] for name, rows in self.kept.items()}
        classes = self.example.conditions.num_classes
        return (
            {} if classes is None else {"label": (numbers % classes).astype(np.int32)}
        )

    def draw(self, key: PRNGKey, count: int) -> dict[str, Array]:
        """Draw conditions with replacement; labels alone evenly."""
        classes = self.example.conditions.num_classes
        many = len(next(iter(self.kept.values()))) if self.kept else classes
        if many is None:
            return {}
        rows = np.asarray(jax.random.randint(key, (count,), 0, many))
        return {name: jnp.asarray(row) for name, row in self.rows(rows).items()}
