"""Methods whose network describes a whole segment: policies, constant acceleration."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.language.sentence import Use, use
from experiments.methods.base import Batch, FewStep, Functions, Guide, LossAndMetrics
from experiments.methods.traits import Penalised, Taught, Timed
from flowjax import objectives, policies, sampling
from flowjax.interpolants import Interpolant
from flowjax.networks import Network
from flowjax.objectives import penalties
from flowjax.times import uniform
from flowjax.typing import AverageVelocityField, Condition, PRNGKey, State, Time

SUBSTEPS = 32
"""Euler steps along a policy without closed form."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Policy(Penalised, Taught):
    """One call of the network gives the velocity of a whole segment.

    Attributes:
        components: number of components of the policy.
        states: states visited per segment.
        warmup: share of the run over which the student takes over from the teacher.
    """

    velocity: ClassVar[bool] = False
    read: ClassVar[Callable[..., Any]]
    components: int = 8
    states: int = 2
    warmup: float = 0.1

    def features(self, channels: int) -> int:
        """Return how many numbers describe a policy at one place."""
        raise NotImplementedError

    def modules(self, network: Network, channels: int) -> dict[str, nn.Module]:
        """Give the network the outputs that describe a policy."""
        wide = network.clone(out_features=self.features(channels))
        return super().modules(wide, channels)

    def policy(self, network: Callable[..., Array]) -> Any:
        """Return ``(x, t, s, cond) -> policy``."""
        read = type(self).read

        def make(x: State, t: Time, s: Time, cond: Condition = None, /) -> Any:
            # Made for the whole rest of the way; the segment ends where it ends.
            return read(network(x, t, t, cond), x, t)

        return make

    def field(self, apply: Mapping[str, Any]) -> AverageVelocityField:
        """Return the average velocity along the policy."""
        return policies.policy_step(self.policy(apply["field"]), steps=SUBSTEPS)

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the imitation of the teacher on segments that end at the data.

        They start at 0, 1/4, 1/2 and 3/4: one, two and four equal steps.
        """
        quarter = uniform(b.draw_key("fraction"), len(b.pairs.x1))
        path = b.at(jnp.floor(4 * quarter) / 4)
        return objectives.policy_imitation(
            b.draw_key("times"),
            self.policy(b.now.network),
            path,
            jnp.ones_like(path.t),
            velocity=b.taught,
            states=self.states,
            substeps=SUBSTEPS,
            teacher_ratio=1 - b.elapsed(self.warmup),
            penalty=self.watched(b),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PiFlow(_Policy):
    """pi-Flow: a Gaussian mixture of the data as a policy.

    References:
        Chen et al. 2025, pi-Flow, arXiv:2510.14974.
    """

    read: ClassVar[Callable[..., Any]] = staticmethod(policies.gaussian_mixture_policy)

    def features(self, channels: int) -> int:
        """Return the means and a weight of each component, and a common spread."""
        return self.components * (channels + 1) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArcFlow(_Policy):
    """ArcFlow: a mixture of momentum modes as a policy; its paper has no number here.

    References:
        Chen et al. 2025, pi-Flow, arXiv:2510.14974 (the imitation).
    """

    read: ClassVar[Callable[..., Any]] = staticmethod(policies.momentum_policy)

    def features(self, channels: int) -> int:
        """Return the velocity, a weight and a rate of each component."""
        return self.components * (channels + 2)


def accelerated_steps(
    key: PRNGKey,
    functions: Functions,
    guide: Guide,
    x0: State,
    cond: Condition,
    grid: np.ndarray,
    path: Interpolant,
    /,
) -> tuple[State, int]:
    """Take one initial velocity, and an acceleration per step."""
    v0 = guide(functions.v)(x0, jnp.zeros(len(x0), x0.dtype), cond)
    acceleration = partial(_acceleration, functions.apply["acceleration"])
    u = objectives.constant_acceleration_field(guide(acceleration), v0)
    return sampling.few_step(u, x0, cond=cond, grid=grid), len(grid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantAcceleration(Timed, Penalised, Taught):
    """Constant acceleration flow: an initial velocity and an acceleration of pairs.

    Both stages at once; no gradient of the second reaches the first.

    References:
        Park et al. 2024, Constant Acceleration Flow, arXiv:2411.00322.
    """

    velocity: ClassVar[bool] = False
    from_pairs: ClassVar[bool] = True
    few_step: ClassVar[FewStep] = staticmethod(accelerated_steps)
    times: Use = use(uniform)

    def modules(self, network: Network, channels: int) -> dict[str, nn.Module]:
        """Add the acceleration."""
        found = super().modules(network, channels)
        return found | {"acceleration": network.clone(out_features=channels)}

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the losses of both stages."""
        path = b.draw_once(self.times.build())
        first = objectives.constant_acceleration_velocity(
            b.now.v, path, penalty=self.watched(b)
        )
        second = objectives.constant_acceleration(
            partial(_acceleration, b.now.apply["acceleration"]),
            path,
            velocity=b.still.v,
            penalty=self.plain_penalty(b),
        )
        return penalties.plus(first, second)


def _acceleration(
    network: Any, x: State, t: Time, v0: State, cond: Condition = None, /
) -> Array:
    return network(jnp.concatenate([x, v0.astype(x.dtype)], -1), t, t, cond)
