"""Couplings: which source sample is paired with which data sample.

A coupling takes a batch of source and a batch of data samples and returns the pairs
that the interpolant joins. It changes the joint law of (x0, x1), hence how straight the
marginal flow is, and must leave both marginals alone.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from flowjax._checks import check_condition, check_state
from flowjax._typing import Condition, PRNGKey, State


class Pairs(NamedTuple):
    """Paired samples; row i of ``x0`` belongs to row i of ``x1`` and of ``cond``."""

    x0: State
    x1: State
    cond: Any = None


@runtime_checkable
class Coupling(Protocol):
    """A way to pair two batches; hyper-parameters are bound with functools.partial."""

    def __call__(
        self, key: PRNGKey, x0: State, x1: State, cond: Condition = None, /
    ) -> Pairs:
        """Return the pairs. Conditions travel with the data samples they describe."""
        ...


def independent(key: PRNGKey, x0: State, x1: State, cond: Condition = None, /) -> Pairs:
    """Pair rows as they come: the product law ``p0 x p1`` for independent batches.

    Args:
        key: unused; accepted so that every coupling is called alike.
        x0: source samples [batch, *event].
        x1: data samples [batch, *event].
        cond: a pytree with leading axis batch, or None.

    Raises:
        ValueError: if shapes or dtypes do not fit.

    References:
        Tong et al. 2023, arXiv:2302.00482, Sec. 3.2.1 (I-CFM).
    """
    del key
    check_state("x1", x1)
    check_state("x0", x0, like=x1)
    check_condition(cond, len(x1))
    return Pairs(x0, x1, cond)
