"""One file per experiment; its docstring holds the command and what it reached."""

import importlib
import pkgutil

from experiments.config import Experiment

DEFAULT = "digits_mean_flow"


def names() -> list[str]:
    """Return the names of all experiments, the default one first."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [DEFAULT, *(name for name in found if name != DEFAULT)]


def get(name: str) -> Experiment:
    """Return the configuration called ``name``.

    Raises:
        ValueError: if there is none; the message lists the known names.
    """
    if name not in names():
        raise ValueError(f"experiment must be one of {', '.join(names())}; got {name}")
    return importlib.import_module(f"{__name__}.{name}").config


def summary(name: str) -> str:
    """Return the first line of the docstring of a configuration."""
    module = importlib.import_module(f"{__name__}.{name}")
    return (module.__doc__ or "").strip().splitlines()[0]
