"""Consistency models: the jump to the data, from every time."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.language.sentence import Use, use
from experiments.methods.base import Batch, FewStep, LossAndMetrics, Method
from experiments.methods.few_steps import restarts
from experiments.methods.traits import (
    Differentiated,
    Guided,
    MaybeTaught,
    Penalised,
    Timed,
)
from flowjax import fields, interpolants, objectives
from flowjax.interpolants import Path
from flowjax.objectives import penalties
from flowjax.times import arctan_normal
from flowjax.typing import AverageVelocityField, Condition, State, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ToData(Timed, Penalised, Guided, MaybeTaught, Method):
    """A jump to the data, along the velocity of the path or of a teacher."""

    few_step: ClassVar[FewStep] = staticmethod(restarts)

    def points(self, b: Batch) -> Path:
        """Draw the path, with the teacher's velocity where there is one."""
        path = b.draw_once(self.times.build())
        if b.teacher is None:
            return path
        return path._replace(v=b.teacher(path.x, path.t, path.cond))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchoredConsistency(Differentiated, _ToData):
    """Flow-anchored consistency (FACM): the jump to the data, anchored by a velocity.

    Attributes:
        penalty: from residuals to a loss; with a teacher the paper's is clipped_cosine.
        teacher: whose velocity is the anchor and the tangent; None: the path's.

    References:
        Peng et al. 2025, Flow-Anchored Consistency Models, arXiv:2507.03738.
    """

    exact: ClassVar[bool] = True
    times: Use = use(arctan_normal, mean=-0.8, std=1.6)

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the jump and of the anchor."""
        return objectives.anchored_consistency(
            b.u, self.points(b), penalty=self.watched(b), target=self.own_phase(b)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousConsistency(_ToData):
    """Continuous-time consistency (sCM) in TrigFlow's coordinates.

    The network sees one time and gives dx/dt like all others, so that it can start from
    a teacher's. Its few-step field has no velocity at the data.

    Attributes:
        warmup: share of the run over which the derivative comes on.
        teacher: whose velocity is the tangent (sCD); None: the path's.

    References:
        Lu and Song 2024, arXiv:2410.11081.
    """

    velocity: ClassVar[bool] = False
    recipe: ClassVar[Mapping[str, Any]] = {
        "path": use(interpolants.trigonometric),
        "network": {"times": "start"},
        # At the 2e-3 of the others it loses its network: one-step Fréchet distance 1030
        # on the digits after 800 steps. From 2,500 steps on 1e-4 is better (7.9 against
        # 10.7), after 500 it is not (68 against 18).
        "optimizer": {"learning_rate": 2e-4},
    }
    times: Use = use(arctan_normal, mean=-0.3, std=1.4)
    penalty: Use = use(penalties.normalised, offset=0.1, penalty=use(penalties.learned))
    warmup: float = 0.1

    def field(self, apply: Mapping[str, Any]) -> AverageVelocityField:
        """Return the field of the consistency function."""
        return fields.trigonometric_field(partial(_in_angles, apply["field"]))

    def check(self, path: interpolants.Interpolant, network: Any) -> None:
        """Refuse other paths: the identity is written in angles."""
        with jax.ensure_compile_time_eval():  # perhaps the run is being traced
            x, y = (float(f(jnp.asarray(0.25))) for f in (path.alpha, path.sigma))
        if not math.isclose(math.atan2(x, y), math.pi / 8, abs_tol=1e-3):
            raise ValueError(
                "continuous_consistency needs the trigonometric path: "
                "--path trigonometric"
            )

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of the tangent."""
        return objectives.continuous_consistency(
            partial(_in_angles, b.now.network),
            self.points(b),
            warmup=b.elapsed(self.warmup),
            penalty=self.watched(b),
        )


def _in_angles(
    network: Any, x: State, t: Time, s: Time, cond: Condition = None, /
) -> Array:
    """Return sCM's F where the network gives dx/dt."""
    return -(2 / math.pi) * network(x, t, s, cond)
