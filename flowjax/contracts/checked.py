"""The decorator of public functions."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar, cast

from flowjax.contracts.annotations import contract_of
from flowjax.contracts.basic import Axes, Contract, Several

Function = TypeVar("Function", bound=Callable[..., Any])


def checked(function: Function) -> Function:
    """Check the arguments of every call of ``function`` by its annotations.

    NumPy arrays become JAX arrays where the annotation asks for those, and fields say
    whose output has the wrong shape. Signature, docstring and types stay visible; a
    default is not checked.

    Returns:
        The function, which raises ValueError with the name of the argument, what was
        expected and what came.
    """
    signature = inspect.signature(function)

    @functools.cache
    def contracts() -> dict[str, Contract]:
        # At the first call: an annotation may name what is defined after the function.
        return contracts_of(function)

    @functools.wraps(function)
    def with_contract(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        axes: Axes = {}
        # Arrays say how long the axes are; what is held against that comes after them.
        for name, contract in contracts().items():
            if name in call.arguments:
                value = call.arguments[name]
                call.arguments[name] = contract.apply(name, value, axes)
        return function(*call.args, **call.kwargs)

    return cast(Function, with_contract)


def contracts_of(function: Callable[..., Any]) -> dict[str, Contract]:
    """Return the contract of every parameter that has one, in the order of turns."""
    plain = inspect.unwrap(function)
    hints = typing.get_type_hints(plain, include_extras=True)
    contracts = {}
    for parameter in inspect.signature(plain).parameters.values():
        contract = contract_of(hints.get(parameter.name, Any))
        if contract is not None and parameter.kind is not parameter.VAR_KEYWORD:
            several = parameter.kind is parameter.VAR_POSITIONAL
            contracts[parameter.name] = Several(contract) if several else contract
    return dict(sorted(contracts.items(), key=lambda item: item[1].turn))
