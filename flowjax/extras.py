"""Imports that only an optional extra provides."""

import importlib
from typing import Any


def require(module: str, *, extra: str) -> Any:
    """Import ``module``, or say which extra of the distribution brings it.

    Raises:
        ImportError: if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`{module}` is not installed; it comes with the extra `{extra}`: "
            f"pip install 'flowjax-matching[{extra}]'"
        ) from error
