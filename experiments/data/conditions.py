"""What the examples of a data set are conditioned on."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flowjax.networks import named_conditions
from flowjax.typing import Condition

KINDS = ("label", "vector", "array")


class Conditions(NamedTuple):
    """The kinds of conditions that the examples have; stored with a run.

    Rows of data carry them by name, ``label``, ``vector`` and ``array``. A network gets
    labels alone as they are, and anything else as a dict with ``given`` beside.

    Attributes:
        num_classes: number of labels, or None.
        classes: what the labels are called, in their order; empty: by their number.
        names: what the entries of the vector are called; none: there is no vector.
        means: of these entries, in the user's units.
        stds: their standard deviations.
        channels: channels of the array; 0: there is none.
    """

    num_classes: int | None = None
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    channels: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the conditions that there are."""
        there = (self.num_classes is not None, bool(self.names), bool(self.channels))
        return tuple(
            kind for kind, is_there in zip(KINDS, there, strict=True) if is_there
        )

    @property
    def options(self) -> dict[str, Any]:
        """The options of a network that reads them."""
        return {
            "num_classes": self.num_classes,
            "vector_features": len(self.names),
            "array_channels": self.channels,
        }

    @property
    def null(self) -> Any:
        """The condition that means none; no row of data equals it."""
        nulls = {"label": self.num_classes, "vector": 0.0, "array": 0.0}
        return self._joined({kind: nulls[kind] for kind in self.kinds}, given=False)

    def zeros(self, batch: int, event: tuple[int, ...]) -> Condition:
        """Return a condition of the right shapes."""
        shapes: dict[str, tuple[int, ...]] = {
            "vector": (batch, len(self.names)),
            "array": (batch, *event[:-1], self.channels),
        }
        named: dict[str, Any] = {
            kind: jnp.zeros(shapes[kind]) for kind in self.kinds if kind != "label"
        }
        if self.num_classes is not None:
            named["label"] = jnp.zeros(batch, jnp.int32)
        return self.join(named)

    def join(self, row: Mapping[str, Any]) -> Condition:
        """Return what a network gets for rows of data, or None."""
        named = {kind: row[kind] for kind in self.kinds}
        if not named:
            return None
        batch = len(next(iter(named.values())))
        return self._joined(named, given=jnp.ones(batch, bool))

    def _joined(self, named: dict[str, Any], *, given: Any) -> Any:
        if named.keys() <= {"label"}:
            return named.get("label")
        return {**named, "given": given}

    def pick(self, cond: Condition) -> Condition:
        """Return what a network gets that is not told the guidance."""
        given = named_conditions(cond).get("given")
        return self._joined(self.split(cond), given=given)

    def split(self, cond: Condition) -> dict[str, Any]:
        """Return the conditions by name; inverts `join`."""
        named = named_conditions(cond)
        return {kind: named[kind] for kind in self.kinds}

    def in_units(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the conditions of rows in the user's units."""
        named = {kind: np.asarray(row[kind]) for kind in self.kinds}
        if "vector" in named:
            named["vector"] = named["vector"] * np.array(self.stds) + self.means
        return named

    def scale(self, vector: Sequence[float]) -> np.ndarray:
        """Return a vector in the user's units as a network gets it.

        Raises:
            ValueError: if it has another length, or is not finite.
        """
        values = np.asarray(vector, np.float64)
        if values.shape != (len(self.names),) or not np.isfinite(values).all():
            raise ValueError(
                f"the vector must have {len(self.names)} finite numbers "
                f"({', '.join(self.names)}); got {list(vector)}"
            )
        return ((values - self.means) / np.array(self.stds)).astype(np.float32)

    def label_of(self, text: str) -> int:
        """Return the label that is called so, or has this number.

        Raises:
            ValueError: if there is none.
        """
        if text in self.classes:
            return self.classes.index(text)
        if not text.lstrip("-").isdigit():
            names = ", ".join(self.classes[:20]) or "numbers"
            raise ValueError(f"no label is called {text!r}; they are {names}")
        return int(self.check_labels(int(text)))

    def check_labels(self, labels: Any) -> np.ndarray:
        """Return labels to sample with.

        Raises:
            ValueError: if there are none in this run, or one is out of range.
        """
        labels = np.asarray(labels, np.int32)
        if self.num_classes is None:
            raise ValueError("this run was trained without labels; got labels")
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.size:
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1}; got {wrong[0]}"
            )
        return labels
