"""The contract of what NumPy takes for an array of numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.contracts.basic import Axes, Contract, check_range
from flowjax.typing import Range


@dataclasses.dataclass(frozen=True)
class NumbersOf(Contract):
    """A number, nested lists of numbers, or an array of any shape."""

    limits: tuple[Range, ...] = (Range(),)
    expects: str = "a number, nested lists of numbers or an array"

    def fits(self, value: Any) -> bool:
        """Try what NumPy makes of it."""
        if isinstance(value, jax.Array):
            return jnp.issubdtype(value.dtype, jnp.number)
        try:
            return np.issubdtype(np.asarray(value).dtype, np.number)
        except ValueError:  # lists of unequal length
            return False

    def check(self, name: str, value: Any, axes: Axes) -> Any:
        """Check the values."""
        check_range(name, value, self.limits)
        return value
