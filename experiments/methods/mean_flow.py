"""MeanFlow and its relatives: an average velocity, learned along the flow."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn

from experiments.language.sentence import Use, use
from experiments.methods.base import TEACHER, Batch, LossAndMetrics
from experiments.methods.traits import (
    Differentiated,
    Guided,
    Interval,
    MaybeTaught,
    Penalised,
    Taught,
    Timed,
)
from flowjax import objectives
from flowjax.fields import diagonal
from flowjax.interpolants import Path
from flowjax.networks import LogVariance, Network
from flowjax.objectives import features, penalties, schedules
from flowjax.times import either_direction, logit_normal, ordered_pairs, reflow_pairs
from flowjax.typing import Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow(Interval, Penalised, Differentiated, Guided):
    """MeanFlow: u = v + (s - t) du/dt, the derivative along the flow.

    Attributes:
        warmup: share of the run over which the derivative comes on; 0: at once.

    References:
        Geng et al. 2025, Mean Flows for One-step Generative Modeling, arXiv:2505.13447.
    """

    exact: ClassVar[bool] = True
    warmup: float = 0.0

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the MeanFlow identity."""
        return self._loss(b, *self.interval(b))

    def _loss(self, b: Batch, path: Path, s: Time) -> LossAndMetrics:
        return objectives.mean_flow(
            b.u,
            path,
            s,
            target=self.own_phase(b),
            derivative_scale=b.elapsed(self.warmup) if self.warmup else 1.0,
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DispersiveMeanFlow(MeanFlow):
    """MeanFlow whose features are spread out over the batch.

    Attributes:
        dispersion: how the spread of the features of the network's tapped block is
            measured.
        weight: of the spread.

    References:
        Wang and He 2025, Diffuse and Disperse, arXiv:2506.09027.
    """

    exact: ClassVar[bool] = False
    dispersion: Use = use(features.infonce_relative)
    weight: float = 0.5

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of MeanFlow plus the weighted spread."""
        path, s = self.interval(b)
        spread = self.dispersion.build()(b.now.features(path.x, path.t, s, path.cond))
        return penalties.plus(self._loss(b, path, s), spread, weight=self.weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImprovedMeanFlow(Interval, Penalised, Differentiated, Guided):
    """Improved MeanFlow (iMF): the derivative along the network's own velocity.

    References:
        Geng et al. 2025, Improved Mean Flows, arXiv:2512.02012.
    """

    exact: ClassVar[bool] = True
    recipe: ClassVar[Mapping[str, Any]] = {"network": {"velocity_head": 1}}

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the compound prediction and of the velocity."""
        path, s = self.interval(b)
        return objectives.improved_mean_flow(
            b.u,
            b.now.v,
            path,
            s,
            target=self.own_phase(b),
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModularMeanFlow(Interval, Penalised, Guided, MaybeTaught):
    """Modular MeanFlow: gradient through the derivative, more and more of it.

    Attributes:
        warmup: share of the run over which the gradient comes on; 0: at once.
        teacher: whose velocity the derivative follows; None: the network's own, since
            with the conditional velocity the minimiser would be another field.

    References:
        You et al. 2025, Modular MeanFlow, arXiv:2508.17426.
    """

    exact: ClassVar[bool] = True
    warmup: float = 0.1

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of MeanFlow with a share of the gradient."""
        path, s = self.interval(b)
        return objectives.mean_flow(
            b.u,
            path,
            s,
            velocity=b.teacher or diagonal(b.u),
            stop="velocity",
            gradient_share=b.elapsed(self.warmup),
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoupledMeanFlow(Timed, Interval, Differentiated, Guided):
    """Decoupled MeanFlow: a trained velocity becomes an average by its last blocks.

    Flow matching and MeanFlow, each on the whole batch, under logarithms.

    Attributes:
        times: the law of the times of flow matching.
        learned_weight: learn a weight of (t, s) inside the logarithms.

    References:
        Lee et al. 2025, Decoupled MeanFlow, arXiv:2510.24474.
    """

    exact: ClassVar[bool] = True
    recipe: ClassVar[Mapping[str, Any]] = {
        "network": {"decoder_depth": 1, "times": "start"},
        "training": {"start_from": TEACHER},
    }
    pairs: Use = use(
        ordered_pairs,
        sampler=use(logit_normal, mean=-0.4),
        second=use(logit_normal, mean=1.2),
        share_equal=0.0,
    )
    learned_weight: bool = False

    def modules(self, network: Network, channels: int) -> dict[str, nn.Module]:
        """Add the learned weight."""
        found = super().modules(network, channels)
        return found | ({"log_variance": LogVariance()} if self.learned_weight else {})

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the sum of both losses."""
        logarithm = penalties.logarithmic(b.now.apply.get("log_variance"))
        match = b.second().draw_once(self.times.build())
        first = objectives.flow_matching(diagonal(b.u), match, penalty=logarithm)
        path, s = self.interval(b)
        second = objectives.mean_flow(
            b.u,
            path,
            s,
            penalty=penalties.diagnosed(logarithm),
            target=self.own_phase(b),
            share_equal=self.share_equal,
        )
        return penalties.plus(second, first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReMeanFlow(Interval, Penalised, Differentiated, Taught):
    """Re-MeanFlow: MeanFlow on the nearly straight pairs of a teacher.

    References:
        Zhang et al. 2025, Re-MeanFlow, arXiv:2511.23342.
    """

    exact: ClassVar[bool] = True
    from_pairs: ClassVar[bool] = True
    pairs: Use = use(reflow_pairs, share_equal=0.5)
    penalty: Use = use(penalties.adaptive, power=0.5)

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of MeanFlow on the pairs."""
        path, s = self.interval(b)
        return objectives.mean_flow(
            b.u,
            path,
            s,
            target=self.own_phase(b),
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaFlow(Interval, Penalised, Guided):
    """AlphaFlow: from trajectory flow matching to MeanFlow in the course of the run.

    Attributes:
        decay: part of the run along which alpha falls from 1 to 0.
        clip: clip the entries of the target to this; None: do not.

    References:
        Zhang et al. 2025, AlphaFlow, arXiv:2510.20771.
    """

    exact: ClassVar[bool] = True
    pairs: Use = use(
        ordered_pairs,
        sampler=use(logit_normal, mean=0.4),
        share_equal=0.5,
        equal="single",
    )
    decay: tuple[float, float] = (0.0, 0.8)
    clip: float | None = 4.0

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss at the present alpha."""
        start, end = (int(share * b.steps) for share in self.decay)
        alpha = schedules.sigmoid_decay(start, max(end, start + 1))(b.step)
        path, s = self.interval(b)
        return objectives.alpha_flow(
            b.u,
            path,
            s,
            alpha,
            clip=self.clip,
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidirectionalMeanFlow(Interval, Penalised, Guided):
    """BiFM: MeanFlow of intervals of either sign, and their round trip.

    Attributes:
        weight: of the round trip. It costs quality in one step: Fréchet on the digits
            15.2 without it, 20.3 with 0.1, 32.8 with 1.
        warmup: share of the run over which the weight comes on; 0: at once.

    References:
        Dai et al. 2026, BiFM, arXiv:2603.24942.
    """

    exact: ClassVar[bool] = True
    pairs: Use = use(
        either_direction,
        pairs=use(ordered_pairs, sampler=use(logit_normal, mean=0.4), share_equal=0.5),
    )
    weight: float = 0.1
    warmup: float = 0.0

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of MeanFlow and of the round trip."""
        path, s = self.interval(b)
        return objectives.bidirectional_mean_flow(
            b.u,
            path,
            s,
            weight=self.weight * b.elapsed(self.warmup),
            penalty=self.watched(b),
            share_equal=self.share_equal,
        )
