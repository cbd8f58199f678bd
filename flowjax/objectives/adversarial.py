"""Adversarial terms: a discriminator's judgement on one-step samples.

An addition to distillation, never an objective of its own. Generator and discriminator
have losses of their own, each differentiated in its own parameters. The sample of the
generator is an argument, ``x0 + u(x0, 0, 1)``; add its loss to the objective with
`penalties.plus`.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import event_sum
from flowjax.typing import Condition, PerExample, State, Time


@runtime_checkable
class Discriminator(Protocol):
    """One number per row, large where a sample looks real; rows independent."""

    def __call__(self, x: State, t: Time, cond: Condition = None, /) -> PerExample:
        """Return the logits [batch] of samples noised to time ``t``, 1 if clean."""
        ...


@checked
def generator_loss(
    discriminator: Discriminator,
    fake: State,
    cond: Condition = None,
    *,
    real: State | None = None,
    t: Time | None = None,
) -> PerExample:
    """Return the non-saturating ``softplus(-D(fake))``.

    With ``real`` samples the relativistic ``softplus(D(real) - D(fake))``: a fake
    sample is to look more real than a real one.

    Args:
        discriminator: ``(x, t, cond) -> logits``.
        fake: samples of the generator, with its gradient [batch, *event].
        cond: a pytree with leading axis batch, or None.
        real: data [batch, *event]; None: the loss is not relativistic.
        t: times [batch] to which the samples are noised; None: 1, clean ones.

    Returns:
        The loss [batch].

    Raises:
        ValueError: if shapes do not fit.

    References:
        Goodfellow et al. 2014, arXiv:1406.2661; Jolicoeur-Martineau 2018,
        arXiv:1807.00734 (relativistic); Huang et al. 2025, arXiv:2501.05441.
    """
    margin = _logits(discriminator, fake, cond, t)
    if real is not None:
        margin = margin - _logits(discriminator, real, cond, t)
    return jax.nn.softplus(-margin)


@checked
def discriminator_loss(
    discriminator: Discriminator,
    real: State,
    fake: State,
    cond: Condition = None,
    *,
    t: Time | None = None,
    relativistic: bool = False,
) -> PerExample:
    """Return ``softplus(-D(real)) + softplus(D(fake))``.

    Relativistic it is ``softplus(D(fake) - D(real))``. Both are least at
    ``D = log p_real - log p_fake``, the second up to a constant; where the two laws are
    one, the least values are 2 log 2 and log 2. No gradient reaches the generator.

    Args:
        discriminator: ``(x, t, cond) -> logits``.
        real: data [batch, *event].
        fake: samples of the generator [batch, *event].
        cond: a pytree with leading axis batch, or None.
        t: times [batch] to which the samples are noised; None: 1, clean ones.
        relativistic: compare real with fake row by row.

    Returns:
        The loss [batch].

    Raises:
        ValueError: if shapes do not fit.

    References:
        As `generator_loss`.
    """
    fake = jax.lax.stop_gradient(fake)
    on_real = _logits(discriminator, real, cond, t)
    on_fake = _logits(discriminator, fake, cond, t)
    if relativistic:
        return jax.nn.softplus(on_fake - on_real)
    return jax.nn.softplus(-on_real) + jax.nn.softplus(on_fake)


@checked
def gradient_penalty(
    discriminator: Discriminator,
    x: State,
    cond: Condition = None,
    *,
    t: Time | None = None,
) -> PerExample:
    """Return ``|grad_x D(x)|^2`` of every row, summed over the event.

    At real samples it is R1, at fake ones R2; the usual weight is ``gamma / 2``. Its
    gradient in the parameters of the discriminator is of second order.

    Args:
        discriminator: ``(x, t, cond) -> logits``, each row by itself.
        x: samples [batch, *event].
        cond: a pytree with leading axis batch, or None.
        t: times [batch] to which the samples are noised; None: 1, clean ones.

    Returns:
        The squared norm [batch].

    Raises:
        ValueError: if shapes do not fit.

    References:
        Mescheder et al. 2018, arXiv:1801.04406, Eq. 9.
    """

    def total(x: State) -> Float[Array, ""]:
        return _logits(discriminator, x, cond, t).sum()

    # Rows are independent: the gradient of the sum holds the gradient of each.
    slope = jax.grad(total)(jax.lax.stop_gradient(x))
    return event_sum(jnp.square(slope))


def _logits(
    discriminator: Discriminator, x: State, cond: Condition, t: Time | None
) -> Array:
    return discriminator(x, jnp.ones(len(x), x.dtype) if t is None else t, cond)
