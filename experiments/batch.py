"""One batch of an experiment on its road, with all that losses share."""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.config import Experiment
from flowjax import couplings, guidance, interpolants, times
from flowjax._typing import AverageVelocityField, PRNGKey, Time
from flowjax.objectives import penalties, schedules
from flowjax.objectives.penalties import Penalty

Metrics = dict[str, Array]

_USES = ("times", "guidance", "fraction", "noise", "second")


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch on its road, and the fields that a loss may use.

    Attributes:
        config: the experiment.
        key: for whatever the loss draws.
        pairs: noise, data and labels.
        null: the label that means none, or None.
        modules: ``name -> function`` with the parameters in training bound.
        frozen: the same with the parameters that targets are computed from.
        still: the same with the current parameters, without gradient.
        teacher: the teacher's velocity field, guided if so configured, or None.
        step: optimiser steps so far.
    """

    config: Experiment
    key: PRNGKey
    pairs: couplings.Pairs
    null: int | None
    modules: dict[str, Any]
    frozen: dict[str, Any]
    still: dict[str, Any]
    teacher: Any
    step: Array

    @property
    def options(self) -> Any:
        """The objective's part of the configuration."""
        return self.config.objective

    @property
    def u(self) -> AverageVelocityField:
        """The average-velocity field in training."""
        return self.modules["field"]

    @property
    def target(self) -> AverageVelocityField:
        """The field that targets are computed from."""
        return self.frozen["field"]

    @cached_property
    def interpolant(self) -> interpolants.Interpolant:
        """The path between noise and data."""
        return getattr(interpolants, self.options.interpolant)()

    def draw_key(self, use: str) -> PRNGKey:
        """Return the batch's key for one named use."""
        return jax.random.fold_in(self.key, _USES.index(use))

    def second(self) -> "Batch":
        """Return the same batch with draws of its own, for a member's second term."""
        return dataclasses.replace(self, key=self.draw_key("second"))

    def law(self, key: PRNGKey, batch: int, /) -> Time:
        """Draw one time per row."""
        return TIME_LAWS[self.options.time_law](self.config)(key, batch)

    def draw(self, pairs: times.PairSampler) -> tuple[interpolants.Path, Time]:
        """Draw times and join the pairs: the path and the destinations."""
        t, s = pairs(self.draw_key("times"), len(self.pairs.x1))
        return self.at(t), s

    def at(self, t: Time) -> interpolants.Path:
        """Join the pairs at given times, with the guided velocity if configured."""
        x0, x1, cond = self.pairs
        path = interpolants.sample_path(self.interpolant, x0, x1, t, cond)
        o = self.options
        if self.config.network.guidance:
            return self._conditioned(path)
        if (o.omega, o.kappa) == (1.0, 0.0):
            return path
        velocity = guidance.guided_velocity(
            self.u,
            path,
            null=self.null,
            omega=o.omega,
            kappa=o.kappa,
            interval=o.guidance_interval,
        )
        return path._replace(v=velocity)

    def _conditioned(self, path: interpolants.Path) -> interpolants.Path:
        """Let the network see a drawn guidance scale and interval, and aim there."""
        scale, interval = guidance.draw_guidance(self.draw_key("guidance"), len(path.x))
        if path.cond is not None:
            # A row without its label is the unconditional field: not guided either.
            dropped = path.cond == self.null
            scale = jnp.where(dropped, 1.0, scale)
            low, high = interval
            interval = jnp.where(dropped, 0.0, low), jnp.where(dropped, 1.0, high)
        ends = jnp.stack(interval, axis=1)
        cond = {"label": path.cond, "scale": scale, "interval": ends}
        path = path._replace(cond=cond)
        null = {"scale": 1.0, "interval": jnp.array([[0.0, 1.0]])}
        if path.cond is not None:
            null["label"] = self.null
        velocity = guidance.guided_velocity(
            self.u,
            path,
            null=null,
            omega=1.0,
            kappa=1 - 1 / scale,
            interval=interval,
        )
        return path._replace(v=velocity)

    def ordered(self) -> tuple[interpolants.Path, Time]:
        """Draw t <= s with a share of rows on the diagonal."""
        return self.draw(
            partial(
                times.ordered_pairs,
                sampler=self.law,
                share_equal=self.options.share_equal,
            )
        )

    def to_data(self) -> tuple[interpolants.Path, Time]:
        """Draw t, with every destination at the data."""
        return self.draw(times.to_data(self.law))

    def one_time(self) -> interpolants.Path:
        """Draw t alone."""
        return self.draw(times.to_data(self.law))[0]

    @cached_property
    def plain_penalty(self) -> Penalty:
        """The configured penalty."""
        o = self.options
        penalty: Penalty = penalties.mean_square
        if o.huber is not None:
            penalty = penalties.pseudo_huber(scale=o.huber)
        if o.weight_power:
            penalty = penalties.adaptive(
                power=o.weight_power, offset=o.weight_offset, penalty=penalty
            )
        if "log_variance" in self.modules:
            penalty = penalties.learned(self.modules["log_variance"], penalty=penalty)
        if o.normalise is not None:
            penalty = penalties.normalised(offset=o.normalise, penalty=penalty)
        if o.clip is not None:
            penalty = penalties.clipped(o.clip, penalty=penalty)
        return penalty

    @property
    def penalty(self) -> Any:
        """The configured penalty with the metrics that ride along."""
        return penalties.diagnosed(self.plain_penalty, clip=self.options.clip)

    @property
    def shared(self) -> dict[str, Any]:
        """What most objectives take."""
        return {"penalty": self.penalty, "share_equal": self.options.share_equal}

    @property
    def warmup(self) -> Array:
        """The scale of the tangent, rising from 0 to 1."""
        steps = int(self.options.warmup * self.config.training.steps)
        return schedules.warmup(steps)(self.step)

    def decay(self) -> Array:
        """A number that falls from 1 to 0 along the configured part of the run."""
        start, end = (f * self.config.training.steps for f in self.options.decay)
        return schedules.sigmoid_decay(int(start), max(int(end), int(start) + 1))(
            self.step
        )

    @property
    def nested_target(self) -> AverageVelocityField | None:
        """None where derivative and prediction come from one pass."""
        return None if self.options.structure == "nested" else self.target


TIME_LAWS: dict[str, Callable[[Experiment], times.TimeSampler]] = {
    "uniform": lambda config: times.uniform,
    "logit_normal": lambda config: partial(
        times.logit_normal,
        mean=config.objective.time_mean,
        std=config.objective.time_std,
    ),
    "arctan_normal": lambda config: partial(
        times.arctan_normal,
        mean=config.objective.time_mean,
        std=config.objective.time_std,
    ),
    "u_shaped": lambda config: times.u_shaped,
}
