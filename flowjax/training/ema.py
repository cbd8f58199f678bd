"""Exponential moving averages of parameters.

``ema <- d(n) ema + (1 - d(n)) params`` after the optimiser's update number n, counted
from 0. The average starts as a copy of the initial parameters, needs no bias correction
and is kept in at least float32 whatever the precision of the parameters: with d close
to 1 the increments are far below the resolution of bfloat16.
"""

from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.contracts import checked
from flowjax.dtypes import at_least_float32
from flowjax.typing import Positive, Range

Parameters: TypeAlias = Any
"""Any pytree of arrays."""


@runtime_checkable
class Decay(Protocol):
    """A schedule of the decay d(n) in [0, 1]."""

    def __call__(self, step: Int[Array, ""], /) -> Float[Array, ""]:
        """Return the decay of the update that follows optimiser step ``step``."""
        ...


@checked
def constant_decay(decay: Annotated[float, Range(0, 1, "[)")]) -> Decay:
    """Return the schedule ``d(n) = decay``.

    Args:
        decay: in [0, 1); 0 makes the average equal to the parameters.

    Raises:
        ValueError: if ``decay`` lies outside [0, 1).
    """
    return lambda step: jnp.full((), decay, jnp.float32)


@checked
def half_life(steps: Positive, *, ramp_up: Positive | None = None) -> Decay:
    """Return the schedule ``d(n) = 0.5 ** (1 / h)`` with ``h = min(steps, ramp_up n)``.

    The weight of a set of parameters halves every ``h`` optimiser steps. With the
    ramp-up the average forgets the first, bad parameters: d(0) = 0, and afterwards the
    half-life is a fixed fraction of the time trained so far.

    Args:
        steps: the half-life in optimiser steps, positive.
        ramp_up: the fraction of the elapsed steps that bounds the half-life, positive;
            None holds the half-life constant from the first step on.

    Raises:
        ValueError: if ``steps`` or ``ramp_up`` is not positive.

    References:
        Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative
        Models, arXiv:2206.00364, Appendix F.2; the ramp-up is the convention of the
        code published with it (there in images and with ramp_up = 0.05).
    """

    def decay(step: Int[Array, ""]) -> Float[Array, ""]:
        life = jnp.full((), steps, jnp.float32)
        if ramp_up is not None:
            life = jnp.minimum(life, ramp_up * step.astype(jnp.float32))
        # The floor turns step 0 into 0.5 ** 1e8, exactly zero.
        return jnp.exp2(-1.0 / jnp.maximum(life, 1e-8))

    return decay


@checked
def init(params: Parameters) -> Parameters:
    """Return a copy of ``params`` whose floating leaves are at least float32.

    It is a copy in memory too: parameters and average are donated side by side, and one
    buffer can't be donated twice.
    """
    return jax.tree.map(lambda p: jnp.array(p, _average_dtype(p), copy=True), params)


@checked
def update(
    ema: Parameters, params: Parameters, decay: Float[Array, ""] | float
) -> Parameters:
    """Return ``decay * ema + (1 - decay) * params``, leaf by leaf.

    Exact at both ends: decay 0 returns the parameters, decay 1 the average. Leaves that
    are not floating (counters, tables) can't be averaged and follow the parameters.

    Args:
        ema: the average, as `init` made it.
        params: the parameters after the optimiser's update, of the same structure.
        decay: a scalar in [0, 1].
    """

    def average(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return new
        weight = jnp.asarray(decay).astype(old.dtype)
        return weight * old + (1 - weight) * new.astype(old.dtype)

    return jax.tree.map(average, ema, params)


def _average_dtype(leaf: Any) -> Any:
    dtype = jnp.result_type(leaf)
    return at_least_float32(dtype) if jnp.issubdtype(dtype, jnp.inexact) else dtype
