"""CFG-MP: guided steps from points on which both predictions nearly agree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.events import expand_like, over_event
from flowjax.guidance.at_sampling import classifier_free
from flowjax.guidance.per_row import null_like
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Count,
    Natural,
    NonNegative,
    State,
    Time,
    VelocityField,
)


@checked
def manifold_projection(
    v: VelocityField,
    *,
    scale: float,
    null: Any,
    iterations: Count = 2,
    memory: Natural = 0,
    ridge: NonNegative = 1e-4,
    mixing: float = 1.0,
    switch: float = 0.05,
    until: float = 0.4,
) -> AverageVelocityField:
    """Return the average velocity of one guided Euler step with CFG-MP's projection.

    A step from t to s first moves the state at the same time: ``iterations`` times
    ``z <- G(z)``, with ``h = (s - t) / 2`` and

        y = z + h v(z, t, cond),   G = y - h v(y, t, null)    for t <= switch
        y = z - h v(z, t, null),   G = y + h v(y, t, cond)    for switch < t < until

    and then takes the classifier-free Euler step from z. For `sampling.few_step`, whose
    jumps tell the method the length of the step.

    ``G(z) - z`` is ``h (v_cond - v_null)`` up to O(h^2): the fixed point of G lies
    O(1/h) away and is not what is wanted. Keep ``iterations`` to two or three.

    Args:
        v: the velocity field, with a condition.
        scale: the guidance scale.
        null: the condition that means "none", as in `classifier_free`.
        iterations: applications of G, at least 1.
        memory: earlier iterates in the Anderson acceleration (CFG-MP+ uses 1); 0 is
            the plain iteration.
        ridge: regularises the least squares of the acceleration.
        mixing: share of ``G(z)`` against ``z`` in an accelerated iterate.
        switch: time at which the order of the two predictions is exchanged.
        until: time from which on nothing is projected.

    Returns:
        A field ``u(x, t, s, cond)`` with ``2 iterations + 2`` evaluations of ``v`` per
        call, and 2 where no row is projected.

    Raises:
        ValueError: if an option is out of range; when called, if there is no condition.

    References:
        Cai et al. 2026, Improving Classifier-Free Guidance of Flow Matching via
        Manifold Projection, arXiv:2601.21892.
    """
    guided = classifier_free(v, scale=scale, null=null)

    def u(x: State, t: Time, s: Time, cond: Condition = None, /) -> State:
        none = null_like(cond, null)
        early, projected = t <= switch, t < until
        gap = over_event(s - t, x)
        first, second = _choose(early, cond, none), _choose(early, none, cond)
        h = jnp.where(expand_like(early, x), gap, -gap) / 2

        def operator(z: State) -> State:
            y = z + h * v(z, t, first).astype(x.dtype)
            return y - h * v(y, t, second).astype(x.dtype)

        def project() -> State:
            z = anderson(
                operator, x, iterations, memory=memory, ridge=ridge, mixing=mixing
            )
            return jnp.where(expand_like(projected, x), z, x)

        z = jax.lax.cond(projected.any(), project, lambda: x)
        # Nothing has moved where s = t.
        shift = (z - x) / jnp.where(gap == 0, 1, gap)
        return shift + guided(z, t, cond).astype(x.dtype)

    return u


@checked
def anderson(
    operator: Callable[[State], State],
    z: State,
    iterations: Count,
    *,
    memory: Natural = 1,
    ridge: NonNegative = 1e-4,
    mixing: float = 1.0,
) -> State:
    """Iterate ``z <- operator(z)`` with Anderson acceleration, row by row.

    The next iterate is ``sum_i a_i ((1 - mixing) z_i + mixing operator(z_i))`` over the
    last ``memory + 1`` iterates, with ``sum_i a_i = 1`` and the least
    ``|sum_i a_i (operator(z_i) - z_i)|^2 + ridge |a|^2``.

    Args:
        operator: maps states to states [batch, *event], each row by itself.
        z: the start [batch, *event].
        iterations: evaluations of ``operator``, a static number.
        memory: earlier iterates; 0 is the plain (damped) iteration.
        ridge: weight of the regularisation.
        mixing: share of ``operator(z)``; below 1 is damped.

    References:
        Walker and Ni 2011, Anderson Acceleration for Fixed-Point Iterations.
    """
    states: list[State] = []
    values: list[State] = []
    for _ in range(iterations):
        states = [*states, z][-memory - 1 :]
        values = [*values, operator(z)][-memory - 1 :]
        old, new = jnp.stack(states, 1), jnp.stack(values, 1)  # [batch, m, *event]
        residual = (new - old).reshape((len(z), len(states), -1))
        gram = jnp.einsum("bik,bjk->bij", residual, residual)
        gram += ridge * jnp.eye(len(states), dtype=z.dtype)[None]
        # The minimiser is gram^-1 1, up to the factor that makes the sum one.
        a = jnp.linalg.solve(gram, jnp.ones((len(z), len(states), 1), z.dtype))[..., 0]
        a = a / a.sum(1, keepdims=True)
        mixed = (1 - mixing) * old + mixing * new
        z = (expand_like(a, mixed) * mixed).sum(1)
    return z


def _choose(mask: Any, yes: Condition, no: Condition) -> Condition:
    """Return the rows of ``yes`` where ``mask``, else those of ``no``."""

    def leaf(a: Any, b: Any) -> Any:
        a, b = jnp.asarray(a), jnp.asarray(b)
        return jnp.where(expand_like(mask, a), a, b)

    return jax.tree.map(leaf, yes, no)
