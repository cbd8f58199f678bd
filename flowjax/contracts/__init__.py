"""Contracts: what a function's annotations promise, checked when it is called.

`checked` reads the annotations of a public function once and checks the arguments of
every call by them: arrays by dtype and shape, with axes of one name agreeing between
arguments, numbers by their range, functions by how they can be called and by the shape
of what they return. Shapes and dtypes are static, so this costs nothing in a compiled
program; values are looked at where they are known before tracing.
"""

from flowjax.contracts.arity import called_like
from flowjax.contracts.checked import checked

__all__ = ["called_like", "checked"]
