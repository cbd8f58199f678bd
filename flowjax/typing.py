"""The vocabulary of shapes and the protocols that every room of flowjax shares.

Arrays are batch-first. ``*event`` stands for the axes of one example (a vector, an
image, …); a time is one number per example. The annotations are executed: public
functions check their arguments by them (`flowjax.contracts.checked`), and beartype
everything else in the tests.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Key


class Range(NamedTuple):
    """Where a number or every entry of an array must lie, itself finite.

    Attributes:
        low: the least value.
        high: the largest value.
        ends: which ends are included: ``"[]"``, ``"(]"``, ``"[)"`` or ``"()"``.
        note: what a reader should know besides.
    """

    low: float = -math.inf
    high: float = math.inf
    ends: str = "[]"
    note: str = ""

    def holds(self, values: Any) -> Any:
        """Say which values lie inside; NaN and infinity do not."""
        above = values > self.low if self.ends[0] == "(" else values >= self.low
        below = values < self.high if self.ends[1] == ")" else values <= self.high
        return above & below & np.isfinite(values)

    def __str__(self) -> str:
        """Say it, as the end of a sentence with "must"."""
        if self.high < math.inf:
            return f"lie in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"
        if self.low == -math.inf:
            return "be finite"
        if self.ends[0] == "(":
            return "be positive" if self.low == 0 else f"be above {self.low:g}"
        return f"be at least {self.low:g}"


class Rank(NamedTuple):
    """How many axes an array has at least."""

    least: int


class Rows(NamedTuple):
    """Marks a pytree whose leaves have the leading axis ``batch``."""


Values: TypeAlias = Annotated[Float[Array, "batch *event"], Rank(2)]
"""Intermediate results, which may hold what is not finite."""
State: TypeAlias = Annotated[Values, Range()]
Time: TypeAlias = Annotated[
    Float[Array, "batch"], Range(0, 1, note=" (0 is noise, 1 is data)")
]
AnyTime: TypeAlias = Float[Array, "batch"]
"""A time that may lie outside [0, 1], or whose values are not checked."""
PerExample: TypeAlias = Float[Array, "batch"]
PRNGKey: TypeAlias = Key[Array, ""]
Condition: TypeAlias = Annotated[Any, Rows()]
"""Any pytree whose leaves have the leading axis ``batch``, or None."""

Count: TypeAlias = Annotated[int, Range(1)]
Natural: TypeAlias = Annotated[int, Range(0)]
Positive: TypeAlias = Annotated[float, Range(0, ends="(]")]
NonNegative: TypeAlias = Annotated[float, Range(0)]
Share: TypeAlias = Annotated[float, Range(0, 1)]
Grid: TypeAlias = Sequence[float] | np.ndarray | Array
"""Times that are known before tracing; `flowjax.checks.check_grid` says which."""


@runtime_checkable
class TimeFunction(Protocol):
    """A differentiable function of time, applied elementwise."""

    def __call__(self, t: Float[Array, "..."], /) -> Float[Array, "..."]:
        """Return the coefficient at every entry of ``t``, with the shape of ``t``."""
        ...


@runtime_checkable
class VelocityField(Protocol):
    """An instantaneous velocity ``v(x, t, cond)``: ``dx/dt = v`` carries noise to data.

    Parameters are bound beforehand (``functools.partial(network.apply, params)``), so a
    Flax, NNX or Equinox network and a closed-form field look the same from here.
    """

    def __call__(self, x: State, t: Time, cond: Condition = None, /) -> State:
        """Return the velocity at ``x`` [batch, *event] and ``t`` [batch]."""
        ...


@runtime_checkable
class AverageVelocityField(Protocol):
    """An average velocity ``u(x, t, s, cond)`` from time ``t`` to time ``s``.

    ``X(x, t, s) = x + (s - t) u(x, t, s)`` is the flow map and ``u(x, t, t)`` the
    instantaneous velocity. ``s`` may lie on either side of ``t``.
    """

    def __call__(self, x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        """Return the average velocity over [t, s] of the trajectory through ``x``."""
        ...


class Pairs(NamedTuple):
    """Paired samples; row i of ``x0`` belongs to row i of ``x1`` and of ``cond``."""

    x0: State
    x1: State
    cond: Condition = None


@runtime_checkable
class Coupling(Protocol):
    """A way to pair two batches; hyper-parameters are bound with functools.partial."""

    def __call__(
        self, key: PRNGKey, x0: State, x1: State, cond: Condition = None, /
    ) -> Pairs:
        """Return the pairs. Conditions travel with the data samples they describe."""
        ...


@runtime_checkable
class TimeSampler(Protocol):
    """A law of one time per row; hyper-parameters are bound with functools.partial."""

    def __call__(self, key: PRNGKey, batch: int, /) -> Time:
        """Return ``t`` [batch] in [0, 1]."""
        ...


@runtime_checkable
class PairSampler(Protocol):
    """A law of a start and an end time per row."""

    def __call__(self, key: PRNGKey, batch: int, /) -> tuple[Time, Time]:
        """Return ``t`` and ``s``, each [batch] in [0, 1]."""
        ...
