"""How a callable can be called: told from its signature, before it is called."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


class Arity(NamedTuple):
    """How many positional arguments a callable needs, how many it takes, their names.

    The names are known only where every argument is the callable's own.
    """

    least: int
    most: int
    names: tuple[str, ...] = ()


def arity(call: Callable[..., Any]) -> Arity | None:
    """Return how many positional arguments ``call`` takes, or None if it can't be told.

    Looks through `functools.partial`, `jax.jit` and every wrapper that says what it
    wraps, and from a bound method that only hands arguments on, as Flax's ``apply``
    does, to the call of the object that it is bound to.
    """
    given, named = 0, {}
    while True:
        if isinstance(call, functools.partial):
            given += len(call.args)
            named |= call.keywords
            call = call.func
        elif not inspect.ismethod(call) and hasattr(call, "__wrapped__"):
            call = call.__wrapped__
        elif (owner := _handed_to(call, named)) is not None:
            given -= len(_positional(call) or ())
            call = owner
        else:
            break
    parameters = _positional(call)
    if parameters is None or _takes_any(call):
        return None
    # What comes after an argument that is bound by name can be given by name only.
    free = []
    for parameter in parameters[max(given, 0) :]:
        if parameter.name in named:
            break
        free.append(parameter)
    needed = sum(parameter.default is parameter.empty for parameter in free)
    missing = max(-given, 0)  # what a method takes before it hands the rest on
    names = () if missing else tuple(parameter.name for parameter in free)
    return Arity(needed + missing, len(free) + missing, names)


def called_like(field: Callable[..., Any]) -> Callable[[Function], Function]:
    """Say that a function of ``*args`` is to be called as ``field`` is."""

    def marked(function: Function) -> Function:
        vars(function)["__wrapped__"] = field
        return function

    return marked


def _signature(call: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(call)
    except (TypeError, ValueError):
        return None


def _positional(call: Callable[..., Any]) -> list[inspect.Parameter] | None:
    signature = _signature(call)
    if signature is None:
        return None
    return [p for p in signature.parameters.values() if p.kind in POSITIONAL]


def _takes_any(call: Callable[..., Any]) -> bool:
    signature = _signature(call)
    parameters = () if signature is None else signature.parameters.values()
    return any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)


def _handed_to(
    call: Callable[..., Any], named: dict[str, Any]
) -> Callable[..., Any] | None:
    """Return the call that a bound method hands its arguments to, if there is one."""
    if not (inspect.ismethod(call) and _takes_any(call)):
        return None
    owner = call.__self__
    # An option that names another method, or is one, leads elsewhere.
    leads = any(callable(value) or isinstance(value, str) for value in named.values())
    if leads or inspect.isclass(owner) or not callable(owner):
        return None
    target: Any = owner.__call__
    return None if target == call else target
