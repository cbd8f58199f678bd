"""Diffusion coefficients: how much noise a stochastic sampler adds, and when.

Every ``g(t) >= 0`` gives a stochastic equation with the marginals of ``dx/dt = v``::

    dx = [v(x, t) + g(t)^2 / 2 score(x, t)] dt + g(t) dW
       = [v(x, t) - g(t)^2 / (2 sigma(t)) E[x0 | x_t = x]] dt + g(t) dW

A diffusion is a function ``(t, c) -> g(t)^2`` of time and of the interpolant's
coefficients there, so a new one is one line. The second form shows where it is finite:

- At t=1, where sigma is 0, if ``g^2 / sigma`` has a limit, which is then used.
  Otherwise the last interval of a grid holds ``g^2 / sigma`` at its value at the start
  of that interval.
- At t=0, if ``g`` is finite. Otherwise the first interval of a grid holds ``g`` at its
  value at the end of that interval, as Flow-GRPO does.

To hold either is to choose another ``g`` there, which keeps the marginals as well.

References:
    Albergo et al. 2023, Stochastic Interpolants, arXiv:2303.08797, Sec. 2.4.
    Ma et al. 2024, SiT, arXiv:2401.08740, Sec. 2.4; their ``w`` is ``g^2 / 2`` in code.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.contracts import checked
from flowjax.events import expand_like, over_event
from flowjax.fields import convert
from flowjax.interpolants import Coefficients, Interpolant, coefficients
from flowjax.typing import AnyTime, NonNegative, PerExample, Values


@runtime_checkable
class Diffusion(Protocol):
    """The square of a diffusion coefficient."""

    def __call__(
        self, t: Float[Array, "..."], c: Coefficients, /
    ) -> Float[Array, "..."]:
        """Return ``g(t)^2``, shaped as ``t``; ``c`` are the coefficients at ``t``."""
        ...


def zero() -> Diffusion:
    """Return ``g^2 = 0``: the ordinary differential equation."""
    return lambda t, c: jnp.zeros_like(t)


@checked
def constant(scale: NonNegative = 1.0) -> Diffusion:
    """Return ``g^2 = 2 scale``.

    ``g^2 / sigma`` has no limit where sigma is 0 (SiT's "constant").

    Args:
        scale: half of ``g^2``.
    """
    return lambda t, c: jnp.full_like(t, 2 * scale)


@checked
def sigma(scale: NonNegative = 1.0) -> Diffusion:
    """Return ``g^2 = 2 scale sigma``, whose drift is finite everywhere (SiT).

    Args:
        scale: of ``g^2``; 0 is the ordinary differential equation.
    """
    return lambda t, c: 2 * scale * c.sigma


@checked
def linearly_decreasing(scale: NonNegative = 1.0) -> Diffusion:
    """Return ``g^2 = 2 scale (1 - t)``: `sigma` on the linear path (SiT's "linear").

    Args:
        scale: of ``g^2``; 0 is the ordinary differential equation.
    """
    return lambda t, c: 2 * scale * (1 - t)


@checked
def memoryless(scale: NonNegative = 1.0) -> Diffusion:
    """Return ``g^2 = 2 scale (alpha' sigma^2 / alpha - sigma sigma')``.

    On the linear path ``2 scale (1 - t) / t``. With scale 1 it is the reverse of the
    noising diffusion (SiT's "SBDM"), its drift is ``2 v - alpha' / alpha x``, and the
    end does not depend on the start. ``g`` is infinite where alpha is 0.

    On equal steps from t=0, where ``alpha' / alpha`` is about ``1 / t``, the errors of
    Euler-Maruyama steps fall with order 1 only for a scale of 1/2 or more, and with
    order ``2 scale`` below. The steps of `flowjax.sampling.kernels.ddim` with
    ``eta = sqrt(scale)`` follow the same equation with order 1.

    Args:
        scale: of ``g^2``; 1 forgets the start.

    References:
        Domingo-Enrich et al. 2024, Adjoint Matching, arXiv:2409.08861, Sec. 4.
    """

    def squared(t: Float[Array, "..."], c: Coefficients) -> Float[Array, "..."]:
        return 2 * scale * (c.d_alpha * c.sigma**2 / c.alpha - c.variance_rate)

    return squared


@checked
def decreasing(scale: NonNegative = 1.0) -> Diffusion:
    """Return ``g^2 = (scale cos(pi t) + 1)^2 / 2`` (SiT's "decreasing").

    Zero at t=1 for scale 1 alone; for another ``g^2 / sigma`` has no limit there.

    Args:
        scale: how far ``g`` swings about its mean.
    """
    return lambda t, c: (scale * jnp.cos(jnp.pi * t) + 1) ** 2 / 2


@checked
def increasing_decreasing(scale: NonNegative = 1.0) -> Diffusion:
    """Return ``g^2 = 2 scale sin(pi t)^2``, zero at both ends (SiT).

    Args:
        scale: half of the largest ``g^2``, in the middle.
    """
    # Folded at the middle, because in floating point the sine of pi is not 0.
    return lambda t, c: 2 * scale * jnp.sin(jnp.pi * jnp.minimum(t, 1 - t)) ** 2


@checked
def quartic(scale: NonNegative = 3.0) -> Diffusion:
    """Return ``g^2 = scale^2 (1 - t)^4``.

    Rollover budget forcing takes scale 3 on the `variance_preserving` path.

    Args:
        scale: ``g`` at t=0.

    References:
        Kim et al. 2025, Inference-Time Scaling for Flow Models, arXiv:2503.19385.
    """
    return lambda t, c: scale**2 * (1 - t) ** 4


@checked
def flow_grpo(level: NonNegative = 0.7) -> Diffusion:
    """Return ``g^2 = level^2 (1 - t) / t`` on the linear path.

    On any path it is ``level^2 / 2`` times `memoryless`, and shares its slow
    convergence: of order 0.5 at the usual level of 0.7.

    Args:
        level: of the noise, ``a`` in the paper.

    References:
        Liu et al. 2025, Flow-GRPO, arXiv:2505.05470, Sec. 4.2, on the clock ``1 - t``.
    """
    return memoryless(level**2 / 2)


@checked
def dance_grpo(level: NonNegative) -> Diffusion:
    """Return ``g^2 = level^2``, a `constant`.

    Args:
        level: of the noise, ``g`` itself.

    References:
        Xue et al. 2025, DanceGRPO, arXiv:2505.07818.
    """
    return constant(level**2 / 2)


class Rates(NamedTuple):
    """``g^2`` and ``g^2 / sigma`` at some times, each shaped as the times."""

    squared: Float[Array, "..."]
    over_sigma: Float[Array, "..."]


@checked
def rates(
    diffusion: Diffusion, interpolant: Interpolant, t: Float[Array, "..."]
) -> Rates:
    """Return ``g^2`` and ``g^2 / sigma`` at ``t``, not finite where they have no limit.

    Where ``g^2`` and sigma are both 0 the limit is that of their derivatives.
    """

    def squared(t: Float[Array, "..."]) -> Float[Array, "..."]:
        return diffusion(t, coefficients(interpolant, t))

    value, slope = jax.jvp(squared, (t,), (jnp.ones_like(t),))
    c = coefficients(interpolant, t)
    vanishing = (value == 0) & (c.sigma == 0)
    above = jnp.where(vanishing, slope, value)
    return Rates(value, above / jnp.where(vanishing, c.d_sigma, c.sigma))


@checked
def rates_on(
    grid: Float[Array, "times ..."],
    diffusion: Diffusion,
    interpolant: Interpolant,
    t: Float[Array, "..."],
) -> Rates:
    """Return the rates at ``t`` of the diffusion that is finite on all of ``grid``.

    In the first interval ``g`` is held if it is not finite at its start, in the last
    one ``g^2 / sigma`` if it is not finite at its end; in a single interval both, in
    this order.

    Args:
        grid: increasing times; the first two and the last two of them matter.
        diffusion: the diffusion.
        interpolant: the path.
        t: times within the grid, shaped as each of its times.
    """
    finite_start = jnp.isfinite(rates(diffusion, interpolant, grid[0]).squared)
    finite_end = jnp.isfinite(rates(diffusion, interpolant, grid[-1]).over_sigma)
    first = jnp.where(finite_start, grid[0], grid[1])
    last = jnp.where(finite_end, grid[-1], grid[-2])
    inner = jnp.minimum(t, last)
    g = rates(diffusion, interpolant, jnp.maximum(inner, first))
    early = inner < first
    # No division by 0 where it is not asked for, so that no NaN reaches a gradient.
    level = jnp.where(early, interpolant.sigma(inner), jnp.ones_like(t))
    over_sigma = jnp.where(early, g.squared / level, g.over_sigma)
    squared = jnp.where(t > last, over_sigma * interpolant.sigma(t), g.squared)
    return Rates(squared, over_sigma)


@checked
def drift(
    velocity: Values,
    x: Values,
    t: AnyTime,
    interpolant: Interpolant,
    over_sigma: PerExample,
) -> Values:
    """Return ``v + g^2 / 2 score``, written ``v - (g^2 / sigma) / 2 E[x0 | x]``.

    Args:
        velocity: the velocity at ``(x, t)`` [batch, *event].
        x: states [batch, *event].
        t: times [batch].
        interpolant: the path, without gamma.
        over_sigma: ``g^2 / sigma`` at ``t`` [batch].
    """
    noise = expected_noise(velocity, x, t, interpolant)
    return velocity - over_event(over_sigma, x) / 2 * noise


@checked
def expected_noise(
    velocity: Values, x: Values, t: AnyTime, interpolant: Interpolant
) -> Values:
    """Return ``E[x0 | x_t = x]``, at both ends too.

    Where alpha is 0 the state is ``sigma x0``, whatever the velocity.
    """
    only_noise = interpolant.alpha(t) == 0
    # There a conversion may divide 0 by 0: it is made at a harmless time instead.
    elsewhere = jnp.where(only_noise, jnp.full_like(t, 0.5), t)
    noise = convert(velocity, x, elsewhere, interpolant, source="velocity", target="x0")
    level = jnp.where(only_noise, interpolant.sigma(t), jnp.ones_like(t))
    at_start = x / over_event(level, x)
    return jnp.where(expand_like(only_noise, x), at_start, noise)


@checked
def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the square root, with derivative 0 where it is 0."""
    positive = jnp.where(square == 0, jnp.ones_like(square), square)
    return jnp.where(square == 0, jnp.zeros_like(square), jnp.sqrt(positive))
