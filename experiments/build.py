"""From a configuration to the pure functions that it names."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from experiments.config import Data, Experiment, Optimizer, compute_dtype
from flowjax import couplings, guidance, interpolants, objectives, times
from flowjax._typing import AverageVelocityField, PerExample, PRNGKey
from flowjax.couplings import Pairs
from flowjax.data import (
    DENSITIES,
    BatchIterator,
    get_density,
    image_batches,
    index_batches,
    load_source,
)
from flowjax.fields import diagonal
from flowjax.networks import MLP, DiT
from flowjax.training import LossFunction, TrainState, ema


class Dataset(NamedTuple):
    """A source of training batches and what must be known about its examples.

    Attributes:
        event: shape of one example.
        num_classes: number of labels, or None.
        batches: endless, resumable batches of this process.
        draw: ``(key, batch) -> (x1, labels or None)``, run inside the step.
    """

    event: tuple[int, ...]
    num_classes: int | None
    batches: BatchIterator
    draw: Callable[[PRNGKey, Any], tuple[Array, Array | None]]


def open_data(config: Data, seed: int) -> Dataset:
    """Open the training data of a configuration.

    Raises:
        ValueError: if the name is neither a density nor a known image set.
        FileNotFoundError: if the image set is not prepared.
    """
    if config.name in DENSITIES:
        density = get_density(config.name)
        return Dataset(
            event=(2,),
            num_classes=None,
            batches=index_batches(batch_size=config.batch_size),
            # Points cost less to draw than to move: the step draws its own.
            draw=lambda key, batch: (density(key, len(batch["index"])), None),
        )
    try:
        source = load_source(config.name, config.train_split, data_dir=config.data_dir)
    except ValueError as error:
        raise ValueError(f"{error}; densities: {', '.join(DENSITIES)}") from error
    return Dataset(
        event=source.image_shape,
        num_classes=source.num_classes,
        batches=image_batches(
            source, batch_size=config.batch_size, seed=seed, flip=config.flip
        ),
        draw=lambda key, batch: (batch["image"], batch["label"]),
    )


def make_network(config: Experiment, num_classes: int | None) -> nn.Module:
    """Return the network of a configuration; it is called as ``u(x, t, s, cond)``."""
    n = config.network
    shared = {
        "width": n.width,
        "depth": n.depth,
        "num_classes": num_classes,
        "max_frequency": n.max_frequency,
        "dtype": compute_dtype(n.dtype),
    }
    if n.kind == "mlp":
        return MLP(**shared)
    return DiT(
        patch_size=n.patch_size,
        num_heads=n.num_heads,
        qk_norm=n.qk_norm,
        remat=n.remat,
        scan=n.scan,
        **shared,
    )


def init_parameters(
    network: nn.Module, key: PRNGKey, event: tuple[int, ...], num_classes: int | None
) -> Any:
    """Return fresh parameters."""
    time = jnp.zeros((1,))
    cond = None if num_classes is None else jnp.zeros((1,), jnp.int32)
    return network.init(key, jnp.zeros((1, *event)), time, time, cond)


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Return clipping followed by Adam with warm-up and schedule."""
    warmup = min(config.warmup_steps, max(steps - 1, 1))
    peak = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, peak / 100)
    else:
        rate = optax.warmup_constant_schedule(0.0, peak, warmup)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay),
    )


def make_ema(config: Optimizer) -> ema.Decay:
    """Return the schedule of the parameter average."""
    return ema.half_life(config.ema_half_life, ramp_up=config.ema_ramp_up)


ObjectiveLoss = Callable[
    [Experiment, AverageVelocityField, PRNGKey, Pairs, Any], PerExample
]
"""``(config, u, key, pairs, null) -> losses [batch]``: draw times, join, regress."""


def _flow_matching(
    config: Experiment, u: AverageVelocityField, key: PRNGKey, pairs: Pairs, null: Any
) -> PerExample:
    t = make_times(config)(key, len(pairs.x1))
    path = interpolants.sample_path(make_interpolant(config), *pairs[:2], t, pairs.cond)
    return objectives.flow_matching(diagonal(u), path)


def _mean_flow(
    config: Experiment, u: AverageVelocityField, key: PRNGKey, pairs: Pairs, null: Any
) -> PerExample:
    o = config.objective
    t, s = times.ordered_pairs(
        key, len(pairs.x1), sampler=make_times(config), share_equal=o.share_equal
    )
    path = interpolants.sample_path(make_interpolant(config), *pairs[:2], t, pairs.cond)
    if (o.omega, o.kappa) != (1.0, 0.0):
        guided = guidance.guided_velocity(
            u,
            path,
            null=null,
            omega=o.omega,
            kappa=o.kappa,
            interval=o.guidance_interval,
        )
        path = path._replace(v=guided)
    return objectives.mean_flow(
        u,
        path,
        s,
        share_equal=o.share_equal,
        penalty=objectives.penalties.adaptive(
            power=o.weight_power, offset=o.weight_offset
        ),
    )


OBJECTIVES: dict[str, ObjectiveLoss] = {
    "flow_matching": _flow_matching,
    "mean_flow": _mean_flow,
}


def make_interpolant(config: Experiment) -> interpolants.Interpolant:
    """Return the interpolant that a configuration names."""
    return getattr(interpolants, config.objective.interpolant)()


def make_times(config: Experiment) -> times.TimeSampler:
    """Return the law of one time that a configuration names."""
    o = config.objective
    if o.time_law == "uniform":
        return times.uniform
    return partial(times.logit_normal, mean=o.time_mean, std=o.time_std)


def make_loss(config: Experiment, network: nn.Module, dataset: Dataset) -> LossFunction:
    """Return the road of one batch: data, coupling, times, path, objective."""
    null = dataset.num_classes
    objective = OBJECTIVES[config.objective.name]

    def loss(
        params: Any, key: PRNGKey, batch: Any, state: TrainState, /
    ) -> tuple[PerExample, dict[str, Array]]:
        key_data, key_source, key_pair, key_drop, key_time = jax.random.split(key, 5)
        x1, cond = dataset.draw(key_data, batch)
        if cond is not None:
            cond = guidance.drop_condition(
                key_drop,
                cond,
                null=null,
                probability=config.objective.label_dropout,
            )
        x0 = jax.random.normal(key_source, x1.shape, x1.dtype)
        pairs = couplings.independent(key_pair, x0, x1, cond)
        u: Any = partial(network.apply, params)
        return objective(config, u, key_time, pairs, null), {}

    return loss
