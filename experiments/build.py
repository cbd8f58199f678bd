"""From a configuration to the pure functions that it names."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from experiments.batch import Batch
from experiments.config import Data, Experiment, Optimizer, compute_dtype
from experiments.members import MEMBERS
from flowjax import guidance, objectives, policies
from flowjax._typing import (
    AverageVelocityField,
    PerExample,
    PRNGKey,
    VelocityField,
)
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
from flowjax.networks import MLP, DiT, LogVariance
from flowjax.training import LossFunction, TrainState, ema


class Dataset(NamedTuple):
    """A source of training batches and what must be known about its examples.

    Attributes:
        event: shape of one example.
        num_classes: number of labels, or None.
        batches: endless, resumable batches of this process.
        draw: ``(key, batch) -> (x0 or None, x1, labels or None)``, run inside the step;
            without x0 the step draws noise.
    """

    event: tuple[int, ...]
    num_classes: int | None
    batches: BatchIterator
    draw: Callable[[PRNGKey, Any], tuple[Array | None, Array, Array | None]]


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
            draw=lambda key, batch: (None, density(key, len(batch["index"])), None),
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
        draw=lambda key, batch: (None, batch["image"], batch["label"]),
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
        "times": n.times,
        "zero_init_duration": n.zero_init_duration,
        "decoder_depth": n.decoder_depth,
        "velocity_head": n.velocity_head,
        "guidance": n.guidance,
    }
    if n.kind == "mlp":
        return MLP(**shared)
    return DiT(
        patch_size=n.patch_size,
        num_heads=n.num_heads,
        qk_norm=n.qk_norm,
        context_tokens=n.context_tokens,
        remat=n.remat,
        scan=n.scan,
        **shared,
    )


def check_member(config: Experiment, *, need_teacher: bool) -> None:
    """Raise ValueError if the objective is unknown, or lacks its teacher.

    A finished student is sampled without one.
    """
    name, teacher = config.objective.name, config.objective.teacher
    if name not in MEMBERS:
        raise ValueError(
            f"objective.name must be one of {', '.join(MEMBERS)}; got {name}"
        )
    if not need_teacher:
        return
    member = MEMBERS[name]
    needed = member.teacher or member.pairs or config.objective.start_from_teacher
    if needed and teacher is None:
        raise ValueError(
            f"{name} needs the run folder of a teacher: --objective.teacher RUN"
        )
    if teacher is not None and not (Path(teacher) / "config.json").is_file():
        raise ValueError(f"the teacher {teacher} is no run folder; train it first")


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


def make_modules(
    config: Experiment, dataset: Dataset, *, need_teacher: bool = True
) -> dict[str, nn.Module]:
    """Return the modules in training: ``field``, and what the objective needs besides.

    Raises:
        ValueError: if the objective is unknown or lacks its teacher.
    """
    check_member(config, need_teacher=need_teacher)
    o, channels = config.objective, dataset.event[-1]
    network = make_network(config, dataset.num_classes)
    modules: dict[str, nn.Module] = {"field": network}
    # The features that each component of a policy takes, and those common to all.
    if o.name == "pi_flow":
        features = o.components * (channels + 1) + 1
        modules["field"] = network.clone(out_features=features)
    if o.name == "arc_flow":
        features = o.components * (channels + 2)
        modules["field"] = network.clone(out_features=features)
    if o.name == "constant_acceleration":
        modules["acceleration"] = network.clone(out_features=channels)
    if o.adversarial_weight:
        modules["discriminator"] = network.clone(velocity_head=0)
    if o.learned_weight:
        modules["log_variance"] = LogVariance()
    return modules


def init_parameters(
    modules: Mapping[str, nn.Module], key: PRNGKey, dataset: Dataset, *, guidance: bool
) -> dict[str, Any]:
    """Return fresh parameters of every module."""
    time = jnp.zeros((1,))
    x = jnp.zeros((1, *dataset.event))
    cond: Any = None
    if dataset.num_classes is not None:
        cond = jnp.zeros((1,), jnp.int32)
    if guidance:
        cond = with_guidance(cond, time + 1, jnp.array([[0.0, 1.0]]))
    inputs = {
        "field": (x, time, time, cond),
        "acceleration": (jnp.concatenate([x, x], -1), time, time, cond),
        "discriminator": (x, time, time, cond),
        "log_variance": (time, time),
    }
    keys = jax.random.split(key, len(modules))
    return {
        name: module.init(k, *inputs[name])
        for k, (name, module) in zip(keys, sorted(modules.items()), strict=True)
    }


def with_guidance(label: Any, scale: Array, interval: Array) -> dict[str, Any]:
    """Return the condition of a network that sees the guidance it is used with."""
    given = {"scale": scale, "interval": interval}
    return given if label is None else {"label": label, **given}


def at_guidance(u: AverageVelocityField, scale: float) -> AverageVelocityField:
    """Return a guidance-conditioned field at one scale, guided at all times."""

    def guided(x: Array, t: Array, s: Array, label: Any = None, /) -> Array:
        scales = jnp.full_like(t, scale)
        interval = jnp.stack([jnp.zeros_like(t), jnp.ones_like(t)], axis=1)
        return u(x, t, s, with_guidance(label, scales, interval))

    return guided


def bind(
    config: Experiment, modules: Mapping[str, nn.Module], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``name -> function`` of the modules with their parameters bound.

    ``field`` is the average velocity; ``network`` the bare network, which differs where
    a member has a parameterisation of its own; ``velocity`` the velocity field that
    is trained with it: a second head, or the diagonal.
    """
    bound: dict[str, Any] = {
        name: partial(module.apply, params[name]) for name, module in modules.items()
    }
    network, module, name = bound["field"], modules["field"], config.objective.name
    bound["network"] = network
    bound["features"] = partial(module.apply, params["field"], method="features")
    if name == "continuous_consistency":
        bound["network"] = partial(_trigonometric, network)
        bound["field"] = objectives.trigonometric_field(bound["network"])
    if name in POLICIES:
        bound["policy"] = partial(_policy, POLICIES[name], network)
        bound["field"] = policies.policy_step(bound["policy"], steps=POLICY_STEPS)
    bound["velocity"] = diagonal(bound["field"])
    if config.network.velocity_head:

        def velocity(x: Array, t: Array, cond: Any = None, /) -> Array:
            heads = module.apply(params["field"], x, t, t, cond, method="heads")
            return cast(Any, heads)[1]

        bound["velocity"] = velocity
    if "acceleration" in modules:
        bound["acceleration"] = partial(_acceleration, bound["acceleration"])
    if "discriminator" in modules:
        bound["discriminator"] = partial(_logits, bound["discriminator"])
    return bound


POLICIES = {
    "pi_flow": policies.gaussian_mixture_policy,
    "arc_flow": policies.momentum_policy,
}
"""The policies that a network's output is read as, by the member that trains them."""

POLICY_STEPS = 32
"""Euler steps along a policy without closed form."""


def _policy(
    read: Any, network: Any, x: Any, t: Any, s: Any, cond: Any = None, /
) -> Any:
    # A policy is made for the whole rest of the way; the segment ends where it ends.
    return read(network(x, t, t, cond), x, t)


def _trigonometric(network: Any, x: Any, t: Any, s: Any, cond: Any = None, /) -> Array:
    # The network gives dx/dt like all others, so that it can start from a teacher's.
    return -(2 / math.pi) * network(x, t, s, cond)


def _acceleration(network: Any, x: Any, t: Any, v0: Any, cond: Any = None, /) -> Array:
    return network(jnp.concatenate([x, v0.astype(x.dtype)], -1), t, t, cond)


def _logits(network: Any, x: Any, t: Any, cond: Any = None, /) -> Array:
    return network(x, t, t, cond).reshape((len(x), -1)).mean(1)


def make_loss(
    config: Experiment,
    modules: Mapping[str, nn.Module],
    dataset: Dataset,
    teacher: VelocityField | None = None,
) -> LossFunction:
    """Return the road of one batch: data, coupling, times, path, objective."""
    o, null = config.objective, dataset.num_classes
    member = MEMBERS[o.name]
    targets = dict(modules)
    if o.target_dtype is not None:
        dtype = compute_dtype(o.target_dtype)
        targets["field"] = modules["field"].clone(dtype=dtype)

    def loss(
        params: Any, key: PRNGKey, batch: Any, state: TrainState, /
    ) -> tuple[PerExample, dict[str, Array]]:
        key_data, key_source, key_drop, key_member = jax.random.split(key, 4)
        x0, x1, cond = dataset.draw(key_data, batch)
        if cond is not None:
            cond = guidance.drop_condition(
                key_drop, cond, null=null, probability=o.label_dropout
            )
        if x0 is None:
            x0 = jax.random.normal(key_source, x1.shape, x1.dtype)
        frozen = params if o.target == "own" else state.ema_params
        return member.loss(
            Batch(
                config=config,
                key=key_member,
                pairs=Pairs(x0, x1, cond),
                null=null,
                modules=bind(config, modules, params),
                frozen=bind(config, targets, jax.lax.stop_gradient(frozen)),
                still=bind(config, modules, jax.lax.stop_gradient(params)),
                teacher=teacher,
                step=state.step,
            )
        )

    return loss
