"""What a training step costs with each objective, in forward passes of the network.

    python -m benchmarks.objective_costs                  # a few minutes of compilation
    python -m benchmarks.objective_costs --width 128 --size 8

F is one forward pass over the whole batch. The count is XLA's, of the compiled gradient
of the mean loss on a DiT; nothing is executed, so neither the machine nor its load
matters. Penalties, interpolation and the conditioning on (t, s) are in the count, the
optimiser is not. A teacher is free in the first count (a closed form) and a network of
the same size, with parameters of its own, in the second.

The floor is counted by hand from the equation, with every evaluation that can be shared
shared. A forward pass costs 1, its backward pass 2, and its tangent ``1 + a``: a linear
layer is done once more, a product of two activations twice more, and ``a`` is the share
of such products (attention) in the forward pass. Reverse mode through value and tangent
costs ``6 + 3 a`` in all. XLA counts what is between the products as well.

The body of a `jax.lax.scan` is counted once, and of the branches of a `jax.lax.cond`
the dearest one, whichever is run.
"""

import platform
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array

from flowjax import guidance, interpolants, objectives
from flowjax.fields import diagonal, euler
from flowjax.interpolants import Path
from flowjax.networks import DiT
from flowjax.objectives import penalties

LINEAR = interpolants.linear()


class Problem(NamedTuple):
    """What a loss may use: fields with bound parameters, one batch, a key."""

    u: Any
    second_head: Any
    frozen: Any
    teacher: Any
    path: Path
    s: Array
    key: Array


class Cost(NamedTuple):
    """One objective and its cost.

    Attributes:
        loss: ``problem -> loss [batch]``.
        floor: ``(c, d)`` for ``c + d a`` forward passes without teacher.
        known: what a plain hand-written form of the same loss costs, by XLA's count or
            by hand (four blocks of width 256 on 256 tokens); None where unknown.
        teacher: forward passes of the teacher, None where there is no teacher.
    """

    loss: Callable[[Problem], Array]
    floor: tuple[float, float]
    known: float | None = None
    teacher: int | None = None


def mean_flow(**options: Any) -> Callable[[Problem], Array]:
    return lambda p: objectives.mean_flow(p.u, p.path, p.s, **options)


def two_phases(share_equal: float) -> Callable[[Problem], Array]:
    return lambda p: objectives.mean_flow(
        p.u, p.path, p.s, share_equal=share_equal, target=p.u
    )


def guided(omega: float, kappa: float) -> Callable[[Problem], Array]:
    def loss(p: Problem) -> Array:
        v = guidance.guided_velocity(p.u, p.path, null=10, omega=omega, kappa=kappa)
        return objectives.mean_flow(p.u, p.path._replace(v=v), p.s)

    return loss


def own(objective: Any, **options: Any) -> Callable[[Problem], Array]:
    """Self-distillation on rows that are all off the diagonal."""
    return lambda p: objective(p.u, p.path, p.s, velocity=diagonal(p.u), **options)


def taught(objective: Any, **options: Any) -> Callable[[Problem], Array]:
    return lambda p: objective(p.u, p.path, p.s, velocity=p.teacher, **options)


def improved(share_equal: float) -> Callable[[Problem], Array]:
    return lambda p: objectives.improved_mean_flow(
        p.u, diagonal(p.u), p.path, p.s, share_equal=share_equal
    )


def improved_second_head(p: Problem) -> Array:
    return objectives.improved_mean_flow(p.u, p.second_head, p.path, p.s)


def moment_matching(p: Problem) -> Array:
    nearer = p.path._replace(x=p.path.x1)
    return objectives.inductive_moment_matching(p.u, p.path, nearer, p.s)


def decoupled(p: Problem) -> Array:
    log = penalties.logarithmic()
    other = p.path._replace(x=p.path.x0, t=p.s)
    anchor = objectives.flow_matching(diagonal(p.u), other, penalty=log)
    return anchor + objectives.mean_flow(p.u, p.path, p.s, penalty=log)


def trajectory(p: Problem) -> Array:
    return objectives.trajectory_distillation(
        p.u,
        p.path,
        p.s,
        velocity=p.teacher,
        trajectory=euler(p.teacher),
        target=p.frozen,
    )


def flow_guided(p: Problem) -> Array:
    return objectives.flow_guided_distillation(
        diagonal(p.u), p.path, p.s, velocity=p.teacher
    )


def self_corrected(p: Problem) -> Array:
    return objectives.self_corrected_distillation(
        p.key,
        diagonal(p.u),
        p.path,
        velocity=p.teacher,
        target=diagonal(p.frozen),
        interpolant=LINEAR,
    )


def velocity_matching(p: Problem) -> Array:
    return objectives.velocity_matching(p.u, p.path, velocity=p.teacher)


def matching_and_distillation(p: Problem) -> Array:
    push = objectives.velocity_distillation(
        p.u,
        p.path.x0,
        p.path.x1,
        p.path.t,
        p.path.cond,
        velocity=p.teacher,
        interpolant=LINEAR,
    )
    return velocity_matching(p) + push


def twin_flow(jumps: int) -> Callable[[Problem], Array]:
    return lambda p: objectives.twin_flow(
        p.key, p.u, p.path, p.s, interpolant=LINEAR, target=p.frozen, jumps=jumps
    )


COSTS = {
    "flow matching": Cost(
        lambda p: objectives.flow_matching(diagonal(p.u), p.path), (3, 0), 3.0
    ),
    "MeanFlow": Cost(mean_flow(), (4, 1), 4.15),
    "MeanFlow, 75 % s = t": Cost(mean_flow(share_equal=0.75), (3.25, 0.25)),
    "two phases, 75 % s = t": Cost(two_phases(0.75), (3.25, 0.25), 3.52),
    "two phases, 50 % s = t": Cost(two_phases(0.5), (3.5, 0.5), 4.04),
    "two phases, no s = t": Cost(two_phases(0.0), (4, 1), 4.15),
    "guided target, kappa = 0": Cost(guided(2.0, 0.0), (5, 1)),
    "guided target, kappa > 0": Cost(guided(1.0, 0.5), (6, 1), 6.15),
    "iMF, v the diagonal": Cost(improved(0.0), (7, 1)),
    "iMF, v the diagonal, 50 % s = t": Cost(improved(0.5), (5, 0.5)),
    "iMF, v a second head of 1 block": Cost(improved_second_head, (7, 1)),
    "Modular, path's velocity": Cost(mean_flow(stop="velocity"), (6, 3), 6.45),
    "Modular, own velocity": Cost(own(objectives.mean_flow, stop="velocity"), (7, 3)),
    "Decoupled": Cost(decoupled, (7, 1), 7.15),
    "AlphaFlow, alpha = 0.5": Cost(
        lambda p: objectives.alpha_flow(p.u, p.path, p.s, 0.5), (4, 0), 4.0
    ),
    "AlphaFlow, alpha = 0": Cost(
        lambda p: objectives.alpha_flow(p.u, p.path, p.s, 0.0), (4, 1), 5.15
    ),
    "AlphaFlow, alpha traced": Cost(
        lambda p: objectives.alpha_flow(p.u, p.path, p.s, p.s[0]), (4, 1)
    ),
    "BiFM": Cost(
        lambda p: objectives.bidirectional_mean_flow(p.u, p.path, p.s), (5, 1), 5.14
    ),
    "Split, PSD": Cost(
        lambda p: objectives.semigroup(p.u, p.path, p.s, first=p.u, fraction=p.s),
        (5, 0),
        5.0,
    ),
    "shortcut, 7/8 s = t": Cost(
        lambda p: objectives.shortcut(p.u, p.path, p.s, target=p.frozen),
        (3.25, 0),
        3.25,
    ),
    "SnapFlow": Cost(lambda p: objectives.snap_flow(p.u, p.path), (8, 0), 8.0),
    "Consistency-FM": Cost(
        lambda p: objectives.consistency_flow_matching(diagonal(p.u), p.path),
        (4, 0),
        4.0,
    ),
    "LSD": Cost(own(objectives.lagrangian), (7, 3), 7.45),
    "LSD, 75 % s = t": Cost(own(objectives.lagrangian, share_equal=0.75), (4, 0.75)),
    "ESD, stop velocity": Cost(own(objectives.eulerian, stop="velocity"), (7, 3), 7.45),
    "ESD, stop advection": Cost(
        own(objectives.eulerian, stop="advection"), (8, 4), 8.59
    ),
    "ESD, stop derivative": Cost(
        own(objectives.eulerian, stop="derivative"), (5, 1), 5.15
    ),
    "FACM": Cost(lambda p: objectives.anchored_consistency(p.u, p.path), (7, 1), 7.15),
    "sCM": Cost(lambda p: objectives.continuous_consistency(p.u, p.path), (4, 1), 4.15),
    "IMM": Cost(moment_matching, (4, 0), 4.0),
    "TwinFlow, one jump": Cost(twin_flow(1), (5.75, 0)),
    "TwinFlow": Cost(twin_flow(2), (6.75, 0), 5.0),
    "LMD": Cost(taught(objectives.lagrangian, stop="nothing"), (6, 3), 6.45, 2),
    "EMD": Cost(taught(objectives.eulerian, stop="velocity"), (6, 3), 6.45, 1),
    "AYF-EMD": Cost(taught(objectives.align_your_flow), (4, 1), 4.15, 1),
    "AYF-LMD": Cost(
        taught(objectives.align_your_flow, form="lagrangian"), (4, 1), 4.15, 1
    ),
    "TraFlow": Cost(trajectory, (10, 0), None, 1),
    "SlimFlow": Cost(flow_guided, (3, 0), 4.0, 1),
    "SCFlow": Cost(self_corrected, (9, 0), 11.0, 1),
    "MDT, velocity matching": Cost(velocity_matching, (4, 0), None, 1),
    "MDT, both terms": Cost(matching_and_distillation, (9, 0), 9.0, 2),
}


class Counter:
    """Counts FLOPs of gradients on one network, batch and precision.

    Args:
        width: of the DiT.
        depth: its blocks.
        size: tokens per side of the image.
        batch: rows, a multiple of 8.
    """

    def __init__(self, width: int, depth: int, size: int, batch: int) -> None:
        # Who does not call the second head does not pay for it.
        self.network = DiT(
            2, width, depth, width // 64, num_classes=10, velocity_head=1
        )
        event = (2 * size, 2 * size, 4)
        as_shape: Any = jax.ShapeDtypeStruct
        x, t = as_shape((batch, *event), jnp.float32), as_shape((batch,), jnp.float32)
        label = as_shape((batch,), jnp.int32)
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        self.params = jax.eval_shape(self.network.init, self.key, x, t, t, label)
        self.path = Path(x, t, x, x, x, label)
        self.times = t
        self.forward = self._flops(
            lambda params, frozen, path, s, key: self.network.apply(
                params, path.x, path.t, s, path.cond
            )
        )
        tokens = size**2
        # Per token and block 24 w^2 FLOPs of linear layers and 4 n w of attention.
        self.attention = tokens / (tokens + 6 * width)

    def _flops(self, function: Any) -> float:
        lowered = jax.jit(function).lower(
            self.params, self.params, self.path, self.times, self.key
        )
        analysis: Any = lowered.compile().cost_analysis()
        return analysis["flops"]

    def count(self, loss: Callable[[Problem], Any], *, network_teacher: bool) -> float:
        """Return the FLOPs of value and gradient of the mean loss, in F."""
        apply: Any = self.network.apply

        def closed_form(x: Array, t: Array, cond: Any = None) -> Array:
            return -x

        def value(params: Any, frozen: Any, path: Path, s: Array, key: Array) -> Any:
            field, other = partial(apply, params), partial(apply, frozen)
            teacher = diagonal(other) if network_teacher else closed_form

            def second(x: Array, t: Array, cond: Any = None) -> Array:
                heads: Any = apply(params, x, t, t, cond, method="heads")
                return heads[1]

            result = loss(Problem(field, second, other, teacher, path, s, key))
            # A penalty with metrics returns a pair; their means are outputs as well.
            losses, metrics = result if isinstance(result, tuple) else (result, {})
            return losses.mean(), jax.tree.map(jnp.mean, metrics)

        return self._flops(jax.value_and_grad(value, has_aux=True)) / self.forward


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
        only: names of the objectives; none: all.
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
        count = counter.count(cost.loss, network_teacher=False)
        floor = cost.floor[0] + cost.floor[1] * a
        known = "" if cost.known is None else f"{cost.known:.2f}"
        row = f"| {name} | {count:.2f} | {floor:.2f} | {count / floor:.3f} | {known} "
        if cost.teacher is not None:
            both = counter.count(cost.loss, network_teacher=True)
            row += f"| {both:.2f} | {cost.teacher} |"
        else:
            row += "| | |"
        print(row, flush=True)
    if only:
        return
    watched = penalties.diagnosed(penalties.mean_square, clip=1.0)
    plain, more = (
        counter.count(mean_flow(**options), network_teacher=False)
        for options in ({}, {"penalty": watched})
    )
    print(f"\nMetrics of `penalties.diagnosed`: {100 * (more / plain - 1):.3f} % more.")


if __name__ == "__main__":
    tyro.cli(main)
