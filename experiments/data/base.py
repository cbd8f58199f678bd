"""What a data set is: everything that later asks about the data asks this object."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import guidance, metrics
from flowjax.data import BatchIterator
from flowjax.interpolants import Interpolant
from flowjax.typing import AverageVelocityField, PRNGKey, VelocityField

Measure = Callable[[np.ndarray], dict[str, float]]
"""``samples [n, *event] -> figures``."""


class Example(NamedTuple):
    """What a network must know of the data; stored with a run.

    Attributes:
        event: shape of one example.
        num_classes: number of labels, or None.
    """

    event: tuple[int, ...]
    num_classes: int | None

    @property
    def null(self) -> int | None:
        """The label that means none."""
        return self.num_classes


class Reference(NamedTuple):
    """What samples are compared with.

    Attributes:
        real: training examples, to be measured like samples.
        labels: labels to sample with, those of ``real``; None without classes.
        measure: samples, in the order of ``labels`` -> figures.
        known: figures of the real data that measuring ``real`` would not show.
    """

    real: np.ndarray
    labels: np.ndarray | None
    measure: Measure
    known: Mapping[str, float]


class HeldOut(NamedTuple):
    """Held-out examples for a likelihood.

    Attributes:
        x: examples [n, *event].
        labels: their labels [n], or None.
        step: distance of neighbouring values of an entry, as the data is discrete.
    """

    x: np.ndarray
    labels: np.ndarray | None
    step: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set, opened only where it says so."""

    may_differ: ClassVar[frozenset[str]] = frozenset()
    """Options that may change in a continued run: they don't change what is trained."""

    def example(self) -> Example:
        """Return the shape and the labels of the examples; may open the data.

        Raises:
            FileNotFoundError: if the data are not where they should be.
            ValueError: if they are not of a kind that can be learned.
        """
        raise NotImplementedError

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        process_index: int | None = None,
        process_count: int | None = None,
    ) -> BatchIterator:
        """Open the training data: endless, resumable batches of a process."""
        raise NotImplementedError

    def read(self, key: PRNGKey, batch: Any) -> tuple[Array, Array | None]:
        """Return the examples of a batch and their labels; inside the step."""
        raise NotImplementedError

    def drop(self, key: PRNGKey, labels: Array) -> Array:
        """Replace the labels of some rows by the one that means none."""
        raise NotImplementedError

    def reference(self, count: int, seed: int) -> Reference:
        """Open the data and return what samples are compared with."""
        raise NotImplementedError

    def held_out(self, count: int | None, seed: int) -> HeldOut:
        """Open the held-out data for a likelihood.

        Raises:
            ValueError: if the data are continuous.
        """
        raise ValueError(
            "bits per dimension need discrete data; "
            f"{type(self).__name__} is continuous"
        )

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], labels: np.ndarray | None, path: Path
    ) -> None:
        """Draw groups of samples beside each other into a PNG, by label if any."""
        raise NotImplementedError

    def draw_samples(self, title: str, x: np.ndarray, path: Path) -> None:
        """Draw samples in their order into a PNG."""
        raise NotImplementedError

    def velocity(self, path: Interpolant) -> VelocityField:
        """Return the exact marginal velocity.

        Raises:
            ValueError: if it is not known.
        """
        raise ValueError(f"{type(self).__name__} has no exact teacher; take a run")

    def average_velocity(self, path: Interpolant) -> AverageVelocityField:
        """Return the exact average velocity; errors as in `velocity`."""
        raise ValueError(f"{type(self).__name__} has no exact teacher; take a run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Dataset):
    """A data set with class labels.

    Attributes:
        label_dropout: chance of a row to lose its label, which trains the
            unconditional field that guidance needs.
    """

    label_dropout: float = 0.1

    def drop(self, key: PRNGKey, labels: Array) -> Array:
        """Replace the labels of some rows by the one that means none."""
        null = self.example().null
        probability = self.label_dropout
        return guidance.drop_condition(key, labels, null=null, probability=probability)


def distances(x: np.ndarray, held_out: np.ndarray, key: PRNGKey) -> dict[str, float]:
    """Return the distances of two sets of samples that need no features."""
    flat, other = (jnp.asarray(a.reshape((len(a), -1))) for a in (x, held_out))
    return {
        "sliced W2": float(metrics.sliced_wasserstein2(key, flat, other)),
        "MMD2 x1000": 1000 * float(metrics.mmd2(flat, other)),
    }
