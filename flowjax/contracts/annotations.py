"""From an annotation to the contract that it states."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import is_protocol

from flowjax.contracts.arity import POSITIONAL
from flowjax.contracts.arrays import ArrayOf
from flowjax.contracts.basic import (
    AnyOf,
    Contract,
    Fixed,
    Instance,
    Leading,
    Numbers,
    OneOf,
    Record,
    Several,
    is_array_hint,
    with_article,
)
from flowjax.contracts.callbacks import Callback
from flowjax.contracts.numbers import NumbersOf
from flowjax.typing import Range, Rank, Rows

NUMBERS = {
    float: (float, int, np.floating, np.integer),
    int: (int, np.integer),
}


def contract_of(hint: Any, marks: tuple[Any, ...] = ()) -> Contract | None:
    """Return what an annotation asks for, or None if nothing can be said.

    Args:
        hint: the annotation.
        marks: what stands beside it in ``Annotated[hint, *marks]``.
    """
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *outer = get_args(hint)
        return contract_of(inner, (*marks, *outer))
    if any(isinstance(mark, Rows) for mark in marks):
        return Leading()
    if isinstance(hint, TypeVar):
        return contract_of(hint.__bound__) if hint.__bound__ is not None else None
    if hint == ArrayLike:
        return NumbersOf()
    if origin in (Union, types.UnionType):
        return _one_of_several(get_args(hint), marks)
    if origin is Literal:
        return OneOf(get_args(hint))
    if origin is not None:
        return _generic(origin, get_args(hint))
    return _plain(hint, marks)


def _one_of_several(hints: tuple[Any, ...], marks: tuple[Any, ...]) -> Contract | None:
    contracts = [contract_of(hint, marks) for hint in hints]
    known = tuple(contract for contract in contracts if contract is not None)
    return AnyOf(known) if len(known) == len(contracts) else None


def _generic(origin: Any, args: tuple[Any, ...]) -> Contract | None:
    if origin is Callable:
        parameters, returned = args
        if parameters is Ellipsis:
            return Callback("f(...)", None)
        hints = {f"a{i}": hint for i, hint in enumerate(parameters)}
        return _callback(f"f of {len(hints)} arguments", hints, returned)
    if origin is tuple and args and args[-1] is not Ellipsis:
        return Fixed(tuple(map(contract_of, args)))
    if origin is tuple or origin is Sequence:
        return Several(contract_of(args[0]))
    return _plain(origin, ())


def _plain(hint: Any, marks: tuple[Any, ...]) -> Contract | None:
    limits = tuple(mark for mark in marks if isinstance(mark, Range))
    if is_array_hint(hint):
        least = max((m.least for m in marks if isinstance(m, Rank)), default=0)
        return ArrayOf(hint, limits, least)
    if hint in NUMBERS:
        return Numbers(NUMBERS[hint], limits or (Range(),))
    if hint is None or hint is type(None):
        return Instance(type(None), "None")
    if not inspect.isclass(hint) or hint in (object, Any):
        return None
    if hint is bool:
        return Instance(bool, "True or False")
    if issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return Record(hint, functools.cache(lambda: _fields(hint)))
    if is_protocol(hint) and "__call__" in vars(hint):
        return _protocol(hint)
    return Instance(hint, with_article(hint.__name__))


def _fields(kind: Any) -> dict[str, Contract]:
    hints = typing.get_type_hints(kind, include_extras=True)
    contracts = {name: contract_of(hints.get(name, Any)) for name in kind._fields}
    known = {name: c for name, c in contracts.items() if c is not None}
    return dict(sorted(known.items(), key=lambda item: item[1].turn))


def _protocol(kind: Any) -> Contract:
    hints = typing.get_type_hints(kind.__call__, include_extras=True)
    parameters = list(inspect.signature(kind.__call__).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind in POSITIONAL]
    call = f"{kind.__name__}({', '.join(names)})"
    inputs = {name: hints.get(name, Any) for name in names}
    return _callback(call, inputs, hints.get("return", Any), kind)


def _callback(
    call: str, inputs: dict[str, Any], returned: Any, kind: Any = None
) -> Callback:
    """Return the contract of a function with these annotations."""
    output = contract_of(returned)
    # Of what is handed to it only the axes are read, to know those of the output.
    axes = {
        name: contract if isinstance(contract := contract_of(hint), ArrayOf) else None
        for name, hint in inputs.items()
    }
    return Callback(call, axes, output if isinstance(output, ArrayOf) else None, kind)
