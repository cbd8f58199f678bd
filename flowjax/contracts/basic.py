"""What one annotation says about a value, and the sentence where it does not."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import AbstractArray, Bool, Float, Int, Key

from flowjax.typing import Range


class Axis(NamedTuple):
    """How long a named axis is, or a ``*name`` of several, and whose axis it was."""

    length: int | tuple[int, ...]
    source: str


Axes: TypeAlias = dict[str, Axis]
"""The named axes of one call, as far as they are known."""

SHARED = ("batch", "*event")

# What stands in an annotation, what a dtype must be part of, how it is said.
DTYPES: dict[Any, tuple[Any, str]] = {
    Float: (jnp.floating, "a floating dtype"),
    Int: (jnp.integer, "an integer dtype"),
    Bool: (jnp.bool_, "a boolean dtype"),
    Key: (jax.dtypes.prng_key, "a typed key's dtype, as of jax.random.key(0)"),
}


class Contract:
    """What one annotation asks of a value.

    Attributes:
        expects: what must come, as the end of "must be".
        turn: those of a later turn are applied after the others.
    """

    expects: str = ""
    turn: int = 0

    def fits(self, value: Any) -> bool:
        """Say whether the value is of the right kind, whatever is wrong with it."""
        raise NotImplementedError

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Return a value of the right kind, as it is handed on, or raise ValueError."""
        return value

    def apply(self, name: str, value: Any, axes: Axes) -> Any:
        """Return the value as it is handed on, or raise ValueError."""
        if not self.fits(value):
            raise ValueError(f"`{name}` must be {self.expects}; got {described(value)}")
        return self.check(name, value, axes)


def described(value: Any) -> str:
    """Say what a value is, in a few words."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)[:80]
    if isinstance(value, jax.Array | np.ndarray):
        kind = "a traced array" if isinstance(value, Tracer) else "an array"
        return f"{kind} of {value.dtype} and shape {value.shape}"
    if inspect.isfunction(value) or inspect.isclass(value):
        kind = "the function" if inspect.isfunction(value) else "the class"
        return f"{kind} {value.__name__}"
    return with_article(type(value).__name__)


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun."""
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def known(value: Any) -> bool:
    """Say whether the values of an array can be looked at, here and now."""
    if isinstance(value, Tracer):
        return False
    return not isinstance(value, jax.Array) or value.is_fully_addressable


def check_range(name: str, value: Any, limits: Sequence[Range]) -> None:
    """Raise ValueError unless a number, or all of an array, lie where they must."""
    if not limits or not known(value):
        return
    values = np.asarray(value)
    for limit in limits:
        inside = limit.holds(values)
        if inside.all():
            continue
        if not np.isfinite(values).all() and values.ndim:
            broken = int((~np.isfinite(values)).sum())
            got = f"{broken} of {values.size} values NaN or inf"
        elif values.ndim:
            got = f"values from {values.min()} to {values.max()}"
        else:
            got = str(value)
        raise ValueError(f"`{name}` must {limit}{limit.note}; got {got}")


@dataclasses.dataclass(frozen=True)
class Numbers(Contract):
    """A Python number, as ``int`` and ``float`` ask for."""

    kinds: tuple[type, ...]
    limits: tuple[Range, ...] = (Range(),)

    @property
    def expects(self) -> str:
        """A number, or a whole one."""
        return "a number" if float in self.kinds else "an integer"

    def fits(self, value: Any) -> bool:
        """Say whether the value is a number, which a truth value is not.

        An array without axes is one; traced, it is one where none must be known.
        """
        if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
            if isinstance(value, Tracer) and float not in self.kinds:
                return False
            kind = jnp.floating if float in self.kinds else jnp.integer
            return jnp.issubdtype(value.dtype, kind)
        return isinstance(value, self.kinds) and not isinstance(value, bool)

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Check the range; what is known is handed on as a number of Python."""
        check_range(name, value, self.limits)
        if isinstance(value, jax.Array | np.ndarray | np.generic) and known(value):
            return value.item()
        return value


@dataclasses.dataclass(frozen=True)
class Instance(Contract):
    """An instance of a class, which may be a protocol."""

    kind: type
    expects: str

    def fits(self, value: Any) -> bool:
        """Ask ``isinstance``."""
        return isinstance(value, self.kind)


@dataclasses.dataclass(frozen=True)
class OneOf(Contract):
    """One of a few values."""

    values: tuple[Any, ...]

    @property
    def expects(self) -> str:
        """The values."""
        return f"one of {self.values}"

    def fits(self, value: Any) -> bool:
        """Say whether the value is among them, and of their type."""
        return any(type(value) is type(v) and value == v for v in self.values)


@dataclasses.dataclass(frozen=True)
class Several(Contract):
    """Values that each keep one contract: a sequence, or ``*arguments``."""

    entry: Contract | None
    expects: str = "a sequence"

    def fits(self, value: Any) -> bool:
        """Say whether it is a list, a tuple or the like, and no text."""
        return isinstance(value, Sequence) and not isinstance(value, str)

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Check every entry, which is handed on as it is."""
        if self.entry is not None:
            for i, entry in enumerate(value):
                self.entry.apply(f"{name}[{i}]", entry, axes)
        return value


@dataclasses.dataclass(frozen=True)
class Fixed(Contract):
    """A tuple with a contract for each entry."""

    entries: tuple[Contract | None, ...]

    @property
    def expects(self) -> str:
        """How many entries."""
        return f"a tuple of {len(self.entries)}"

    def fits(self, value: Any) -> bool:
        """Say whether it is a list or tuple of that length."""
        return isinstance(value, tuple | list) and len(value) == len(self.entries)

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Check the entries."""
        return tuple(
            contract.apply(f"{name}[{i}]", entry, axes) if contract else entry
            for i, (contract, entry) in enumerate(zip(self.entries, value, strict=True))
        )


@dataclasses.dataclass(frozen=True)
class Record(Contract):
    """A named tuple, whose fields follow their own annotations."""

    kind: type
    fields: Callable[[], dict[str, Contract]]

    @property
    def expects(self) -> str:
        """The class."""
        return with_article(self.kind.__name__)

    def fits(self, value: Any) -> bool:
        """Ask ``isinstance``."""
        return isinstance(value, self.kind)

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Check the fields, those with a default only where they differ from it."""
        # Of the names of axes only these mean the same outside.
        inner = {axis: axes[axis] for axis in SHARED if axis in axes}
        changed = {}
        for field, contract in self.fields().items():
            old = getattr(value, field)
            new = contract.apply(f"{name}.{field}", old, inner)
            if new is not old:
                changed[field] = new
        axes.update({axis: inner[axis] for axis in SHARED if axis in inner})
        return value._replace(**changed) if changed else value


@dataclasses.dataclass(frozen=True)
class AnyOf(Contract):
    """One of several contracts, of which the first that holds is taken."""

    choices: tuple[Contract, ...]

    @property
    def expects(self) -> str:
        """What each of them expects."""
        return " or ".join(dict.fromkeys(choice.expects for choice in self.choices))

    @property
    def turn(self) -> int:
        """The latest of them."""
        return max(choice.turn for choice in self.choices)

    def fits(self, value: Any) -> bool:
        """Say whether it fits one of them."""
        return any(choice.fits(value) for choice in self.choices)

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Try those that the value fits; the last of them says what is wrong."""
        fitting = [choice for choice in self.choices if choice.fits(value)]
        for choice in fitting[:-1]:
            lengths = dict(axes)
            try:
                value = choice.check(name, value, lengths)
            except ValueError:
                continue
            axes.update(lengths)
            return value
        return fitting[-1].check(name, value, axes)


@dataclasses.dataclass(frozen=True)
class Leading(Contract):
    """A pytree whose leaves have the leading axis ``batch``."""

    expects: str = "a pytree of arrays with the leading axis batch"
    turn: int = 1

    def fits(self, value: Any) -> bool:
        """Accept every pytree; the leaves are checked by name."""
        return True

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Check the leading axis of every leaf, where the batch is known."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            place = name + jax.tree_util.keystr(path)
            if not hasattr(leaf, "shape"):
                raise ValueError(f"`{place}` must be an array; got {described(leaf)}")
            if leaf.shape:
                axes.setdefault("batch", Axis(leaf.shape[0], place))
            batch = axes["batch"].length if "batch" in axes else "..."
            if not leaf.shape or leaf.shape[0] != batch:
                raise ValueError(
                    f"`{place}` must have the leading axis batch={batch}; "
                    f"got shape {leaf.shape}"
                )
        return value


def is_array_hint(hint: Any) -> bool:
    """Say whether an annotation is one of jaxtyping's arrays."""
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)
