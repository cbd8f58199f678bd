"""What methods have in common: options, and what they do with them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from experiments.language.sentence import Use, use
from experiments.methods.base import (
    Batch,
    Method,
    Watched,
)
from flowjax.interpolants import Path
from flowjax.networks import LogVariance, Network
from flowjax.objectives import penalties
from flowjax.times import logit_normal, ordered_pairs
from flowjax.typing import (
    AverageVelocityField,
    Time,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guided(Method):
    """A method whose targets hold the velocity of the path, which may be guided.

    Attributes:
        guidance: guide the velocity that targets are made of; None: the data's own.
    """

    guidance: Use | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalised(Method):
    """A method whose residuals are reduced by a penalty of one's choice.

    Attributes:
        penalty: from residuals to a loss.
    """

    penalty: Use = use(penalties.mean_square)

    def modules(self, network: Network, channels: int) -> dict[str, nn.Module]:
        """Add the learned weight of the times, where the penalty has one."""
        found = super().modules(network, channels)
        if any(one.thing is penalties.learned for one in self.penalty.walk()):
            found["log_variance"] = LogVariance()
        return found

    def plain_penalty(self, b: Batch) -> penalties.Penalty:
        """Return the penalty."""
        given: dict[str, Any] = {"interpolant": b.path}
        if "log_variance" in b.now.apply:
            given["log_variance"] = b.now.apply["log_variance"]
        return self.penalty.build(**given)

    def watched(self, b: Batch) -> Watched:
        """Return the penalty with the metrics that ride along."""
        clip = self.penalty["bound"] if "bound" in self.penalty else None
        return penalties.diagnosed(self.plain_penalty(b), clip=clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed(Method):
    """A method that looks at the path at one time per row.

    Attributes:
        times: the law of the times.
    """

    times: Use = use(logit_normal, mean=0.4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval(Method):
    """A method that learns from a start to a destination.

    Attributes:
        pairs: the law of both.
    """

    pairs: Use = use(
        ordered_pairs, sampler=use(logit_normal, mean=0.4), share_equal=0.5
    )

    def interval(self, b: Batch) -> tuple[Path, Time]:
        """Draw the path at the starts, and the destinations."""
        return b.draw(self.pairs.build())

    @property
    def share_equal(self) -> float:
        """The share of the rows with s = t that the law of pairs promises."""
        for one in self.pairs.walk():
            if "share_equal" in one:
                return one["share_equal"]
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bootstrapped(Method):
    """A method whose targets hold the network itself.

    Attributes:
        target: parameters that targets are computed from: the current or the averaged.
    """

    target: Literal["own", "average"] = "own"

    def averaged_targets(self) -> bool:
        """Say whether targets come from the average of the parameters."""
        return self.target == "average"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differentiated(Bootstrapped):
    """A method whose targets hold a derivative of the network.

    Attributes:
        structure: the derivative inside the gradient's pass, or first the target, then
            the pass. ``target`` and ``target_dtype`` are those of two phases.
        target_dtype: arithmetic of the targets; None: the network's own.
    """

    structure: Literal["nested", "two_phases"] = "nested"
    target_dtype: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        """Refuse what would not be read."""
        unread = {"target": self.target != "own", "target_dtype": self.target_dtype}
        for name, given in unread.items():
            if given and self.structure == "nested":
                raise ValueError(
                    f"method.{name} needs targets of their own: "
                    "--method.structure two_phases"
                )

    def target_modules(
        self, modules: Mapping[str, nn.Module]
    ) -> Mapping[str, nn.Module]:
        """Return the modules that targets are computed with, in their dtype."""
        if self.target_dtype is None:
            return modules
        field = modules["field"].clone(dtype=jnp.dtype(self.target_dtype))
        return {**modules, "field": field}

    def own_phase(self, b: Batch) -> AverageVelocityField | None:
        """Return the target's field; None where one pass gives both."""
        return None if self.structure == "nested" else b.target.u


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught(Method):
    """A method that needs a teacher.

    Attributes:
        teacher: whom to learn from.
    """

    teacher: Use


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaybeTaught(Method):
    """A method that may learn from a teacher's velocity.

    Attributes:
        teacher: whom to learn from; None: the data.
    """

    teacher: Use | None = None
