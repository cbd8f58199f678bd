"""The rows that `benchmarks.mixture_maps` trains: a method with options each.

The data are .3 N(-1, .35^2) + .7 N(1.6, .5^2). "Teacher" is their exact marginal
velocity, and "pairs" are noise and where the exact flow map takes it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.data import Dataset
from experiments.data.points import Mixture
from experiments.engine import teachers
from experiments.language.sentence import Use, use
from experiments.methods import (
    consistency,
    distillation,
    mean_flow,
    policies,
    self_distillation,
    velocity,
)
from flowjax import analytic, interpolants
from flowjax.interpolants import Interpolant
from flowjax.objectives import penalties
from flowjax.times import (
    arctan_normal,
    dyadic_pairs,
    either_direction,
    ordered_pairs,
    uniform,
)

LINEAR = interpolants.linear()
LAW = Mixture().law
FLOW_MAP = analytic.flow_map(LAW, LINEAR)


@jax.jit
def to_data(x0: Array) -> Array:
    """The exact map of noise to data: in one dimension that of every path."""
    return FLOW_MAP(x0, jnp.zeros(len(x0)), jnp.ones(len(x0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Straight(teachers.Exact):
    """The exact map's pairs on straight lines: where reflow leads a teacher."""

    def open(self, restore: Any, data: Dataset, path: Interpolant) -> teachers.Teacher:
        """Read the velocity off a table of the pairs."""
        x0 = jnp.linspace(-7.0, 7.0, 4001)
        step = to_data(x0[:, None])[:, 0] - x0

        def row(x: Array, t: Array) -> Array:
            return jnp.interp(x, x0 + t * step, step)

        def straight(x: Array, t: Array, cond: Any = None, /) -> Array:
            return jax.vmap(row)(x, t)

        exact = super().open(restore, data, path)
        return exact._replace(velocity=lambda params, scale: straight)


def triangle(share_equal: float) -> Use:
    """Starts and destinations, uniform on the triangle t < s."""
    return use(ordered_pairs, sampler=use(uniform), share_equal=share_equal)


def mean_flows(share_equal: float = 0.75, **options: Any) -> Use:
    return use(mean_flow.MeanFlow, pairs=triangle(share_equal), **options)


def consistencies(penalty: Use, **options: Any) -> Use:
    # The noise has deviation 1 and not, as in the paper's units, that of the data: the
    # law of the ratio of noise to data is the paper's.
    return use(
        consistency.ContinuousConsistency,
        times=use(arctan_normal, mean=-1.0, std=1.4),
        warmup=0.2,
        penalty=penalty,
        **options,
    )


UNIFORM, HALF, EXACT = use(uniform), triangle(0.5), use(teachers.Exact)
COSINE = use(penalties.clipped_cosine)

ROWS: dict[str, Use] = {
    "flow matching": use(velocity.FlowMatching, times=UNIFORM),
    "MeanFlow, 75 % s = t": mean_flows(),
    "MeanFlow, 25 % s = t": mean_flows(0.25),
    "MeanFlow, power 0.5": mean_flows(penalty=use(penalties.adaptive, power=0.5)),
    "MeanFlow, power 1": mean_flows(penalty=use(penalties.adaptive, power=1.0)),
    "iMF, v the diagonal": use(mean_flow.ImprovedMeanFlow, pairs=HALF),
    "AlphaFlow, alpha falls to 0": use(
        mean_flow.AlphaFlow, pairs=HALF, decay=(0.0, 1.0)
    ),
    "Modular, own velocity": use(mean_flow.ModularMeanFlow, pairs=HALF, warmup=0.2),
    "BiFM": use(
        mean_flow.BidirectionalMeanFlow,
        pairs=use(either_direction, pairs=HALF),
        weight=1.0,
    ),
    "Split": use(self_distillation.SplitMeanFlow, pairs=HALF),
    "PSD, midpoint": use(self_distillation.Progressive, pairs=HALF),
    "shortcut": use(
        self_distillation.Shortcut,
        pairs=use(dyadic_pairs, share_equal=0.875),
        target="average",
    ),
    "LSD": use(self_distillation.Lagrangian, pairs=HALF),
    "ESD": use(self_distillation.Eulerian, pairs=HALF),
    "SnapFlow": use(self_distillation.SnapFlow, weight=1.0),
    "Consistency-FM, 2 segments": use(velocity.ConsistencyFlowMatching),
    "FACM": use(consistency.AnchoredConsistency, penalty=COSINE),
    "sCM, square": consistencies(use(penalties.mean_square)),
    "sCM, normalised": consistencies(use(penalties.normalised)),
    "IMM, groups of 16": use(self_distillation.MomentMatching, group=16),
    "TwinFlow": use(self_distillation.TwinFlow),
    "LMD, teacher": use(distillation.LagrangianDistillation, teacher=EXACT),
    "EMD, teacher": use(distillation.EulerianDistillation, teacher=EXACT),
    "AYF-EMD, teacher": use(distillation.AlignYourFlow, teacher=EXACT, warmup=0.2),
    "AYF-LMD, teacher": use(distillation.AlignYourFlowLagrangian, teacher=EXACT),
    "FACM, teacher": use(
        consistency.AnchoredConsistency, penalty=COSINE, teacher=EXACT
    ),
    "sCM, normalised, teacher": consistencies(use(penalties.normalised), teacher=EXACT),
    "TraFlow, teacher": use(distillation.TrajectoryDistillation, teacher=EXACT),
    "MDT, velocity matching, teacher": use(
        distillation.VelocityMatching, teacher=EXACT
    ),
    "MDT, both terms, teacher": use(
        distillation.VelocityMatching, teacher=EXACT, weight=1.0
    ),
    "SCFlow, teacher": use(distillation.SelfCorrectedDistillation, teacher=EXACT),
    "pi-Flow, teacher": use(policies.PiFlow, teacher=EXACT),
    "ArcFlow, teacher": use(policies.ArcFlow, teacher=EXACT),
    "reflow, pairs": use(velocity.Reflow, teacher=EXACT),
    "annealing reflow, pairs": use(velocity.AnnealingReflow, teacher=EXACT),
    "Re-MeanFlow, pairs": use(mean_flow.ReMeanFlow, teacher=EXACT),
    "constant acceleration, pairs": use(policies.ConstantAcceleration, teacher=EXACT),
    "SlimFlow, pairs": use(distillation.FlowGuidedDistillation, teacher=use(Straight)),
}
