"""Rules: how a field is combined with the one that it should move away from.

A rule is ``(strong, weak, scale) -> value`` for two predictions [batch, *event] of one
state. `classifier_free` and `autoguidance` take one as an argument; `rescaled` wraps
another.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.dtypes import at_least_float32
from flowjax.typing import Share, Values

Field = TypeVar("Field", bound=Callable[..., Any])
"""A velocity ``v(x, t, cond)`` or an average velocity ``u(x, t, s, cond)``."""

Scale = float | Float[Array, "batch *ones"]
"""A guidance scale as it reaches a rule: it multiplies a state."""


@runtime_checkable
class Rule(Protocol):
    """Combines the prediction to follow with the one to leave."""

    def __call__(self, strong: Values, weak: Values, scale: Scale, /) -> Values:
        """Return the guided prediction [batch, *event]."""
        ...


@checked
def extrapolation(strong: Values, weak: Values, scale: Scale, /) -> Values:
    """Return ``weak + scale (strong - weak)``."""
    return weak + scale * (strong - weak)


@checked
def optimal_scale(strong: Values, weak: Values, scale: Scale, /) -> Values:
    """Return ``a weak + scale (strong - a weak)``, the rule of CFG-Zero*.

    ``a = <strong, weak> / (|weak|^2 + 1e-8)`` makes ``|strong - a weak|`` the least,
    for each row. Where both predictions are parallel the result is ``strong`` whatever
    the scale. The paper also holds the first step still: `zero_start`.

    References:
        Fan et al. 2025, CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching
        Models, arXiv:2503.18886.
    """
    product, square = _sum(strong * weak), _sum(weak * weak)
    return extrapolation(strong, product / (square + 1e-8) * weak, scale)


@checked
def rescaled(*, share: Share = 0.7, rule: Rule = extrapolation) -> Rule:
    """Return ``rule`` with its spread brought back towards that of ``strong``.

    ``share g std(strong) / std(g) + (1 - share) g`` for the value ``g`` of the inner
    rule, with the standard deviation over the event of each row: large scales no longer
    over-expose images. For events of many entries: in a few dimensions ``std(g)`` comes
    near zero, and the ratio has no bound.

    Args:
        share: 0 is the inner rule, 1 gives the result the spread of ``strong``.
        rule: the inner rule.

    Raises:
        ValueError: unless ``share`` is a Python float in [0, 1].

    References:
        Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed,
        arXiv:2305.08891, Eq. 15 and 16.
    """

    def combined(strong: Values, weak: Values, scale: Scale, /) -> Values:
        value = rule(strong, weak, scale)
        wanted, spread = _deviation(strong), _deviation(value)
        # A constant prediction has no spread to correct.
        ratio = jnp.where(spread > 0, wanted / jnp.where(spread > 0, spread, 1), 1)
        return (share * ratio + (1 - share)) * value

    return combined


def _sum(x: Values) -> Float[Array, "batch *ones"]:
    """Return the sum over the event, taken in at least float32."""
    return _wide(x).sum(_event(x), keepdims=True).astype(x.dtype)


def _deviation(x: Values) -> Float[Array, "batch *ones"]:
    """Return the standard deviation over the event, taken in at least float32."""
    return _wide(x).std(_event(x), keepdims=True).astype(x.dtype)


def _event(x: Values) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _wide(x: Values) -> Values:
    return x.astype(at_least_float32(x.dtype))
