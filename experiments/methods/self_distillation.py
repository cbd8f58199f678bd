"""Methods that distil the network's own jumps: self-distillation and consistency."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from experiments.language.sentence import Use, use
from experiments.methods.base import Batch, FewStep, LossAndMetrics, Method
from experiments.methods.few_steps import restarts
from experiments.methods.traits import (
    Bootstrapped,
    Guided,
    Interval,
    MaybeTaught,
    Penalised,
    Timed,
)
from flowjax import objectives, weights
from flowjax.objectives import penalties
from flowjax.times import (
    any_step_pairs,
    dyadic_pairs,
    grouped_times,
    ordered_pairs,
    uniform,
)

_UNIFORM = use(ordered_pairs, sampler=use(uniform), share_equal=0.5)
_MOSTLY_EQUAL = _UNIFORM.vary(share_equal=0.75)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Semigroup(Interval, Penalised, Bootstrapped, Guided):
    """Two jumps against one."""

    def fractions(self, b: Batch) -> Any:
        """Return where the interval is split."""
        return 0.5

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the semigroup identity."""
        path, s = self.interval(b)
        return objectives.semigroup(
            b.u,
            path,
            s,
            fraction=self.fractions(b),
            first=b.target.u,
            second=b.target.u,
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitMeanFlow(_Semigroup):
    """SplitMeanFlow: two jumps against one, split anywhere.

    References:
        Guo et al. 2025, SplitMeanFlow, arXiv:2507.16884.
    """

    exact: ClassVar[bool] = True
    pairs: Use = _UNIFORM

    def fractions(self, b: Batch) -> Any:
        """Return where the interval is split."""
        return jax.random.uniform(b.draw_key("fraction"), (len(b.pairs.x1),))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive(_Semigroup):
    """Progressive self-distillation (PSD): two jumps against one, split at the middle.

    References:
        Boffi et al. 2025, arXiv:2505.18825.
    """

    exact: ClassVar[bool] = True
    pairs: Use = _MOSTLY_EQUAL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortcut(Interval, Penalised, Bootstrapped, Guided):
    """Shortcut models: two jumps of half the dyadic step against one.

    Attributes:
        target: parameters that targets are computed from: the current or the averaged.
            The paper's are averaged. Seven halvings, each waiting for the average, are
            late in short runs: one-step Fréchet on the digits 34.7 against 10.1 after
            500 steps, 8.3 against 5.4 after 2500.
        clip: clip the entries of the target to this; None: do not.

    References:
        Frans et al. 2024, Shortcut Models, arXiv:2410.12557.
    """

    pairs: Use = use(dyadic_pairs, share_equal=0.75)
    clip: float | None = 4.0

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the two half jumps."""
        path, s = self.interval(b)
        return objectives.shortcut(
            b.u,
            path,
            s,
            target=b.target.u,
            clip=self.clip,
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Met(Interval, Penalised):
    """A derivative of the field meets a velocity, a teacher's or its own."""

    def meet(
        self, b: Batch, objective: Callable[..., LossAndMetrics]
    ) -> LossAndMetrics:
        """Return the loss of an identity between the two."""
        path, s = self.interval(b)
        return objective(
            b.u,
            path,
            s,
            velocity=b.teacher,
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lagrangian(Met, Guided, MaybeTaught):
    """Lagrangian self-distillation (LSD): the derivative in the destination.

    Attributes:
        teacher: whose velocity is met at the destination; None: the network's own.

    References:
        Boffi et al. 2025, arXiv:2505.18825.
    """

    exact: ClassVar[bool] = True
    pairs: Use = _MOSTLY_EQUAL

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the Lagrangian identity."""
        return self.meet(b, objectives.lagrangian)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eulerian(Met, Guided, MaybeTaught):
    """Eulerian self-distillation (ESD): the derivative in the start.

    Attributes:
        teacher: whose velocity is met at the start; None: the network's own.

    References:
        Boffi et al. 2025, arXiv:2505.18825.
    """

    exact: ClassVar[bool] = True
    pairs: Use = _MOSTLY_EQUAL

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the Eulerian identity."""
        return self.meet(b, objectives.eulerian)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapFlow(Timed, Penalised, Guided):
    """SnapFlow: flow matching, and one step against the diagonal's two Euler steps.

    Attributes:
        weight: of the one step.

    References:
        Luan et al. 2026, SnapFlow, arXiv:2604.05656.
    """

    few_step: ClassVar[FewStep] = staticmethod(restarts)
    recipe: ClassVar[Mapping[str, Any]] = {"network": {"zero_init_duration": True}}
    times: Use = use(uniform)
    weight: float = 0.5

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the sum of both losses."""
        path = b.draw_once(self.times.build())
        return objectives.snap_flow(
            b.u, path, weight=self.weight, penalty=self.watched(b)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyStep(Interval, Penalised, Guided):
    """Any-step learning: MeanFlow's derivative as a finite difference, TwinFlow's part.

    Attributes:
        step: length of the finite step that stands for a derivative.

    References:
        Cheng et al. 2025, TwinFlow, arXiv:2512.05150.
    """

    pairs: Use = use(any_step_pairs)
    penalty: Use = use(
        penalties.clipped, bound=1.0, penalty=use(penalties.root_mean_square)
    )
    step: float = 0.01

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of any step."""
        path, s = self.interval(b)
        penalty = self.plain_penalty(b)
        return objectives.any_step(b.u, path, s, step=self.step, penalty=penalty), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwinFlow(Interval, Bootstrapped, Guided):
    """TwinFlow: the network's own samples as a second flow.

    Attributes:
        step: length of the finite step that stands for a derivative.
        weight: of the second flow.

    References:
        Cheng et al. 2025, TwinFlow, arXiv:2512.05150.
    """

    pairs: Use = use(any_step_pairs)
    target: Any = "average"
    step: float = 0.01
    weight: float = 0.5

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of both flows."""
        path, s = self.interval(b)
        loss = objectives.twin_flow(
            b.draw_key("noise"),
            b.u,
            path,
            s,
            interpolant=b.path,
            target=b.target.u,
            step=self.step,
            weight=self.weight,
        )
        return loss, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentMatching(Bootstrapped, Method):
    """Inductive moment matching: groups that jump to one time from two.

    Attributes:
        group: rows per group.
        gap: between the ratios of noise to signal that a group jumps from; the paper
            has 160 / 2^12, nearer the continuous limit and slower to learn.

    References:
        Zhou et al. 2025, Inductive Moment Matching, arXiv:2503.07565.
    """

    group: int = 4
    gap: float = 10.0

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the groups' moments."""
        if b.labels is not None:
            # A group should share its label: neighbours in the order of labels do.
            order = jnp.argsort(b.labels)
            pairs = jax.tree.map(lambda leaf: leaf[order], b.pairs)
            b = dataclasses.replace(b, pairs=pairs)
        t, q, s = grouped_times(
            b.draw_key("times"), len(b.pairs.x1), group=self.group, gap=self.gap
        )
        loss = objectives.inductive_moment_matching(
            b.u,
            b.at(t),
            b.at(q),
            s,
            group=self.group,
            target=b.target.u,
            weight=weights.moment_weight(b.path),
        )
        return loss, {}
