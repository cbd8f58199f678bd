"""Solvers and tuned samplers as JSON files: every number is read back as it was.

A solver's file holds the five columns of a `MultistepSolver`. A run's sampler.json
holds one entry per number of evaluations, either such a solver or the grid of the jumps
of an average velocity.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from experiments.engine.files import write_atomically
from flowjax.sampling.multistep import MultistepSolver

Entry: TypeAlias = dict[str, Any]
"""``{"solver": columns}`` or ``{"jumps": times}``, and a ``"name"`` for people."""


def to_columns(solver: MultistepSolver) -> dict[str, list[Any]]:
    """Return a solver as lists of numbers, exactly."""
    return {
        name: np.asarray(leaf, np.float64).tolist()
        for name, leaf in solver._asdict().items()
    }


def from_columns(columns: Any) -> MultistepSolver:
    """Return the solver that `to_columns` described, in NumPy's float64.

    Raises:
        ValueError: if a column is missing, or is not made of finite numbers of a shape
            that fits the others.
    """
    names = MultistepSolver._fields
    if not isinstance(columns, Mapping) or set(columns) != set(names):
        got = sorted(columns) if isinstance(columns, Mapping) else columns
        raise ValueError(f"a solver has the columns {', '.join(names)}; got {got}")
    leaves: list[Any] = []
    for name in names:
        try:
            leaves.append(np.asarray(columns[name], np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the column {name} is not made of numbers") from error
        if not np.isfinite(leaves[-1]).all():
            raise ValueError(f"the column {name} holds numbers that are not finite")
    shapes = [leaf.shape for leaf in leaves]
    n = shapes[0][:1]
    fits = len(shapes[-1]) == 2 and shapes[-1][:1] == n and 0 not in shapes[-1]
    if not (fits and all(shape == n for shape in shapes[:-1])):
        raise ValueError(
            "a solver needs times, state, slope and scale [n] and weights [n, w]; got "
            f"{', '.join(map(str, shapes))}"
        )
    if not (leaves[0].min() >= 0 and leaves[0].max() <= 1):
        raise ValueError(f"times must lie in [0, 1]; got {leaves[0].tolist()}")
    return MultistepSolver(*leaves)


def save_solver(path: Path, solver: MultistepSolver) -> None:
    """Write one solver."""
    write_atomically(path, json.dumps(to_columns(solver), indent=1) + "\n")


def load_solver(path: Path) -> MultistepSolver:
    """Read what `save_solver` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold a solver.
    """
    try:
        return from_columns(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} holds no solver: {error}") from error


def save_entries(path: Path, entries: Mapping[int, Entry]) -> None:
    """Write the best sampler for every number of evaluations."""
    stored = {}
    for nfe, entry in sorted(entries.items()):
        table = {"solver": to_columns(entry["solver"])} if "solver" in entry else {}
        stored[str(nfe)] = {**entry, **table}
    write_atomically(path, json.dumps(stored, indent=1) + "\n")


def load_entry(path: Path, nfe: int | None) -> Entry:
    """Read one entry of a sampler.json; with ``nfe=None`` a file of one solver.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such entry, or a damaged one.
    """
    if nfe is None:
        return {"name": path.stem, "solver": load_solver(path)}
    try:
        stored = _read(path)
        known = ", ".join(stored) if isinstance(stored, Mapping) else "nothing"
        if not isinstance(stored, Mapping) or str(nfe) not in stored:
            raise ValueError(f"it has samplers for {known} evaluations; got {nfe}")
        entry = stored[str(nfe)]
        if not isinstance(entry, Mapping) or ("solver" in entry) == ("jumps" in entry):
            raise ValueError("an entry has either a solver or jumps")
        if "solver" in entry:
            return {**entry, "solver": from_columns(entry["solver"])}
        return dict(entry)
    except ValueError as error:
        raise ValueError(
            f"{path} holds no sampler for {nfe} evaluations: {error}"
        ) from error


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run experiments.tune_sampler")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
