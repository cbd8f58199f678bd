"""A batch of points on conditional paths."""

from typing import NamedTuple

from jaxtyping import Array

from flowjax.contracts import checked
from flowjax.events import over_event
from flowjax.interpolants.coefficients import Interpolant, coefficients
from flowjax.typing import Condition, State, Time, Values


class Path(NamedTuple):
    """One batch of points on conditional paths; every leaf has the batch axis first.

    Slicing, sharding and masking rows is one ``jax.tree.map``.

    Attributes:
        x: the interpolated state x_t [batch, *event].
        t: its time [batch].
        v: the target velocity, d x_t / dt at fixed (x0, x1, z) [batch, *event].
        x0: the source sample [batch, *event].
        x1: the data sample [batch, *event].
        cond: the condition, a pytree with leading axis batch, or None.
    """

    # Points come from `sample_path`, and an objective need not read every leaf: their
    # values are not looked at again.
    x: Values
    t: Time
    v: Values
    x0: Values
    x1: Values
    cond: Condition = None


@checked
def sample_path(
    interpolant: Interpolant,
    x0: State,
    x1: State,
    t: Time,
    cond: Condition = None,
    *,
    z: State | None = None,
) -> Path:
    """Join ``x0`` and ``x1`` at time ``t``: ``x_t`` and its velocity ``d x_t / dt``.

    Args:
        interpolant: the coefficients alpha, sigma and possibly gamma.
        x0: source samples [batch, *event].
        x1: data samples [batch, *event].
        t: times in [0, 1] [batch].
        cond: a pytree with leading axis batch, handed on unchanged, or None.
        z: latent noise [batch, *event]; needed exactly when ``gamma`` is set.

    Returns:
        The `Path`, in the dtype of ``x1``. At a time where ``sigma'`` or ``gamma'``
        diverges (t=1 of the variance-preserving interpolants) so does its ``v``.

    Raises:
        ValueError: if shapes, dtypes or times do not fit, or ``z`` is missing or extra.

    References:
        arXiv:2303.08797, Definition 2.1.
    """
    for name, x in (("x0", x0), ("z", z)):
        if x is not None and x.dtype != x1.dtype:
            raise ValueError(
                f"`{name}` must have the dtype of `x1`={x1.dtype}; got {x.dtype}"
            )
    if (interpolant.gamma is None) != (z is None):
        expected = "no" if interpolant.gamma is None else "a"
        got = "none" if z is None else f"one of shape {z.shape}"
        raise ValueError(f"this interpolant takes {expected} latent `z`; got {got}")
    c = coefficients(interpolant, t)

    def combine(a: Array, b: Array, g: Array) -> Array:
        a, b, g = (over_event(w, x1) for w in (a, b, g))
        return a * x1 + b * x0 if z is None else a * x1 + b * x0 + g * z

    x = combine(c.alpha, c.sigma, c.gamma)
    v = combine(c.d_alpha, c.d_sigma, c.d_gamma)
    return Path(x, t, v, x0, x1, cond)
