"""Methods that learn a velocity, and take Euler steps along it."""

import dataclasses
from typing import ClassVar

from experiments.language.sentence import Use, use
from experiments.methods.base import Batch, FewStep, LossAndMetrics
from experiments.methods.few_steps import euler_steps
from experiments.methods.traits import Guided, Penalised, Taught, Timed
from flowjax import objectives, sources
from flowjax.fields import diagonal
from flowjax.objectives import schedules
from flowjax.times import uniform


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Matching(Penalised, Timed):
    """The diagonal alone, against the velocity of the path."""

    few_step: ClassVar[FewStep] = staticmethod(euler_steps)

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of flow matching."""
        path = b.draw_once(self.times.build())
        v = diagonal(b.u)
        return objectives.flow_matching(v, path, penalty=self.watched(b))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching(_Matching, Guided):
    """Flow matching: the velocity of the path, regressed.

    References:
        Lipman et al. 2022, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003.
    """

    exact: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reflow(_Matching, Taught):
    """Reflow: flow matching of a teacher's pairs, which straightens its paths.

    References:
        Liu et al. 2022, Flow Straight and Fast, arXiv:2209.03003.
    """

    exact: ClassVar[bool] = True
    from_pairs: ClassVar[bool] = True
    times: Use = use(uniform)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnealingReflow(Reflow):
    """SlimFlow's annealing reflow: pairs whose noise is less and less mixed with fresh.

    References:
        Zhu et al. 2024, SlimFlow, arXiv:2407.12718.
    """

    exact: ClassVar[bool] = False

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of flow matching from the annealed source."""
        beta = 1 - schedules.warmup(b.steps)(b.step)
        x0 = sources.anneal_source(b.draw_key("noise"), b.pairs.x0, beta)
        return super().loss(dataclasses.replace(b, pairs=b.pairs._replace(x0=x0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyFlowMatching(Penalised, Timed, Guided):
    """Consistency-FM: a velocity that leads to one end within each of the segments.

    Attributes:
        segments: number of straight segments.
        weight: of the consistency of the velocity itself.

    References:
        Yang et al. 2024, Consistency Flow Matching, arXiv:2407.02398.
    """

    few_step: ClassVar[FewStep] = staticmethod(euler_steps)
    times: Use = use(uniform)
    segments: int = 2
    weight: float = 1e-5

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of consistency within the segments."""
        return objectives.consistency_flow_matching(
            diagonal(b.u),
            b.draw_once(self.times.build()),
            segments=self.segments,
            weight=self.weight,
            penalty=self.watched(b),
        )
