"""The vocabulary of shapes and the protocols that every room of flowjax shares.

Arrays are batch-first. ``*event`` stands for the axes of one example (a vector, an
image, …); a time is one number per example. The annotations are documentation at run
time and are executed by beartype in the tests.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Float, Key

State: TypeAlias = Float[Array, "batch *event"]
Time: TypeAlias = Float[Array, "batch"]
PerExample: TypeAlias = Float[Array, "batch"]
PRNGKey: TypeAlias = Key[Array, ""]
Condition: TypeAlias = Any
"""Any pytree whose leaves have the leading axis ``batch``, or None."""


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
    cond: Any = None


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
