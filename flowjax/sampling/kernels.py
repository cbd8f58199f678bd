"""Gaussian transition kernels: random steps of a flow from a time to a later one.

A kernel is a step ``y ~ N(mean, std^2 I)``, with mean and std known in closed form:
`euler_maruyama` and `ddim` follow the flow's marginals as the steps shrink,
`coefficient_preserving` does not. `flowjax.sampling.transitions` draws from them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from flowjax.contracts import checked
from flowjax.events import expand_like
from flowjax.fields import convert
from flowjax.interpolants import Interpolant, coefficients
from flowjax.sampling.diffusions import (
    Diffusion,
    drift,
    expected_noise,
    rates_on,
    root,
)
from flowjax.typing import Condition, PerExample, Share, State, Time, VelocityField


class Transition(NamedTuple):
    """The law ``N(mean, std^2 I)`` of the next state, row by row.

    Attributes:
        mean: [batch, *event].
        std: [batch]; 0 where the step is deterministic.
    """

    mean: State
    std: PerExample


class Kernel(NamedTuple):
    """A random step: ``transition(v, x, t, s, cond)`` goes from ``t`` to ``s > t``.

    ``x`` is [batch, *event], ``t`` and ``s`` are [batch] in the dtype of ``x``; the
    velocity ``v`` belongs to ``interpolant`` and is evaluated once.
    """

    interpolant: Interpolant
    transition: Callable[[VelocityField, State, Time, Time, Condition], Transition]


@checked
def euler_maruyama(interpolant: Interpolant, diffusion: Diffusion) -> Kernel:
    """Return ``x + h (v + g^2 / 2 score) + g sqrt(h) noise``, ``h = s - t``.

    Where ``g`` is not finite at ``t`` it is taken at ``s``, as Flow-GRPO does.

    Args:
        interpolant: the path, without gamma.
        diffusion: ``(t, c) -> g^2``, from `flowjax.sampling.diffusions`.
    """

    def transition(
        v: VelocityField, x: State, t: Time, s: Time, cond: Condition
    ) -> Transition:
        g = rates_on(jnp.stack([t, s]), diffusion, interpolant, t)
        value = v(x, t, cond).astype(x.dtype)
        slope = drift(value, x, t, interpolant, g.over_sigma)
        h = s - t
        return Transition(x + expand_like(h, x) * slope, root(g.squared * h))

    return Kernel(interpolant, transition)


@checked
def ddim(interpolant: Interpolant, eta: Share = 1.0) -> Kernel:
    """Return ``alpha_s E[x1 | x] + sqrt(sigma_s^2 - q^2) E[x0 | x] + q noise``.

    ``q = eta sigma_s sqrt(1 - r^2)`` with ``r = alpha_t sigma_s / (alpha_s sigma_t)``:
    eta 0 is DDIM, on the linear path an Euler step of the ODE, and eta 1 ancestral
    sampling. As the steps shrink it becomes the equation of ``memoryless(eta^2)``. It
    is finite at both ends, except at t=0 where alpha and alpha' are 0 there: then the
    velocity says nothing about the data.

    Raises:
        ValueError: unless ``eta`` lies in [0, 1].

    References:
        Song et al. 2020, DDIM, arXiv:2010.02502, Eq. 12 and 16.
    """

    def shares(past: Time) -> tuple[Time, Time]:
        fresh = eta**2 * (1 - past**2)
        return root(1 - fresh), root(fresh)

    return _renoising(interpolant, shares)


@checked
def coefficient_preserving(interpolant: Interpolant, eta: Share = 0.5) -> Kernel:
    """Return ``alpha_s E[x1|x] + sigma_s (cos(a) E[x0|x] + sin(a) noise)``.

    With ``a = pi eta / 2``. The noise of a step does not shrink with the step: the
    marginals are not those of the flow, however many steps there are. It is meant for
    exploration in reinforcement learning.

    Raises:
        ValueError: unless ``eta`` lies in [0, 1].

    References:
        Wang and Yu 2025, Coefficients-Preserving Sampling, arXiv:2509.05952.
    """
    angle = math.pi / 2 * eta

    def shares(past: Time) -> tuple[Time, Time]:
        old, new = (jnp.full_like(past, f(angle)) for f in (math.cos, math.sin))
        return old, new

    return _renoising(interpolant, shares)


def _renoising(
    interpolant: Interpolant, shares: Callable[[Time], tuple[Time, Time]]
) -> Kernel:
    """Return the kernel that goes to the estimated data and back to noise level s.

    ``shares`` maps ``r = alpha_t sigma_s / (alpha_s sigma_t)`` to the shares of the old
    and of the new noise, whose squares add up to 1.
    """

    def transition(
        v: VelocityField, x: State, t: Time, s: Time, cond: Condition
    ) -> Transition:
        value = v(x, t, cond).astype(x.dtype)
        x1 = convert(value, x, t, interpolant, source="velocity", target="x1")
        x0 = expected_noise(value, x, t, interpolant)
        start, end = coefficients(interpolant, t), coefficients(interpolant, s)
        old, new = shares(start.alpha * end.sigma / (end.alpha * start.sigma))
        old, alpha = (expand_like(a, x) for a in (old * end.sigma, end.alpha))
        return Transition(alpha * x1 + old * x0, new * end.sigma)

    return Kernel(interpolant, transition)
