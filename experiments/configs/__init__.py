"""Experiments by name: one file each, and every method on the digits and on a density.

The docstring of a file holds the command and what it reached. ``digits_NAME`` and
``density_NAME`` are made for every method of `experiments.methods.METHODS` that has no
file of its own, from the MeanFlow of that data and what the method says that it needs.
"""

import difflib
import importlib
import pkgutil

from experiments.engine import catalogue
from experiments.engine.experiment import Experiment, with_method
from experiments.language.sentence import summary as summary_of
from experiments.methods import METHODS

DEFAULT = "digits_mean_flow"

BASES = {"digits": "digits_mean_flow", "density": "density_mean_flow"}
"""``prefix -> experiment`` whose data, network and optimiser the methods share."""


def files() -> list[str]:
    """Return the names of the experiments that have a file of their own."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def names() -> list[str]:
    """Return the names of all experiments, the default one first."""
    family = {f"{base}_{method}" for base in BASES for method in METHODS}
    found = sorted(family | set(files()))
    return [DEFAULT, *(name for name in found if name != DEFAULT)]


def listing() -> str:
    """Return all experiments, and all that they can be made of."""
    family = " and ".join(f"{base}_METHOD" for base in BASES)
    return catalogue.listing({name: summary(name) for name in files()}, family)


def get(name: str) -> Experiment:
    """Return the experiment called ``name``.

    Raises:
        ValueError: if there is none; the message says which name comes nearest.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"there is no experiment {name}{hint} See them all: "
            "python -m experiments.train --list"
        )
    if name in files():
        return importlib.import_module(f"{__name__}.{name}").experiment
    base, method = name.split("_", 1)
    return with_method(get(BASES[base]), METHODS[method], teacher=teacher_of(name))


def teacher_of(name: str) -> str:
    """Return the folder of the teacher's run on the data of an experiment."""
    return f"runs/{name.split('_')[0]}_teacher"


def summary(name: str) -> str:
    """Return one line about an experiment."""
    if name in files():
        module = importlib.import_module(f"{__name__}.{name}")
        return (module.__doc__ or "").split("\n")[0]
    base, method = name.split("_", 1)
    about = summary_of(METHODS[method]).rstrip(".")
    return f"{about}, on the data of {BASES[base]}."
