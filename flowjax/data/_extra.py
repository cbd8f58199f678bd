"""Imports that only the optional extra `data` provides."""

import importlib
from typing import Any


def require(module: str) -> Any:
    """Import ``module``, or say which extra brings it.

    Raises:
        ImportError: if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`{module}` is not installed; reading image sets needs the extra `data`: "
            "pip install 'flowjax-matching[data]'"
        ) from error
