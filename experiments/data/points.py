"""Points: densities on the plane, and a mixture on the line whose flow is known."""

import dataclasses
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.data.base import BatchOptions, Dataset, Example, Row
from experiments.data.conditions import Conditions
from experiments.data.forms import PointForm
from experiments.language.sentence import Use, use
from flowjax import analytic
from flowjax.data import BatchIterator, index_batches, two_moons
from flowjax.interpolants import Interpolant
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    PRNGKey,
    State,
    VelocityField,
)

_MANY = 10_000
"""Points that stand for all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Points(Dataset):
    """Points that are drawn from a key: training data never repeat."""

    def points(self, key: PRNGKey, count: int) -> State:
        """Draw points [count, dim]."""
        raise NotImplementedError

    def batches(self, **options: Unpack[BatchOptions]) -> BatchIterator:
        """Count the examples; the step draws them."""
        # The step's key decides which points, and not the seed.
        return index_batches(
            batch_size=options["batch_size"],
            process_index=options.get("process_index"),
            process_count=options.get("process_count"),
        )

    def read(self, key: PRNGKey, batch: Any) -> tuple[Array, Condition]:
        """Draw points inside the step: they cost less to draw than to move.

        Each from a key of its own number: drawn from one key alone, all points would be
        drawn on every device, as nothing would tell the compiler whose are whose.
        """
        keys = jax.vmap(partial(jax.random.fold_in, key))(batch["index"])
        return jax.vmap(lambda key: self.points(key, 1)[0])(keys), None

    def draw(self, count: int | None, seed: int, *, held_out: bool) -> Row:
        """Draw points: those held out are others."""
        keys = jax.random.split(jax.random.key(seed))
        drawn = self.points(keys[int(held_out)], _MANY if count is None else count)
        return {"x": np.asarray(drawn)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Density(_Points):
    """A density on the plane.

    Attributes:
        density: which one.
    """

    density: Use = use(two_moons)

    def example(self) -> Example:
        """Return the shape of a point."""
        return Example((2,), Conditions(), PointForm())

    def points(self, key: PRNGKey, count: int) -> State:
        """Draw points of the plane."""
        return self.density.build()(key, count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(_Points):
    """A mixture of Gaussians on the line: every field and map is known exactly.

    Attributes:
        weights: of the components; they sum to 1.
        means: of the components.
        stds: their standard deviations.
    """

    weights: tuple[float, ...] = (0.3, 0.7)
    means: tuple[float, ...] = (-1.0, 1.6)
    stds: tuple[float, ...] = (0.35, 0.5)

    @property
    def law(self) -> analytic.Mixture:
        """The mixture as `flowjax.analytic` has it."""
        columns = (jnp.array(v)[:, None] for v in (self.means, self.stds))
        return analytic.mixture(jnp.array(self.weights), *columns)

    def example(self) -> Example:
        """Return the shape of a point."""
        return Example((1,), Conditions(), PointForm())

    def points(self, key: PRNGKey, count: int) -> State:
        """Draw points of the line."""
        return analytic.sample(key, self.law, count)

    def velocity(self, path: Interpolant) -> VelocityField:
        """Return the exact marginal velocity."""
        return analytic.velocity(self.law, path)

    def average_velocity(self, path: Interpolant) -> AverageVelocityField:
        """Return the exact average velocity."""
        return analytic.average_velocity(self.law, path)
