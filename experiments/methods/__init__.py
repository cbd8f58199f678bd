"""Methods: one object each, by name in `METHODS`; one file per family."""

import importlib
import inspect
import pkgutil

from experiments.language.sentence import table
from experiments.methods.base import Method as Method


def _found() -> list[type[Method]]:
    """Return the methods that the files of this folder define, in their order."""
    names = [name for _, name, _ in pkgutil.iter_modules(__path__) if name != "base"]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [
        thing
        for module in modules
        for name, thing in vars(module).items()
        if inspect.isclass(thing)
        and issubclass(thing, Method)
        and thing.__module__ == module.__name__
        and not name.startswith("_")
        and thing.loss is not Method.loss  # what others have in common is no method
    ]


METHODS = table(*_found())
