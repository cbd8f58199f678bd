"""Flow matching: regress the instantaneous velocity of the conditional paths."""

from collections.abc import Callable

from flowjax.contracts import checked
from flowjax.interpolants import Path
from flowjax.objectives.penalties import Loss, Terms, mean_square
from flowjax.objectives.residuals import velocity_residual
from flowjax.typing import VelocityField


@checked
def flow_matching(
    v: VelocityField,
    path: Path,
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Loss:
    """Return the penalty of ``v(x_t, t) - v_t``, by default ``|.|^2 / dim``, per row.

    The minimiser is the marginal velocity ``E[v_t | x_t = x]``, also with a weight of
    time (`flowjax.objectives.penalties.weighted`), and the minimum is not zero: for the
    linear path between N(0, I) and N(m, S^2 I) it is ``pi S / 2`` with uniform t.

    Args:
        v: the velocity field to train.
        path: a batch of points on conditional paths.
        penalty: from the residual to the loss; see `flowjax.objectives.penalties`.

    Returns:
        What the penalty returns, by default the loss [batch].

    References:
        Lipman et al. 2022, arXiv:2210.02747, Eq. 9; Liu et al. 2022, arXiv:2209.03003,
        Eq. 1.
    """
    return penalty(velocity_residual(v, path))
