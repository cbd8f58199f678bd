"""Penalties: from the residual of an identity to one loss per row.

Every objective states an identity and hands its residual to a penalty. How residuals
are clipped, normalised, weighted and reduced is therefore the same for all objectives,
and is chosen by composition: each function below wraps the penalty that comes after it,
as in ``clipped(1.0, penalty=adaptive(power=0.5))``.

Clipping and normalising change the *value* of the residual and leave it the gradient
that it had: with a residual ``e = u - sg[target]`` the network is regressed onto
``sg[u - f(e)]``. Where the target is noisy (the conditional velocity is), a penalty
that is not quadratic moves the minimiser away from the mean; see `adaptive`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from typing_extensions import TypeVar

from flowjax.contracts import checked
from flowjax.events import event_mean, event_sum, expand_like, flatten_event, over_event
from flowjax.typing import (
    AnyTime,
    NonNegative,
    PerExample,
    Positive,
    TimeFunction,
    Values,
)


class Terms(NamedTuple):
    """What an identity leaves for the penalty; every leaf has the batch axis first.

    Attributes:
        residual: prediction minus target, zero where the identity holds
            [batch, *event]; what it does not stop carries the gradient.
        t: the time of the state [batch].
        s: the destination [batch]; ``t`` on the diagonal.
        derivative: the derivative of the field that entered the target, without
            gradient [batch, *event]; zero where there was none.
    """

    residual: Values
    t: AnyTime
    s: AnyTime
    derivative: Values


Penalty: TypeAlias = Callable[[Terms], PerExample]
"""``terms -> loss [batch]``."""

# With a default, as that of the parameter `penalty` says nothing to a type checker.
Loss = TypeVar("Loss", default=PerExample)
"""What a penalty returns: a loss [batch], with `diagnosed` a pair (loss, metrics)."""


@checked
def mean_square(terms: Terms) -> PerExample:
    """Return ``|e|^2 / dim``, the mean over the event of the squared residual."""
    return event_mean(jnp.square(terms.residual))


@checked
def pseudo_huber(*, scale: Positive) -> Penalty:
    """Return the penalty ``sqrt(|e|^2 + scale^2) - scale``, linear in large residuals.

    Args:
        scale: where the square turns into a line, in units of the norm of the residual.

    Raises:
        ValueError: unless ``scale > 0``.

    References:
        Song and Dhariwal 2023, arXiv:2310.14189, Eq. 8.
    """

    def penalty(terms: Terms) -> PerExample:
        square = mean_square(terms) * terms.residual[0].size
        return jnp.sqrt(square + scale**2) - scale

    return penalty


@checked
def adaptive(
    *,
    power: float,
    offset: NonNegative | PerExample = 1e-2,
    penalty: Penalty = mean_square,
) -> Penalty:
    """Return the penalty ``l sg[(l + offset / dim)^-power]`` for an inner penalty l.

    ``l`` is a mean over the event, MeanFlow's a sum; dividing the offset by the event's
    dimension makes this the paper's loss up to the constant ``dim^(power - 1)``. Power
    0 is unbiased. With a *conditional* velocity ``power > 0`` weighs the residuals of
    one (x, t) unequally and moves the minimiser away from the mean: use it for images,
    where the squared norm concentrates, not in a few dimensions. Power 1/2 is the
    gradient of the norm ``sqrt(|e|^2 + offset)`` (FACM's and TwinFlow's distance).

    Args:
        power: 0 is no weight, 1 the usual choice for images.
        offset: in units of the squared norm of the event, a number or one per row.
        penalty: the inner penalty.

    References:
        Geng et al. 2025, arXiv:2505.13447, Eq. 22.
    """

    def weighted_penalty(terms: Terms) -> PerExample:
        loss = penalty(terms)
        dimension = terms.residual[0].size
        return loss * jax.lax.stop_gradient((loss + offset / dimension) ** -power)

    return weighted_penalty


@checked
def root_mean_square(terms: Terms) -> PerExample:
    """Return ``l sg[(l + 1e-6)^-1/2]`` for the mean square l: nearly its root.

    Barron's general loss with shape 1 and scale 1e-3, its weight without gradient.
    """
    return adaptive(power=0.5, offset=1e-6 * terms.residual[0].size)(terms)


@checked
def weighted(weight: TimeFunction, *, penalty: Penalty = mean_square) -> Penalty:
    """Return the penalty ``w(t) l`` for an inner penalty l and a weight of time."""
    return lambda terms: weight(terms.t) * penalty(terms)


@checked
def learned(
    log_variance: Callable[[AnyTime, AnyTime], PerExample],
    *,
    penalty: Penalty = mean_square,
) -> Penalty:
    """Return ``exp(-w(t, s)) l + w(t, s)``: a learned weight of the times alone.

    At the optimum ``exp(w)`` is the mean loss at (t, s), so that all pairs of times
    weigh alike. Unlike a weight per example it leaves the minimiser where it is.

    Args:
        log_variance: ``w(t, s)`` [batch], with its own parameters to be trained.
        penalty: the inner penalty.

    References:
        Karras et al. 2023, EDM2, arXiv:2312.02696, Eq. 21.
    """

    def balanced(terms: Terms) -> PerExample:
        w = log_variance(terms.t, terms.s)
        return jnp.exp(-w) * penalty(terms) + w

    return balanced


@checked
def logarithmic(
    log_variance: Callable[[AnyTime, AnyTime], PerExample] | None = None,
    *,
    offset: Positive = 0.01,
    penalty: Penalty = mean_square,
) -> Penalty:
    """Return ``log(exp(-w) l + offset) + w``, with ``w(t, s)`` learned or zero.

    Its gradient is that of `adaptive` with power 1 and the offset ``offset exp(w)``,
    and like that one it is biased where the target is noisy. The minimum over ``l`` is
    ``log(offset)`` for ``w = 0``.

    Args:
        log_variance: ``w(t, s)`` [batch], with its own parameters; None: zero.
        offset: keeps the logarithm finite, in units of the loss.
        penalty: the inner penalty.

    Raises:
        ValueError: unless ``offset > 0``.

    References:
        Lee et al. 2025, Decoupled MeanFlow, arXiv:2510.24474.
    """

    def logarithm(terms: Terms) -> PerExample:
        loss = penalty(terms)
        w = jnp.zeros_like(loss)
        if log_variance is not None:
            w = log_variance(terms.t, terms.s)
        return jnp.log(jnp.exp(-w) * loss + offset) + w

    return logarithm


@checked
def displaced(
    *, penalty: Callable[[Terms], Loss] = mean_square
) -> Callable[[Terms], Loss]:
    """Multiply the residual by ``s - t``: from velocities to the points they lead to.

    The residual of ``u(x, t, s)`` becomes that of the flow map ``X(x, t, s)``.
    """

    def of_the_map(terms: Terms) -> Loss:
        reach = over_event(terms.s - terms.t, terms.residual)
        return penalty(terms._replace(residual=reach * terms.residual))

    return of_the_map


@checked
def clipped(
    bound: Positive, *, penalty: Callable[[Terms], Loss] = mean_square
) -> Callable[[Terms], Loss]:
    """Clip every entry of the residual's value to ``[-bound, bound]``.

    Args:
        bound: largest absolute value of an entry.
        penalty: the inner penalty.

    Raises:
        ValueError: unless ``bound > 0``.
    """
    return revalued(lambda e, t: jnp.clip(e, -bound, bound), penalty=penalty)


@checked
def normalised(
    *, offset: Positive = 0.1, penalty: Callable[[Terms], Loss] = mean_square
) -> Callable[[Terms], Loss]:
    """Replace the residual's value by ``e / (|e| + offset)``, 2-norm over the event.

    Args:
        offset: added to the norm of the residual; for small residuals, the scale.
        penalty: the inner penalty.

    Raises:
        ValueError: unless ``offset > 0``.

    References:
        Lu and Song 2024, sCM, arXiv:2410.11081, Sec. 4.1 (tangent normalisation).
    """

    def normalise(e: Values, t: AnyTime) -> Values:
        # The root of a sum of squares has no derivative at 0; here it needs none.
        norm = jnp.sqrt(event_sum(jnp.square(e)))
        return e / (expand_like(norm, e) + offset)

    return revalued(normalise, penalty=penalty)


@checked
def clipped_cosine(terms: Terms) -> PerExample:
    """Return FACM's penalty of a consistency residual.

    Its value becomes ``(1 - sqrt(t)) clip(e, -1, 1)`` and the loss, with the mean
    square l of that, ``cos(pi t / 2) l sg[(l + 1e-3)^-1/2]``. Clipping is biased where
    the velocity is conditional.
    """

    def scale(e: Values, t: AnyTime) -> Values:
        return over_event(1 - jnp.sqrt(t), e) * jnp.clip(e, -1, 1)

    root = adaptive(power=0.5, offset=1e-3 * terms.residual[0].size)
    cosine = weighted(lambda t: jnp.cos(t * (jnp.pi / 2)), penalty=root)
    return revalued(scale, penalty=cosine)(terms)


@checked
def revalued(
    function: Callable[[Values, AnyTime], Values],
    *,
    penalty: Callable[[Terms], Loss] = mean_square,
) -> Callable[[Terms], Loss]:
    """Give the residual the value ``f(e, t)`` and leave it the gradient of ``e``."""

    def changed(terms: Terms) -> Loss:
        e = terms.residual
        return penalty(terms._replace(residual=with_value(e, function(e, terms.t))))

    return changed


@checked
def with_value(e: Values, value: Values) -> Values:
    """Return ``e + sg[value - e]``: the value ``value`` and the gradient of ``e``."""
    return e + jax.lax.stop_gradient(value - e)


@checked
def diagnosed(
    penalty: Penalty = mean_square, *, clip: Positive | None = None
) -> Callable[[Terms], tuple[PerExample, dict[str, Array]]]:
    """Return ``penalty`` with what a training loop should watch, at no extra pass.

    Must be the outermost wrapper: it sees the residual before it is clipped.

    Returns:
        A penalty whose value is ``(loss, metrics)``, each metric [batch]: ``residual``,
        the root mean square of the raw residual over the event; ``derivative``, that of
        the derivative in the target; and with ``clip``, ``clipped``, 1 where an entry
        of the residual exceeds that bound.
    """

    def diagnose(terms: Terms) -> tuple[PerExample, dict[str, Array]]:
        metrics = {
            "residual": _size(terms.residual),
            "derivative": _size(terms.derivative),
        }
        if clip is not None:
            rows = flatten_event(jnp.abs(terms.residual))
            metrics["clipped"] = (rows.max(1) > clip).astype(rows.dtype)
        return penalty(terms), jax.lax.stop_gradient(metrics)

    return diagnose


@checked
def plus(
    value: Loss, other: Loss | Float[Array, "..."], *, weight: float | Array = 1.0
) -> Loss:
    """Return ``value + weight * other``, metrics (if any) being those of ``value``.

    ``other`` is a loss [batch] or what a penalty returned.
    """
    extra = weight * cast(Array, other[0] if isinstance(other, tuple) else other)
    if isinstance(value, tuple):
        loss, metrics = value
        return cast(Loss, (loss + extra, metrics))
    return cast(Loss, cast(Array, value) + extra)


def _size(x: Values) -> PerExample:
    """Return the root mean square of every row, without gradient."""
    return jnp.sqrt(event_mean(jnp.square(jax.lax.stop_gradient(x))))
