"""The contract of functions that are handed in: their call, and what they return."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from flowjax.contracts.arity import arity
from flowjax.contracts.arrays import ArrayOf, bind
from flowjax.contracts.basic import Axes, Contract, described
from flowjax.typing import AverageVelocityField, VelocityField


@dataclasses.dataclass(frozen=True)
class Callback(Contract):
    """A function of a protocol, or of ``Callable[[...], ...]``.

    Attributes:
        call: how it is written, ``(x, t, cond)`` for instance.
        parameters: the contracts of its positional parameters by name; None: any.
        returns: the contract of what it returns, where that is an array.
        kind: the protocol.
    """

    call: str
    parameters: dict[str, ArrayOf | None] | None
    returns: ArrayOf | None = None
    kind: Any = None
    turn: int = 1

    @property
    def expects(self) -> str:
        """How it is called."""
        return f"callable as {self.call}"

    def fits(self, value: Any) -> bool:
        """Say whether it can be called at all."""
        return callable(value)

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Check how it can be called, and hand on what checks its output."""
        if self.parameters is None or isinstance(value, Observed):
            return value
        self._check_arity(name, value)
        return value if self.returns is None else Observed(value, name, self)

    def _check_arity(self, name: str, value: Any) -> None:
        assert self.parameters is not None
        takes, given = arity(value), len(self.parameters)
        if takes is None:
            return
        if self.kind is VelocityField and takes.least >= 3 and takes.most >= 4:
            raise ValueError(
                f"`{name}` must be a velocity v(x, t, cond); got a function of "
                f"{takes.most} positional arguments, as an average velocity "
                f"u(x, t, s, cond) is: give `fields.diagonal(u)`, or bind the further "
                "options of a velocity by name"
            )
        if self.kind is VelocityField and takes.names[2:3] == ("s",):
            raise ValueError(
                f"`{name}` must be a velocity v(x, t, cond); got a function whose "
                "third argument is s, as of an average velocity u(x, t, s, cond): "
                "give `fields.diagonal(u)` of one that takes a condition"
            )
        if takes.least <= given <= takes.most:
            return
        count = str(takes.most)
        if takes.least != takes.most:
            count = f"{takes.least} to {takes.most}"
        hint = ""
        if self.kind is AverageVelocityField and takes.names[2:3] == ("s",):
            hint = (
                "; without a condition it takes `cond` all the same, u(x, t, s, cond)"
            )
        elif self.kind is AverageVelocityField and takes.least <= 3 <= takes.most:
            hint = (
                ", as a velocity v(x, t, cond) is: `fields.euler_step(v)` is the "
                "average velocity of one step along it"
            )
        raise ValueError(
            f"`{name}` must be {self.expects}; got a function of {count} positional "
            f"arguments{hint}"
        )

    def check_output(self, name: str, args: tuple[Any, ...], value: Any) -> None:
        """Raise ValueError if what came back has not the shape that was promised."""
        assert self.returns is not None
        assert self.parameters is not None
        axes: dict[str, Any] = {}
        for (parameter, kind), given in zip(self.parameters.items(), args):  # noqa: B905
            if isinstance(kind, ArrayOf) and hasattr(given, "shape"):
                axes.update(bind(kind.axes, given.shape) or {})
            elif isinstance(given, int):
                axes[parameter] = given
        lengths = [axes.get(axis) for axis in self.returns.axes]
        shape = None
        if None not in lengths:
            shape = sum((n if isinstance(n, tuple) else (n,) for n in lengths), ())
        if not isinstance(value, jax.Array | np.ndarray | np.generic | float):
            of = f" of shape {shape}" if shape is not None else ""
            raise ValueError(
                f"`{name}` must return an array{of}; got {described(value)}"
            )
        if shape is not None and np.shape(value) != shape:
            raise ValueError(
                f"`{name}` must return shape [{', '.join(self.returns.axes)}]={shape}; "
                f"got {np.shape(value)}"
            )
        if hasattr(value, "dtype"):
            self.returns.check_dtype(f"`{name}` must return", value)


class Observed:
    """A function whose output is checked at every call."""

    def __init__(self, call: Callable[..., Any], name: str, contract: Callback) -> None:
        self.__wrapped__ = call
        self._name, self._contract = name, contract

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns, or raise ValueError."""
        value = self.__wrapped__(*args, **kwargs)
        self._contract.check_output(self._name, args, value)
        return value

    def __repr__(self) -> str:
        """Show the function."""
        return repr(self.__wrapped__)
