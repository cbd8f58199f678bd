"""Points: densities on the plane, and a mixture on the line whose flow is known."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import plots
from experiments.data.base import Dataset, Example, Reference, distances
from experiments.language.sentence import Use, use
from flowjax import analytic, metrics
from flowjax.data import BatchIterator, index_batches, two_moons
from flowjax.interpolants import Interpolant
from flowjax.typing import AverageVelocityField, PRNGKey, State, VelocityField


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Points(Dataset):
    """Points that are drawn from a key: training data never repeat."""

    def draw(self, key: PRNGKey, count: int) -> State:
        """Draw points [count, dim]."""
        raise NotImplementedError

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> BatchIterator:
        """Count the examples; the step draws them."""
        return index_batches(
            batch_size=batch_size,
            process_index=process_index,
            process_count=process_count,
        )

    def read(self, key: PRNGKey, batch: Any) -> tuple[Array, Array | None]:
        """Draw points inside the step: they cost less to draw than to move."""
        return self.draw(key, len(batch["index"])), None

    def reference(self, count: int, seed: int) -> Reference:
        """Draw points to be measured, and others to hold them against."""
        key_real, key_held_out = jax.random.split(jax.random.key(seed))
        real, held_out = (
            np.asarray(self.draw(k, count)) for k in (key_real, key_held_out)
        )

        def measure(x: np.ndarray) -> dict[str, float]:
            n = min(len(x), len(held_out), 1000)
            exact = metrics.wasserstein2(jnp.asarray(x[:n]), jnp.asarray(held_out[:n]))
            rest = distances(x, held_out, jax.random.key(seed))
            return rest | {"W2": float(exact)}

        return Reference(real, None, measure, {})

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], labels: np.ndarray | None, path: Path
    ) -> None:
        """Draw the groups side by side."""
        plots.point_clouds(groups, path)

    def draw_samples(self, title: str, x: np.ndarray, path: Path) -> None:
        """Draw all samples as one cloud."""
        plots.point_clouds({title: x}, path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Density(_Points):
    """A density on the plane.

    Attributes:
        density: which one.
    """

    density: Use = use(two_moons)

    def example(self) -> Example:
        """Return the shape of a point."""
        return Example((2,), None)

    def draw(self, key: PRNGKey, count: int) -> State:
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
        return Example((1,), None)

    def draw(self, key: PRNGKey, count: int) -> State:
        """Draw points of the line."""
        return analytic.sample(key, self.law, count)

    def velocity(self, path: Interpolant) -> VelocityField:
        """Return the exact marginal velocity."""
        return analytic.velocity(self.law, path)

    def average_velocity(self, path: Interpolant) -> AverageVelocityField:
        """Return the exact average velocity."""
        return analytic.average_velocity(self.law, path)
