"""The coupling that pairs rows as they come."""

from flowjax.contracts import checked
from flowjax.typing import Condition, Pairs, PRNGKey, State


@checked
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
    return Pairs(x0, x1, cond)
