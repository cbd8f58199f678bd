"""Experiments by name: one file each, and every member of the family on two data sets.

The docstring of a file holds the command and what it reached. ``digits_NAME`` and
``density_NAME`` are made for every member of `experiments.members.MEMBERS` that has no
file of its own, from the settings of the MeanFlow of that data and `SETTINGS`.
"""

import dataclasses
import importlib
import pkgutil

from experiments.config import Experiment
from experiments.configs._family import BASES, SETTINGS
from experiments.members import MEMBERS

DEFAULT = "digits_mean_flow"


def files() -> list[str]:
    """Return the names of the experiments that have a file of their own."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def names() -> list[str]:
    """Return the names of all experiments, the default one first."""
    family = {f"{base}_{member}" for base in BASES for member in MEMBERS}
    found = sorted(family | set(files()))
    return [DEFAULT, *(name for name in found if name != DEFAULT)]


def get(name: str) -> Experiment:
    """Return the configuration called ``name``.

    Raises:
        ValueError: if there is none; the message lists the known names.
    """
    if name not in names():
        raise ValueError(f"experiment must be one of {', '.join(names())}; got {name}")
    if name in files():
        return importlib.import_module(f"{__name__}.{name}").config
    base, member = name.split("_", 1)
    config = get(BASES[base])
    settings = SETTINGS.get(member, {})
    parts = {
        part: dataclasses.replace(getattr(config, part), **entries)
        for part, entries in settings.items()
        if part not in ("objective",)
    }
    objective = {"teacher": f"runs/{base}_teacher"} if needs_teacher(member) else {}
    objective |= {"name": member} | settings.get("objective", {})
    parts["objective"] = dataclasses.replace(config.objective, **objective)
    return dataclasses.replace(config, **parts)


def needs_teacher(member: str) -> bool:
    """Say whether a member learns from another run."""
    starts = SETTINGS.get(member, {}).get("objective", {}).get("start_from_teacher")
    return MEMBERS[member].teacher or MEMBERS[member].pairs or bool(starts)


def summary(name: str) -> str:
    """Return one line about a configuration."""
    if name in files():
        module = importlib.import_module(f"{__name__}.{name}")
        return (module.__doc__ or "").strip().splitlines()[0]
    base, member = name.split("_", 1)
    return f"{MEMBERS[member].about} on the data of {BASES[base]}."
