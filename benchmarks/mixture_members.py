"""The members that `benchmarks.mixture_maps` trains, one loss of a `Draw` each.

Data .3 N(-1, .35^2) + .7 N(1.6, .5^2). "Teacher" is its exact marginal velocity, and
"pairs" are noise and where the exact flow map takes it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax import analytic, interpolants, objectives, times
from flowjax.fields import diagonal
from flowjax.objectives import penalties, schedules

LINEAR = interpolants.linear()
MIXTURE = analytic.mixture(
    jnp.array([0.3, 0.7]), jnp.array([[-1.0], [1.6]]), jnp.array([[0.35], [0.5]])
)
DEVIATION = 1.28  # of the mixture; the source of sCM has it too
VELOCITY = analytic.velocity(MIXTURE, LINEAR)
FLOW_MAP = analytic.flow_map(MIXTURE, LINEAR)


class Draw(NamedTuple):
    """What a loss may use: fields with bound parameters, samples, a key, the step."""

    u: Any
    average: Any
    x0: Array
    x1: Array
    key: Array
    step: Array
    steps: int

    def path(self, t: Array, *, pairs: bool = False) -> interpolants.Path:
        """Join noise and data at t, or noise and where the exact map takes it."""
        x1 = ends_of(self.x0) if pairs else self.x1
        return interpolants.sample_path(LINEAR, self.x0, x1, t)

    def uniform(self, **options: Any) -> interpolants.Path:
        """Points at uniform times."""
        return self.path(times.uniform(self.key, len(self.x0)), **options)

    def pairs(self, share_equal: float) -> Any:
        """Points and destinations, uniform on the triangle t < s."""
        pair = times.uniform_pairs(self.key, len(self.x0), share_equal=share_equal)
        return self.path(pair[0]), pair[1]

    def taught(self, path: interpolants.Path) -> interpolants.Path:
        """The same points with the marginal velocity."""
        return path._replace(v=VELOCITY(path.x, path.t))

    def warmup(self, share: float = 0.2) -> Array:
        """A number that rises from 0 to 1 in a share of the run."""
        return schedules.warmup(max(int(share * self.steps), 1))(self.step)

    def fractions(self, low: float = 0.0, high: float = 1.0) -> Array:
        """One uniform number per row, of a key of its own."""
        key = jax.random.fold_in(self.key, 1)
        return jax.random.uniform(key, (len(self.x0),), minval=low, maxval=high)


_START = jnp.linspace(-7.0, 7.0, 4001)
_END = FLOW_MAP(_START[:, None], jnp.zeros(4001), jnp.ones(4001))[:, 0]


def ends_of(x0: Array) -> Array:
    """The exact map of noise to data, from a table."""
    return jnp.interp(x0, _START, _END)


def straight_velocity(x: Array, t: Array, cond: Any = None) -> Array:
    """The velocity of the exact map's pairs on straight lines, from the same table."""

    def row(x: Array, t: Array) -> Array:
        return jnp.interp(x, _START + t * (_END - _START), _END - _START)

    return jax.vmap(row)(x, t)


def secant(x: Array, t: Array, s: Array, cond: Any = None) -> Array:
    """The exact average velocity, without quadrature: the velocity over short gaps."""
    gap = (s - t)[:, None]
    short = jnp.abs(gap) < 1e-3
    rise = FLOW_MAP(x, t, s) - x
    return jnp.where(short, VELOCITY(x, t), rise / jnp.where(short, 1, gap))


def _mean_flow(d: Draw, share_equal: float = 0.75, **options: Any) -> Array:
    path, s = d.pairs(share_equal)
    return objectives.mean_flow(d.u, path, s, share_equal=share_equal, **options)


def _adaptive(power: float) -> Callable[[Draw], Array]:
    return partial(_mean_flow, penalty=penalties.adaptive(power=power))


def _anchored(objective: Any, **options: Any) -> Callable[[Draw], Array]:
    def loss(d: Draw) -> Array:
        path, s = d.pairs(0.5)
        return objective(d.u, path, s, share_equal=0.5, **options)

    return loss


def _taught(objective: Any, **options: Any) -> Callable[[Draw], Array]:
    return lambda d: objective(d.u, *d.pairs(0.0), velocity=VELOCITY, **options)


def _improved(d: Draw) -> Array:
    path, s = d.pairs(0.5)
    v = diagonal(d.u)
    return objectives.improved_mean_flow(d.u, v, path, s, share_equal=0.5)


def _modular(d: Draw, own: bool) -> Array:
    path, s = d.pairs(0.5)
    velocity = diagonal(d.u) if own else None
    share = d.warmup() if own else 1.0
    return objectives.mean_flow(
        d.u,
        path,
        s,
        share_equal=0.5,
        velocity=velocity,
        stop="velocity",
        gradient_share=share,
    )


def _alpha_flow(d: Draw, alpha: float | None = None) -> Array:
    path, s = d.pairs(0.5)
    a = schedules.sigmoid_decay(0, d.steps)(d.step) if alpha is None else alpha
    return objectives.alpha_flow(d.u, path, s, a, share_equal=0.5)


def _split(d: Draw) -> Array:
    path, s = d.pairs(0.5)
    return objectives.semigroup(d.u, path, s, fraction=d.fractions(), share_equal=0.5)


def _shortcut(d: Draw) -> Array:
    t, s = times.dyadic_pairs(d.key, len(d.x0))
    return objectives.shortcut(d.u, d.path(t), s, target=d.average)


def _bidirectional(d: Draw) -> Array:
    ordered = partial(times.uniform_pairs, share_equal=0.5)
    t, s = times.either_direction(ordered)(d.key, len(d.x0))
    return objectives.bidirectional_mean_flow(d.u, d.path(t), s, share_equal=0.5)


def _moments(d: Draw) -> Array:
    t, q, s = objectives.grouped_times(d.key, len(d.x0), group=16, gap=10.0)
    weight = objectives.moment_weight(LINEAR)
    return objectives.inductive_moment_matching(
        d.u, d.path(t), d.path(q), s, group=16, weight=weight
    )


def _twin_flow(d: Draw) -> Array:
    key_noise, key_time = jax.random.split(jax.random.fold_in(d.key, 2))
    t, s = times.any_step_pairs(key_time, len(d.x0))
    return objectives.twin_flow(
        key_noise, d.u, d.path(t), s, interpolant=LINEAR, target=d.average
    )


def _anchored_consistency(d: Draw, teacher: bool) -> Array:
    path = d.path(times.arctan_normal(d.key, len(d.x0)))
    return objectives.anchored_consistency(d.u, d.taught(path) if teacher else path)


def _continuous_consistency(d: Draw, teacher: bool, normalise: bool) -> Array:
    line = interpolants.trigonometric()
    mean = -1.0 - math.log(DEVIATION)
    t = times.arctan_normal(d.key, len(d.x0), mean=mean, std=1.4)
    path = interpolants.sample_path(line, DEVIATION * d.x0, d.x1, t)
    if teacher:
        # In units of the deviation the source is a standard normal.
        scaled = analytic.mixture(
            MIXTURE.weights, MIXTURE.means / DEVIATION, MIXTURE.stds / DEVIATION
        )
        v = analytic.velocity(scaled, line)
        path = path._replace(v=DEVIATION * v(path.x / DEVIATION, t))
    penalty = penalties.normalised() if normalise else penalties.mean_square
    return objectives.continuous_consistency(
        d.u, path, sigma_data=DEVIATION, warmup=d.warmup(), penalty=penalty
    )


def _align_your_flow(d: Draw, form: Any) -> Array:
    t, s = times.interval_pairs(d.key, len(d.x0))
    return objectives.align_your_flow(
        d.u,
        d.path(t),
        s,
        velocity=VELOCITY,
        form=form,
        warmup=jnp.minimum(d.warmup(), 0.99),
    )


def _trajectory(d: Draw) -> Array:
    path, s = d.pairs(0.0)
    return objectives.trajectory_distillation(
        d.u, path, s, velocity=VELOCITY, trajectory=secant, target=d.average
    )


def _velocity_matching(d: Draw, both: bool) -> Array:
    def early(key: Array) -> Array:
        # The paper's law, nearer the noise, leaves few rows where a jump is short and
        # learned first: 0.165 instead of 0.029 in one step after 3000 steps.
        return 0.99 * times.uniform(key, len(d.x0))

    loss = objectives.velocity_matching(d.u, d.path(early(d.key)), velocity=VELOCITY)
    if not both:
        return loss
    key_start, key_noise = jax.random.split(jax.random.fold_in(d.key, 2))
    return loss + objectives.velocity_distillation(
        d.u,
        d.x0,
        jax.random.normal(key_noise, d.x0.shape),
        early(key_start),
        velocity=VELOCITY,
        interpolant=LINEAR,
    )


def _flow_guided(d: Draw) -> Array:
    return objectives.flow_guided_distillation(
        diagonal(d.u),
        d.uniform(pairs=True),
        d.fractions(0.2, 0.8),
        velocity=straight_velocity,
    )


def _self_corrected(d: Draw) -> Array:
    return objectives.self_corrected_distillation(
        jax.random.fold_in(d.key, 1),
        diagonal(d.u),
        d.uniform(pairs=True),
        velocity=straight_velocity,
        target=diagonal(d.average),
        interpolant=LINEAR,
    )


class Member(NamedTuple):
    """A loss and how its field is sampled.

    Attributes:
        loss: ``draw -> loss [batch]``.
        sampler: ``"map"`` jumps along any grid, ``"one"`` only to the data, ``"euler"``
            Euler steps of the diagonal, ``"angle"`` a TrigFlow network to the data.
        diagonal: whether the diagonal is a velocity that was trained.
    """

    loss: Callable[[Draw], Array]
    sampler: str = "map"
    diagonal: bool = True


MEMBERS = {
    "flow matching": Member(
        lambda d: objectives.flow_matching(diagonal(d.u), d.uniform()), "euler"
    ),
    "MeanFlow, 75 % s = t": Member(_mean_flow),
    "MeanFlow, 25 % s = t": Member(partial(_mean_flow, share_equal=0.25)),
    "MeanFlow, power 0.5": Member(_adaptive(0.5)),
    "MeanFlow, power 1": Member(_adaptive(1.0)),
    "iMF, v the diagonal": Member(_improved),
    "AlphaFlow, alpha falls to 0": Member(_alpha_flow),
    "AlphaFlow, alpha 0.05": Member(partial(_alpha_flow, alpha=0.05)),
    "Modular, own velocity": Member(partial(_modular, own=True)),
    "Modular, path's velocity": Member(partial(_modular, own=False)),
    "BiFM": Member(_bidirectional),
    "Split": Member(_split),
    "PSD, midpoint": Member(_anchored(objectives.semigroup)),
    "shortcut": Member(_shortcut),
    "LSD": Member(_anchored(objectives.lagrangian)),
    "ESD, stop velocity": Member(_anchored(objectives.eulerian, stop="velocity")),
    "ESD, stop derivative": Member(_anchored(objectives.eulerian, stop="derivative")),
    "ESD, stop advection": Member(_anchored(objectives.eulerian, stop="advection")),
    "SnapFlow": Member(
        lambda d: objectives.snap_flow(d.u, d.uniform(), weight=1.0), "one"
    ),
    "Consistency-FM, 2 segments": Member(
        lambda d: objectives.consistency_flow_matching(diagonal(d.u), d.uniform()),
        "euler",
    ),
    "FACM": Member(partial(_anchored_consistency, teacher=False), "one"),
    "sCM, square": Member(
        partial(_continuous_consistency, teacher=False, normalise=False),
        "angle",
        False,
    ),
    "sCM, normalised": Member(
        partial(_continuous_consistency, teacher=False, normalise=True),
        "angle",
        False,
    ),
    "IMM, groups of 16": Member(_moments, "map", False),
    "TwinFlow": Member(_twin_flow, "map", False),
    "LMD, teacher": Member(_taught(objectives.lagrangian, stop="nothing")),
    "EMD, teacher": Member(_taught(objectives.eulerian, stop="velocity")),
    "AYF-EMD, teacher": Member(partial(_align_your_flow, form="eulerian")),
    "AYF-LMD, teacher": Member(partial(_align_your_flow, form="lagrangian")),
    "FACM, teacher": Member(partial(_anchored_consistency, teacher=True), "one"),
    "sCM, normalised, teacher": Member(
        partial(_continuous_consistency, teacher=True, normalise=True),
        "angle",
        False,
    ),
    "TraFlow, teacher": Member(_trajectory),
    "MDT, velocity matching, teacher": Member(
        partial(_velocity_matching, both=False), "one", False
    ),
    "MDT, both terms, teacher": Member(
        partial(_velocity_matching, both=True), "one", False
    ),
    "reflow, pairs": Member(
        lambda d: objectives.flow_matching(diagonal(d.u), d.uniform(pairs=True)),
        "euler",
    ),
    "SlimFlow, pairs": Member(_flow_guided, "euler", False),
    "SCFlow, pairs": Member(_self_corrected, "euler"),
}
