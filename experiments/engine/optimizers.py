"""Optimisers, by name in `OPTIMIZERS`; the road gives the number of steps."""

from typing import Literal

import optax

from experiments.language.sentence import table


def adamw(
    steps_in_all: object,
    *,
    learning_rate: float = 2e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    warmup_steps: int = 100,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Adam with a warm-up, a schedule, decoupled weight decay and clipping.

    Args:
        steps_in_all: optimiser steps of the run.
        learning_rate: peak learning rate.
        schedule: after the warm-up: stay, or fall to 1 % of the peak along a cosine.
        warmup_steps: steps of linear warm-up.
        b2: decay of the second moment.
        weight_decay: decoupled weight decay.
        clip_norm: largest 2-norm of the gradient.

    Raises:
        ValueError: if an option is out of range.

    References:
        Loshchilov and Hutter 2017, arXiv:1711.05101.
    """
    assert isinstance(steps_in_all, int)
    for name, value in (("learning_rate", learning_rate), ("clip_norm", clip_norm)):
        if not value > 0:
            raise ValueError(f"optimizer.{name} must be positive; got {value}")
    if not (0 <= b2 < 1 and warmup_steps >= 0 and weight_decay >= 0):
        raise ValueError(
            "optimizer: b2 must lie in [0, 1), warmup_steps and weight_decay must not "
            f"be negative; got {b2}, {warmup_steps} and {weight_decay}"
        )
    warmup = min(warmup_steps, max(steps_in_all - 1, 1))
    if schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup, steps_in_all, learning_rate / 100
        )
    else:
        rate = optax.warmup_constant_schedule(0.0, learning_rate, warmup)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(rate, b2=b2, weight_decay=weight_decay),
    )


OPTIMIZERS = table(adamw)
