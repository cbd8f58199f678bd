"""What a data set is, whatever it holds: one object that all else asks."""

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NotRequired, TypedDict, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.data.conditions import Conditions
from flowjax import guidance, metrics
from flowjax.data import BatchIterator, RowSource, row_batches
from flowjax.interpolants import Interpolant
from flowjax.metrics.discrepancies import MULTIPLIERS
from flowjax.typing import AverageVelocityField, Condition, PRNGKey, VelocityField

Measure = Callable[[np.ndarray], dict[str, float]]
"""``samples [n, *event] -> figures``."""


class BatchOptions(TypedDict):
    """Which batches of a data set to open, as `flowjax.data.row_batches` has it."""

    batch_size: int
    seed: int
    process_index: NotRequired[int | None]
    process_count: NotRequired[int | None]


LEAST = 10
"""Examples on each side that measuring needs, whose features compare neighbours."""

Row = Mapping[str, np.ndarray]
"""Rows of data: ``x`` and the conditions by name, each with the rows first."""


class Reference(NamedTuple):
    """What samples are compared with.

    Attributes:
        real: training examples, to be measured like samples, with their conditions,
            which samples are drawn with.
        measure: samples, in the order of ``real`` -> figures.
        known: figures of the real data that measuring ``real`` would not show.
    """

    real: Row
    measure: Measure
    known: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What one example is to its user; stored with a run, which so needs no data.

    It knows the way back from the numbers that are trained on, how samples are drawn
    and written, and what they are measured by.
    """

    def check(self, event: tuple[int, ...]) -> None:
        """Raise ValueError unless an example can have that shape."""

    @property
    def step(self) -> float:
        """The distance of neighbouring values of an entry.

        Raises:
            ValueError: if the data are continuous.
        """
        raise ValueError(
            "bits per dimension need discrete data; "
            f"{type(self).__name__} is continuous"
        )

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Return samples in the user's units."""
        return x

    def reference(self, data: "Dataset", count: int, seed: int) -> Reference:
        """Open the data and return what samples are compared with."""
        raise NotImplementedError

    def draw_groups(
        self, groups: Mapping[str, np.ndarray], row: Row, path: Path
    ) -> None:
        """Draw groups of samples beside each other into a PNG.

        Args:
            groups: title -> samples, as many in each.
            row: their conditions.
            path: where to.
        """
        raise NotImplementedError

    def draw_samples(self, title: str, x: np.ndarray, path: Path) -> None:
        """Draw samples in their order into a PNG."""
        self.draw_groups({title: x}, {}, path)

    def write(
        self, x: np.ndarray, conditions: Row, out: Path, title: str
    ) -> list[Path]:
        """Write samples and a picture of them.

        Args:
            x: the samples.
            conditions: their conditions, in the user's units.
            out: where to, without suffix.
            title: of the picture.

        Returns:
            The files.
        """
        file, picture = (out.with_name(out.name + end) for end in (".npz", ".png"))
        named: dict[str, Any] = {"x": self.restore(x), **conditions}
        np.savez(file, allow_pickle=False, **named)
        drawn = try_to_draw(lambda: self.draw_samples(title, x, picture))
        return [file, picture] if drawn else [file]

    def write_each(self, x: np.ndarray, out: Path) -> Path:
        """Write every sample into a file of its own; return their folder.

        Raises:
            ValueError: if the data are no images.
        """
        raise ValueError(
            f"single files are written of images; this is a {type(self).__name__}"
        )


def try_to_draw(draw: Callable[[], None]) -> bool:
    """Draw, and say whether that was possible: a picture is never worth the numbers."""
    try:
        draw()
    except (ValueError, FloatingPointError, OverflowError) as error:
        warnings.warn(f"no picture could be drawn: {error}", stacklevel=2)
        return False
    return True


class Example(NamedTuple):
    """What must be known of the data without them; stored with a run.

    Attributes:
        event: shape of one example.
        conditions: what they are conditioned on.
        form: what one example is to its user.
    """

    event: tuple[int, ...]
    conditions: Conditions
    form: Form


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set, opened only where it says so."""

    may_differ: ClassVar[frozenset[str]] = frozenset()
    """Options that may change in a continued run: they don't change what is trained."""

    def example(self) -> Example:
        """Return what the examples look like; may open the data.

        Raises:
            FileNotFoundError: if the data are not where they should be.
            ValueError: if they are not of a kind that can be learned.
        """
        raise NotImplementedError

    def batches(self, **options: Unpack[BatchOptions]) -> BatchIterator:
        """Open the training data: endless, resumable batches of a process."""
        raise NotImplementedError

    def read(self, key: PRNGKey, batch: Any) -> tuple[Array, Condition]:
        """Return the examples of a batch and their condition; inside the step."""
        raise NotImplementedError

    def drop(self, key: PRNGKey, cond: Condition) -> Condition:
        """Replace the condition of some rows by the one that means none."""
        raise NotImplementedError

    def number_of_examples(self) -> int | None:
        """Return how many there are to train on; None: they never repeat."""
        return None

    def check(self) -> None:
        """Open the data and see whether they can be trained and measured on.

        Raises:
            FileNotFoundError: if they are not where they should be.
            ValueError: if they are too few, on one side.
        """

    def draw(self, count: int | None, seed: int, *, held_out: bool) -> Row:
        """Open the data and draw examples without replacement; None: all, in order."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return what tells other data of the same look apart; may open the data."""
        return ""

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
class Conditional(Dataset):
    """A data set whose examples may have a condition.

    Attributes:
        condition_dropout: chance of a row to lose its condition, which trains the
            unconditional field that guidance needs.
    """

    condition_dropout: float = 0.1

    def drop(self, key: PRNGKey, cond: Condition) -> Condition:
        """Replace the condition of some rows by the one that means none."""
        null, chance = self.example().conditions.null, self.condition_dropout
        return guidance.drop_condition(key, cond, null=null, probability=chance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(Conditional):
    """A data set of finitely many examples with random access."""

    def rows(self, *, held_out: bool) -> RowSource:
        """Open the training or the held-out rows: ``x`` and conditions by name.

        Errors as of `example`.
        """
        raise NotImplementedError

    def number_of_examples(self) -> int | None:
        """Return how many there are to train on."""
        return len(self.rows(held_out=False))

    def check(self) -> None:
        """See whether there are enough rows, to train on and held out."""
        for side, held_out in (("to train on", False), ("to be held out", True)):
            count = len(self.rows(held_out=held_out))
            if count < LEAST:
                raise ValueError(
                    f"at least {LEAST} examples are needed {side}; got {count}: more "
                    "data, another --data.test-share, or held-out data of their own"
                )

    def batches(self, **options: Unpack[BatchOptions]) -> BatchIterator:
        """Open the training rows."""
        return row_batches(self.rows(held_out=False), **options)

    def read(self, key: PRNGKey, batch: Any) -> tuple[Array, Condition]:
        """Return the examples of a batch and their condition."""
        return batch["x"], self.example().conditions.join(batch)

    def fingerprint(self) -> str:
        """Return the number of rows and a hash of some, evenly spread."""
        rows = self.rows(held_out=False)
        some = np.unique(np.linspace(0, len(rows) - 1, 16).astype(int))
        digest = hashlib.sha256()
        for name, values in sorted(rows.gather(some.tolist()).items()):
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return f"{len(rows)} rows, {digest.hexdigest()[:16]}"

    def draw(self, count: int | None, seed: int, *, held_out: bool) -> Row:
        """Draw rows."""
        rows = self.rows(held_out=held_out)
        if count is None:
            return rows.gather(range(len(rows)))
        order = np.random.default_rng([seed, held_out]).permutation(len(rows))
        return rows.gather(order[:count].tolist())


def distances(x: np.ndarray, held_out: np.ndarray, key: PRNGKey) -> dict[str, float]:
    """Return the distances of two sets of samples that need no features."""
    flat, other = (jnp.asarray(a.reshape((len(a), -1))) for a in (x, held_out))
    # Half of the pairs may be equal, as of sparse rows: their median is no scale then.
    spread = math.sqrt(2 * float(np.var(np.asarray(other, np.float64), axis=0).sum()))
    half = np.asarray(other[:1000])
    _, counts = np.unique(half, axis=0, return_counts=True)
    repeated = np.square(counts / len(half)).sum() > 0.4
    scales = None
    if repeated and spread:
        scales = tuple(spread * factor for factor in MULTIPLIERS)
    mmd2 = (
        math.nan
        if repeated and not spread
        else metrics.mmd2(flat, other, bandwidths=scales)
    )
    return {
        "sliced W2": float(metrics.sliced_wasserstein2(key, flat, other)),
        "MMD2 x1000": 1000 * float(mmd2),
    }
