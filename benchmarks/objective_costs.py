"""What a training step costs with each method, in forward passes of the network.

    python -m benchmarks.objective_costs                  # a few minutes of compilation
    python -m benchmarks.objective_costs --width 128 --size 8

F is one forward pass over the whole batch. The count is XLA's, of the compiled gradient
of the mean loss on a DiT; nothing is executed, so neither the machine nor its load
matters. A row is a method of `experiments.methods` with options, and its loss is that
of an experiment, from pairs of noise and data on: times, interpolation, penalties and
their metrics are in the count, the optimiser is not. A teacher is free in the first
count (a closed form) and a network of the same size, with parameters of its own, in the
second.

The floor is counted by hand from the equation, with every evaluation that can be shared
shared. A forward pass costs 1, its backward pass 2, and its tangent ``1 + a``: a linear
layer is done once more, a product of two activations twice more, and ``a`` is the share
of such products (attention) in the forward pass. Reverse mode through value and tangent
costs ``6 + 3 a`` in all. XLA counts what is between the products as well.

The body of a `jax.lax.scan` is counted once, and of the branches of a `jax.lax.cond`
the dearest one, whichever is run.
"""

import platform
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array

from experiments.data import Conditions, Example
from experiments.data.forms import ImageForm
from experiments.engine import teachers
from experiments.engine.experiment import Experiment
from experiments.engine.model import Model
from experiments.engine.road import make_loss
from experiments.engine.teachers import Teacher
from experiments.language.sentence import Use, use
from experiments.methods import (
    consistency,
    distillation,
    mean_flow,
    self_distillation,
    velocity,
)
from flowjax import guidance, interpolants
from flowjax.fields import diagonal
from flowjax.networks import DiT
from flowjax.objectives import penalties
from flowjax.times import dyadic_pairs, either_direction, ordered_pairs, uniform
from flowjax.typing import Pairs, VelocityField


class Cost(NamedTuple):
    """One method and its cost.

    Attributes:
        method: with its options.
        floor: ``(c, d)`` for ``c + d a`` forward passes without teacher.
        known: what a plain hand-written form of the same loss costs, by XLA's count or
            by hand (four blocks of width 256 on 256 tokens); None where unknown.
        teacher: forward passes of the teacher, None where there is no teacher.
        network: options of the network that differ from the plain one's.
    """

    method: Use
    floor: tuple[float, float]
    known: float | None = None
    teacher: int | None = None
    network: Mapping[str, Any] = {}


def apart(share_equal: float = 0.0) -> Use:
    """Starts and destinations; by default none are equal."""
    return use(ordered_pairs, sampler=use(uniform), share_equal=share_equal)


def mean_flows(share_equal: float = 0.0, **options: Any) -> Use:
    return use(mean_flow.MeanFlow, pairs=apart(share_equal), **options)


def guided(omega: float, kappa: float) -> Use:
    rule = use(guidance.guided_velocity, omega=omega, kappa=kappa)
    return mean_flows(guidance=rule)


def improved(share_equal: float = 0.0) -> Use:
    return use(mean_flow.ImprovedMeanFlow, pairs=apart(share_equal))


# What the counter puts in the teacher's place; only that there is one is read.
ANY = use(teachers.Exact)
TWO_PHASES: Any = {"structure": "two_phases"}
NORMALISED = use(penalties.normalised)

COSTS = {
    "flow matching": Cost(use(velocity.FlowMatching), (3, 0), 3.0),
    "MeanFlow": Cost(mean_flows(), (4, 1), 4.15),
    "MeanFlow, 75 % s = t": Cost(mean_flows(0.75), (3.25, 0.25)),
    "two phases, 75 % s = t": Cost(mean_flows(0.75, **TWO_PHASES), (3.25, 0.25), 3.52),
    "two phases, 50 % s = t": Cost(mean_flows(0.5, **TWO_PHASES), (3.5, 0.5), 4.04),
    "two phases, no s = t": Cost(mean_flows(**TWO_PHASES), (4, 1), 4.15),
    "guided target, kappa = 0": Cost(guided(2.0, 0.0), (5, 1)),
    "guided target, kappa > 0": Cost(guided(1.0, 0.5), (6, 1), 6.15),
    "iMF, v the diagonal": Cost(improved(), (7, 1)),
    "iMF, v the diagonal, 50 % s = t": Cost(improved(0.5), (5, 0.5)),
    "iMF, v a second head of 1 block": Cost(
        improved(), (7, 1), network={"velocity_head": 1}
    ),
    "Modular": Cost(use(mean_flow.ModularMeanFlow, pairs=apart()), (7, 3)),
    "Modular, velocity of a teacher": Cost(
        use(mean_flow.ModularMeanFlow, pairs=apart(), teacher=ANY), (6, 3), 6.45, 1
    ),
    "Decoupled": Cost(use(mean_flow.DecoupledMeanFlow), (7, 1), 7.15),
    "AlphaFlow": Cost(use(mean_flow.AlphaFlow, pairs=apart()), (4, 1)),
    "BiFM": Cost(
        use(
            mean_flow.BidirectionalMeanFlow, pairs=use(either_direction, pairs=apart())
        ),
        (5, 1),
        5.14,
    ),
    "Split": Cost(use(self_distillation.SplitMeanFlow, pairs=apart()), (5, 0), 5.0),
    "PSD": Cost(use(self_distillation.Progressive, pairs=apart()), (5, 0), 5.0),
    "shortcut, 7/8 s = t": Cost(
        use(
            self_distillation.Shortcut,
            pairs=use(dyadic_pairs, share_equal=0.875),
            target="average",
        ),
        (3.25, 0),
        3.25,
    ),
    "SnapFlow": Cost(use(self_distillation.SnapFlow), (8, 0), 8.0),
    "Consistency-FM": Cost(use(velocity.ConsistencyFlowMatching), (4, 0), 4.0),
    "LSD, 75 % s = t": Cost(
        use(self_distillation.Lagrangian, pairs=apart(0.75)), (4, 0.75)
    ),
    "ESD, 75 % s = t": Cost(
        use(self_distillation.Eulerian, pairs=apart(0.75)), (4, 0.75)
    ),
    "FACM": Cost(
        use(consistency.AnchoredConsistency, penalty=use(penalties.clipped_cosine)),
        (7, 1),
        7.15,
    ),
    "sCM": Cost(
        use(consistency.ContinuousConsistency, penalty=NORMALISED), (4, 1), 4.15
    ),
    "IMM": Cost(use(self_distillation.MomentMatching), (4, 0), 4.0),
    "TwinFlow": Cost(use(self_distillation.TwinFlow), (6.75, 0), 5.0),
    "LMD": Cost(use(distillation.LagrangianDistillation, teacher=ANY), (6, 3), 6.45, 1),
    "EMD": Cost(use(distillation.EulerianDistillation, teacher=ANY), (6, 3), 6.45, 1),
    "AYF-EMD": Cost(use(distillation.AlignYourFlow, teacher=ANY), (4, 1), 4.15, 1),
    "AYF-LMD": Cost(
        use(distillation.AlignYourFlowLagrangian, teacher=ANY), (4, 1), 4.15, 1
    ),
    # Two scans of 32 steps and one pass; the body of a scan is counted once.
    "TraFlow": Cost(
        use(distillation.TrajectoryDistillation, teacher=ANY), (10, 0), None, 65
    ),
    "SlimFlow": Cost(
        use(distillation.FlowGuidedDistillation, teacher=ANY), (3, 0), 4.0, 1
    ),
    "SCFlow": Cost(
        use(distillation.SelfCorrectedDistillation, teacher=ANY), (9, 0), 11.0, 1
    ),
    "MDT, velocity matching": Cost(
        use(distillation.VelocityMatching, teacher=ANY), (4, 0), None, 1
    ),
    "MDT, both terms": Cost(
        use(distillation.VelocityMatching, teacher=ANY, weight=1.0), (9, 0), 9.0, 2
    ),
}


class Counter:
    """Counts FLOPs of gradients on one network and batch.

    Args:
        width: of the DiT, a multiple of 64.
        depth: its blocks.
        size: tokens per side of the image.
        batch: rows, a multiple of 8.
    """

    def __init__(self, width: int, depth: int, size: int, batch: int) -> None:
        shape = {"width": width, "depth": depth, "num_heads": width // 64}
        self._network = use(DiT, patch_size=2, **shape)
        self._example = Example((2 * size, 2 * size, 4), Conditions(10), ImageForm())
        as_shape: Any = jax.ShapeDtypeStruct
        x = as_shape((batch, *self._example.event), jnp.float32)
        t, label = (as_shape((batch,), kind) for kind in (jnp.float32, jnp.int32))
        self._pairs = Pairs(x, x, label)
        self._key = jax.eval_shape(lambda: jax.random.key(0))
        plain = self._model(use(velocity.FlowMatching))
        self._apply: Any = plain.modules["field"].apply
        self._params = jax.eval_shape(plain.init, self._key).params["field"]
        self.forward = _flops(self._apply, self._params, x, t, t, label)
        tokens = size**2
        # Per token and block 24 w^2 FLOPs of linear layers and 4 n w of attention.
        self.attention = tokens / (tokens + 6 * width)

    def _model(self, method: Use, **network: Any) -> Model:
        path = method.thing.recipe.get("path", use(interpolants.linear))
        chosen = self._network.vary(**network)
        experiment = Experiment(method=method, path=path, network=chosen)
        return Model(experiment, self._example)

    def loss(self, cost: Cost, *, network_teacher: bool) -> tuple[Any, Any]:
        """Return the loss [batch] with its metrics, and the shapes of its arguments."""
        model = self._model(cost.method, **cost.network)
        _ = model.modules  # their checks compute, and must not be traced
        state = jax.eval_shape(model.init, self._key)

        def velocity(params: Any, scale: Any) -> VelocityField:
            return diagonal(partial(self._apply, params)) if network_teacher else free

        def loss(params: Any, other: Any, key: Any, pairs: Any, state: Any) -> Any:
            there = cost.teacher is not None
            teacher = Teacher(other, velocity, lambda seed: {}) if there else None
            return make_loss(model, teacher, other)(params, key, pairs, state)

        return loss, (state.params, self._params, self._key, self._pairs, state)

    def count(
        self, cost: Cost, *, network_teacher: bool = False, metrics: bool = True
    ) -> float:
        """Return the FLOPs of value and gradient of the mean loss, in F."""
        loss, shapes = self.loss(cost, network_teacher=network_teacher)

        def value(*arguments: Any) -> Any:
            losses, watched = loss(*arguments)
            # The means of the metrics are outputs as well, as they are of a step.
            return losses.mean(), jax.tree.map(jnp.mean, watched) if metrics else {}

        gradient = jax.value_and_grad(value, has_aux=True)
        return _flops(gradient, *shapes) / self.forward


def free(x: Array, t: Array, cond: Any = None, /) -> Array:
    """A velocity that costs nothing."""
    return -x


def _flops(function: Any, *shapes: Any) -> float:
    analysis: Any = jax.jit(function).lower(*shapes).compile().cost_analysis()
    return analysis["flops"]


def main(
    width: int = 256,
    depth: int = 4,
    size: int = 16,
    batch: int = 16,
    only: tuple[str, ...] = (),
) -> None:
    """Print the table.

    Args:
        width: of the DiT, a multiple of 64.
        depth: its blocks.
        size: tokens per side of the image.
        batch: rows, a multiple of 8.
        only: names of the rows; none: all.
    """
    counter = Counter(width, depth, size, batch)
    a = counter.attention
    print(f"jax {jax.__version__}, Python {platform.python_version()}, XLA for CPU")
    print(f"{depth} blocks of width {width} on {size**2} tokens, batch {batch}")
    print(f"F = {counter.forward / 1e9:.3f} GFLOP, attention's share a = {a:.3f}\n")
    print("| objective | F | floor | ratio | hand-written | with teacher | teacher's |")
    print("|---|---|---|---|---|---|---|")
    for name in only or COSTS:
        cost = COSTS[name]
        count = counter.count(cost)
        floor = cost.floor[0] + cost.floor[1] * a
        known = "" if cost.known is None else f"{cost.known:.2f}"
        row = f"| {name} | {count:.2f} | {floor:.2f} | {count / floor:.3f} | {known} "
        if cost.teacher is not None:
            both = counter.count(cost, network_teacher=True)
            row += f"| {both:.2f} | {cost.teacher} |"
        else:
            row += "| | |"
        print(row, flush=True)
    if only:
        return
    plain, more = (
        counter.count(COSTS["MeanFlow"], metrics=metrics) for metrics in (False, True)
    )
    print(f"\nMetrics of `penalties.diagnosed`: {100 * (more / plain - 1):.3f} % more.")


if __name__ == "__main__":
    tyro.cli(main)
