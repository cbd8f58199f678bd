"""Imports that only an optional extra provides."""

import importlib
from importlib import metadata
from typing import Any

_DISTRIBUTION = "flowjax-matching"


def require(module: str, *, extra: str) -> Any:
    """Import ``module``, or say what to install.

    Raises:
        ImportError: if the module is not installed. The message holds a command that
            works wherever the package came from, a clone or a wheel: the distributions
            of the extra themselves.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`{module}` is not installed; it comes with the extra `{extra}`: "
            f"pip install {' '.join(map(repr, _requirements(extra)))}"
        ) from error


def _requirements(extra: str) -> list[str]:
    """Return what an extra requires beyond the core, as pip reads it."""
    try:
        stated = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # copied files, never installed
        return [f"{_DISTRIBUTION}[{extra}]"]
    pairs = (line.partition(";")[::2] for line in stated)
    names = f'extra == "{extra}"', f"extra == '{extra}'"
    return [name.strip() for name, marker in pairs if any(n in marker for n in names)]
