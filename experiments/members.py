"""The objectives that an experiment can name: one entry of `MEMBERS` each.

A member is a loss of a `Batch` on its road, built from `flowjax.objectives`, and the
way its field is sampled. Everything that members share (laws of times, penalty, guided
and taught velocities, target fields) is a method of `Batch`, so that swapping one
member for another is one entry of the configuration.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.config import Experiment
from flowjax import couplings, fields, guidance, interpolants, objectives, times
from flowjax._typing import AverageVelocityField, PerExample, PRNGKey, Time
from flowjax.fields import diagonal
from flowjax.objectives import adversarial, moments, penalties, schedules
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


def _mean_flow(b: Batch, **options: Any) -> Any:
    path, s = b.ordered()
    loss = objectives.mean_flow(
        b.u,
        path,
        s,
        target=b.nested_target,
        derivative_scale=b.warmup if b.options.warmup else 1.0,
        **b.shared,
        **options,
    )
    if not b.options.dispersion:
        return loss
    spread = objectives.features.infonce_relative(
        b.modules["features"](path.x, path.t, s, path.cond)
    )
    return penalties.plus(loss, spread, weight=b.options.dispersion)


def _improved_mean_flow(b: Batch) -> Any:
    path, s = b.ordered()
    v = b.modules["velocity"]
    return objectives.improved_mean_flow(
        b.u, v, path, s, target=b.nested_target, **b.shared
    )


def _modular_mean_flow(b: Batch) -> Any:
    path, s = b.ordered()
    # A marginal velocity: with the conditional one the minimiser would be another.
    return objectives.mean_flow(
        b.u,
        path,
        s,
        velocity=b.teacher or diagonal(b.u),
        stop="velocity",
        gradient_share=b.warmup,
        **b.shared,
    )


def _decoupled_mean_flow(b: Batch) -> Any:
    """Flow matching and MeanFlow, each on the whole batch, under logarithms."""
    logarithm = penalties.logarithmic(b.modules.get("log_variance"))
    match = b.second().one_time()
    first = objectives.flow_matching(diagonal(b.u), match, penalty=logarithm)
    path, s = b.draw(
        partial(
            times.ordered_pairs,
            sampler=partial(times.logit_normal, mean=-0.4),
            second=partial(times.logit_normal, mean=1.2),
            share_equal=0.0,
        )
    )
    second = objectives.mean_flow(
        b.u, path, s, penalty=penalties.diagnosed(logarithm), target=b.nested_target
    )
    return penalties.plus(second, first)


def _alpha_flow(b: Batch) -> Any:
    path, s = b.draw(
        partial(
            times.ordered_pairs,
            sampler=b.law,
            share_equal=b.options.share_equal,
            equal="single",
        )
    )
    clip = b.options.target_clip
    return objectives.alpha_flow(b.u, path, s, b.decay(), clip=clip, **b.shared)


def _re_mean_flow(b: Batch) -> Any:
    path, s = b.draw(partial(times.reflow_pairs, share_equal=b.options.share_equal))
    return objectives.mean_flow(b.u, path, s, target=b.nested_target, **b.shared)


def _annealing_reflow(b: Batch) -> Any:
    """Flow matching of pairs whose noise is less and less mixed with fresh noise."""
    beta = 1 - schedules.warmup(b.config.training.steps)(b.step)
    x0 = objectives.anneal_source(b.draw_key("noise"), b.pairs.x0, beta)
    return _flow_matching(dataclasses.replace(b, pairs=b.pairs._replace(x0=x0)))


def _bidirectional(b: Batch) -> Any:
    ordered = partial(
        times.ordered_pairs, sampler=b.law, share_equal=b.options.share_equal
    )
    path, s = b.draw(times.either_direction(ordered))
    return objectives.bidirectional_mean_flow(
        b.u, path, s, weight=b.options.second_weight * b.warmup, **b.shared
    )


def _semigroup(b: Batch, *, random: bool) -> Any:
    path, s = b.ordered()
    key = b.draw_key("fraction")
    fraction = jax.random.uniform(key, path.t.shape) if random else 0.5
    return objectives.semigroup(
        b.u, path, s, fraction=fraction, first=b.target, second=b.target, **b.shared
    )


def _shortcut(b: Batch) -> Any:
    path, s = b.draw(partial(times.dyadic_pairs, share_equal=b.options.share_equal))
    return objectives.shortcut(
        b.u, path, s, target=b.target, clip=b.options.target_clip, **b.shared
    )


def _lagrangian(b: Batch, **options: Any) -> Any:
    path, s = b.ordered()
    return objectives.lagrangian(
        b.u, path, s, velocity=b.teacher, **b.shared, **options
    )


def _eulerian(b: Batch, **options: Any) -> Any:
    path, s = b.ordered()
    return objectives.eulerian(b.u, path, s, velocity=b.teacher, **b.shared, **options)


def _align_your_flow(b: Batch, form: Any) -> Any:
    path, s = b.draw(times.interval_pairs)
    penalty = penalties.diagnosed(penalties.normalised(offset=0.1))
    return objectives.align_your_flow(
        b.u,
        path,
        s,
        velocity=b.teacher,
        form=form,
        warmup=jnp.minimum(b.warmup, 0.99),
        penalty=penalty,
    )


def _snap_flow(b: Batch) -> Any:
    return objectives.snap_flow(
        b.u, b.one_time(), weight=b.options.second_weight, penalty=b.penalty
    )


def _anchored_consistency(b: Batch) -> Any:
    path = b.one_time()
    if b.teacher is not None:
        path = path._replace(v=b.teacher(path.x, path.t, path.cond))
    plain = b.plain_penalty
    if b.options.clip is None and b.teacher is not None:
        plain = objectives.clipped_cosine
    return objectives.anchored_consistency(
        b.u, path, penalty=penalties.diagnosed(plain), target=b.nested_target
    )


def _continuous_consistency(b: Batch) -> Any:
    path = b.one_time()
    if b.teacher is not None:
        path = path._replace(v=b.teacher(path.x, path.t, path.cond))
    return objectives.continuous_consistency(
        b.modules["network"], path, warmup=b.warmup, penalty=b.penalty
    )


def _consistency_flow_matching(b: Batch) -> Any:
    return objectives.consistency_flow_matching(
        diagonal(b.u),
        b.one_time(),
        segments=b.options.segments,
        weight=b.options.second_weight,
        penalty=b.penalty,
    )


def _twin_flow(b: Batch) -> Any:
    path, s = b.draw(times.any_step_pairs)
    loss = objectives.twin_flow(
        b.draw_key("noise"),
        b.u,
        path,
        s,
        interpolant=b.interpolant,
        target=b.target,
        step=b.options.step,
        weight=b.options.second_weight,
    )
    return loss, {}


def _trajectory(b: Batch) -> Any:
    path, s = b.ordered()
    solver = fields.chained(fields.euler(b.teacher), b.options.teacher_steps)
    return objectives.trajectory_distillation(
        b.u,
        path,
        s,
        velocity=b.teacher,
        trajectory=solver,
        target=b.target,
        penalty=b.penalty,
    )


def _velocity_matching(b: Batch) -> Any:
    o = b.options
    derivative = partial(fields.difference_quotient, step=o.step)

    def earlier(key: PRNGKey, batch: int, /) -> Time:
        return (1 - o.step) * b.law(key, batch)

    path, _ = b.draw(times.to_data(earlier))
    loss = objectives.velocity_matching(
        b.u, path, velocity=b.teacher, derivative=derivative, penalty=b.penalty
    )
    if not o.second_weight:
        return loss
    x0, x1, cond = b.pairs
    push = objectives.velocity_distillation(
        b.u,
        x0,
        jax.random.normal(b.draw_key("noise"), x1.shape, x1.dtype),
        earlier(b.draw_key("second"), len(x1)),
        cond,
        velocity=b.teacher,
        interpolant=b.interpolant,
        derivative=derivative,
        penalty=b.plain_penalty,
    )
    return penalties.plus(loss, push, weight=o.second_weight)


def _flow_guided(b: Batch) -> Any:
    fraction = times.uniform(b.draw_key("fraction"), len(b.pairs.x1), low=0.2, high=0.8)
    return objectives.flow_guided_distillation(
        diagonal(b.u),
        b.one_time(),
        fraction,
        velocity=b.teacher,
        weight=b.options.second_weight,
        penalty=b.penalty,
    )


def _self_corrected(b: Batch) -> Any:
    path = b.one_time()
    v = diagonal(b.u)
    loss = objectives.self_corrected_distillation(
        b.draw_key("fraction"),
        v,
        path,
        velocity=b.teacher,
        target=diagonal(b.target),
        interpolant=b.interpolant,
    )
    if not b.options.adversarial_weight:
        return loss, {}
    x0, x1, cond = b.pairs
    own = x0 + v(x0, jnp.zeros_like(path.t), cond)
    judge = b.modules["discriminator"]
    deceive = adversarial.generator_loss(b.still["discriminator"], own, cond)
    # Its own parameters, so that both sides descend in one optimiser step.
    discern = adversarial.discriminator_loss(judge, x1, own, cond)
    discern += adversarial.gradient_penalty(judge, x1, cond) / 2
    return loss + b.options.adversarial_weight * deceive + discern, {
        "discriminator": discern
    }


def _moment_matching(b: Batch) -> Any:
    group = b.options.group
    if b.pairs.cond is not None:
        # A group should share its label: neighbours in the order of labels mostly do.
        order = jnp.argsort(b.pairs.cond)
        pairs = jax.tree.map(lambda leaf: leaf[order], b.pairs)
        b = dataclasses.replace(b, pairs=pairs)
    t, q, s = moments.grouped_times(
        b.draw_key("times"), len(b.pairs.x1), group=group, gap=10.0
    )
    loss = moments.inductive_moment_matching(
        b.u,
        b.at(t),
        b.at(q),
        s,
        group=group,
        target=b.target,
        weight=moments.moment_weight(b.interpolant),
    )
    return loss, {}


def _policy_imitation(b: Batch) -> Any:
    """From the starts of one, two and four equal segments all the way to the data."""
    quarter = times.uniform(b.draw_key("fraction"), len(b.pairs.x1))
    path = b.at(jnp.floor(4 * quarter) / 4)
    return objectives.policy_imitation(
        b.draw_key("times"),
        b.modules["policy"],
        path,
        jnp.ones_like(path.t),
        velocity=b.teacher,
        states=b.options.states,
        substeps=32,
        teacher_ratio=1 - b.warmup,
        penalty=b.penalty,
    )


def _constant_acceleration(b: Batch) -> Any:
    """Both stages at once; no gradient of the second reaches the first."""
    path = b.one_time()
    first = objectives.constant_acceleration_velocity(
        b.modules["velocity"], path, penalty=b.penalty
    )
    second = objectives.constant_acceleration(
        b.modules["acceleration"],
        path,
        velocity=b.still["velocity"],
        penalty=b.plain_penalty,
    )
    return penalties.plus(first, second)


class Member(NamedTuple):
    """An objective and what it needs.

    Attributes:
        loss: ``batch -> (loss [batch], metrics)``.
        about: one line.
        sampler: how few steps are taken: ``"map"`` jumps along a grid, ``"euler"``
            Euler steps of the velocity, ``"restart"`` jumps to the data and back,
            ``"acceleration"`` from one initial velocity, ``"policy"`` along a policy
            per segment.
        teacher: whether it needs one.
        pairs: whether it learns from a teacher's pairs of noise and data.
    """

    loss: Callable[[Batch], tuple[PerExample, Metrics]]
    about: str
    sampler: str = "map"
    teacher: bool = False
    pairs: bool = False


def _flow_matching(b: Batch) -> Any:
    return objectives.flow_matching(diagonal(b.u), b.one_time(), penalty=b.penalty)


MEMBERS: dict[str, Member] = {
    "flow_matching": Member(_flow_matching, "flow matching", "euler"),
    "reflow": Member(
        _flow_matching, "flow matching of a teacher's pairs", "euler", pairs=True
    ),
    "annealing_reflow": Member(
        _annealing_reflow, "SlimFlow's annealing reflow", "euler", pairs=True
    ),
    "mean_flow": Member(_mean_flow, "MeanFlow"),
    "dispersive_mean_flow": Member(_mean_flow, "MeanFlow with dispersed features"),
    "improved_mean_flow": Member(_improved_mean_flow, "improved MeanFlow"),
    "modular_mean_flow": Member(_modular_mean_flow, "Modular MeanFlow"),
    "decoupled_mean_flow": Member(_decoupled_mean_flow, "Decoupled MeanFlow"),
    "re_mean_flow": Member(_re_mean_flow, "Re-MeanFlow, on reflow pairs", pairs=True),
    "alpha_flow": Member(_alpha_flow, "AlphaFlow"),
    "split_mean_flow": Member(partial(_semigroup, random=True), "SplitMeanFlow"),
    "bidirectional_mean_flow": Member(_bidirectional, "BiFM"),
    "shortcut": Member(_shortcut, "shortcut model"),
    "lagrangian": Member(_lagrangian, "Lagrangian self-distillation"),
    "eulerian": Member(_eulerian, "Eulerian self-distillation"),
    "progressive": Member(
        partial(_semigroup, random=False), "progressive self-distillation"
    ),
    "snap_flow": Member(_snap_flow, "SnapFlow", "restart"),
    "moment_matching": Member(_moment_matching, "inductive moment matching"),
    "twin_flow": Member(_twin_flow, "TwinFlow"),
    "anchored_consistency": Member(
        _anchored_consistency, "flow-anchored consistency", "restart"
    ),
    "continuous_consistency": Member(
        _continuous_consistency, "continuous-time consistency (sCM)", "restart"
    ),
    "consistency_flow_matching": Member(
        _consistency_flow_matching, "Consistency Flow Matching", "euler"
    ),
    "lagrangian_distillation": Member(
        partial(_lagrangian, stop="nothing"),
        "Lagrangian map distillation",
        teacher=True,
    ),
    "eulerian_distillation": Member(
        partial(_eulerian, stop="velocity"), "Eulerian map distillation", teacher=True
    ),
    "align_your_flow": Member(
        partial(_align_your_flow, form="eulerian"), "AYF, Eulerian", teacher=True
    ),
    "align_your_flow_lagrangian": Member(
        partial(_align_your_flow, form="lagrangian"), "AYF, Lagrangian", teacher=True
    ),
    "trajectory_distillation": Member(_trajectory, "TraFlow", teacher=True),
    "velocity_matching": Member(
        _velocity_matching, "MDT-dist", "restart", teacher=True
    ),
    "flow_guided_distillation": Member(
        _flow_guided, "SlimFlow", "euler", teacher=True, pairs=True
    ),
    "pi_flow": Member(
        _policy_imitation, "pi-Flow, Gaussian mixture policy", "policy", teacher=True
    ),
    "arc_flow": Member(
        _policy_imitation, "ArcFlow, momentum policy", "policy", teacher=True
    ),
    "constant_acceleration": Member(
        _constant_acceleration, "constant acceleration", "acceleration", pairs=True
    ),
    "self_corrected_distillation": Member(
        _self_corrected, "self-corrected flow distillation", "restart", teacher=True
    ),
}
