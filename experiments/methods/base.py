"""What a method is, and the batch that its loss is given.

A method is one object. Its fields are its options and the joints that it reads; its
class says what it needs and leaves; its methods say which modules it trains, what their
functions mean, its loss on a batch, and how its field is sampled in few steps.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.language.sentence import Use, use
from flowjax import sampling
from flowjax.fields import diagonal, euler_step
from flowjax.interpolants import Interpolant, Path, sample_path
from flowjax.networks import LogVariance, Network
from flowjax.objectives import penalties, schedules
from flowjax.times import logit_normal, ordered_pairs, to_data
from flowjax.typing import (
    AverageVelocityField,
    Condition,
    Pairs,
    PerExample,
    PRNGKey,
    State,
    Time,
    VelocityField,
)

LossAndMetrics: TypeAlias = tuple[PerExample, dict[str, Array]]
"""What a method's loss returns for every row."""

Watched: TypeAlias = Callable[[penalties.Terms], LossAndMetrics]
"""A penalty with the metrics that ride along."""

Guide: TypeAlias = Callable[[Any], Any]
"""From a field to the guided field of the same signature."""

TEACHER = "TEACHER"
"""In a recipe: the folder of the teacher's run."""

_DRAWS = ("times", "guidance", "fraction", "noise", "second", "coupling")


def draw_key(key: PRNGKey, what: str) -> PRNGKey:
    """Return the key of one named use; every use of a batch's key has a name."""
    return jax.random.fold_in(key, _DRAWS.index(what))


@dataclasses.dataclass(frozen=True)
class Functions:
    """The modules in training with their parameters bound.

    Attributes:
        apply: ``name -> function`` of every module.
        network: the function of the network alone, ``(x, t, s, cond)``.
        u: the average-velocity field that the network stands for.
        v: the velocity field that is trained with it: a second head, or the diagonal.
        features: the activations of the network's tapped block, ``(x, t, s, cond)``.
    """

    apply: Mapping[str, Callable[..., Array]]
    network: Callable[..., Array]
    u: AverageVelocityField
    v: VelocityField
    features: Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch on its road, and what a loss may use.

    Attributes:
        key: for whatever the loss draws.
        pairs: noise, data and conditions.
        null: the condition that means none, or None.
        path: the interpolant.
        now: the functions in training.
        target: the same, with the parameters that targets are computed from.
        still: the same with the current parameters, without gradient.
        aim: gives points of the path the velocity that targets are made of.
        teacher: the teacher's velocity field, or None.
        step: optimiser steps so far.
        steps: optimiser steps in all.
    """

    key: PRNGKey
    pairs: Pairs
    null: Condition
    path: Interpolant
    now: Functions
    target: Functions
    still: Functions
    aim: Callable[[Path], Path]
    teacher: VelocityField | None
    step: Array
    steps: int

    @property
    def u(self) -> AverageVelocityField:
        """The average-velocity field in training."""
        return self.now.u

    @property
    def taught(self) -> VelocityField:
        """The teacher's velocity field, of a method that needs one."""
        assert self.teacher is not None
        return self.teacher

    def draw_key(self, what: str) -> PRNGKey:
        """Return the batch's key for one named use."""
        return draw_key(self.key, what)

    @property
    def labels(self) -> Array | None:
        """The labels of the rows, or None."""
        cond = self.pairs.cond
        return cond.get("label") if isinstance(cond, Mapping) else cond

    def second(self) -> "Batch":
        """Return the same batch with draws of its own, for a second term."""
        return dataclasses.replace(self, key=self.draw_key("second"))

    def draw(self, pairs: Callable[..., tuple[Time, Time]]) -> tuple[Path, Time]:
        """Draw times and join the pairs: the path and the destinations."""
        t, s = pairs(self.draw_key("times"), len(self.pairs.x1))
        return self.at(t), s

    def at(self, t: Time) -> Path:
        """Join the pairs at given times, with the velocity that targets are made of."""
        x0, x1, cond = self.pairs
        path = sample_path(self.path, x0, x1, t, cond)
        return self.aim(path)

    def draw_once(self, law: Callable[..., Time]) -> Path:
        """Draw one time per row and join the pairs."""
        return self.draw(to_data(law))[0]

    def elapsed(self, share: float) -> Array:
        """Return a number that rises from 0 to 1 over a share of the run."""
        value = schedules.warmup(int(share * self.steps))(self.step)
        return value.astype(self.pairs.x1.dtype)


class FewStep(Protocol):
    """How one evaluation per step of a grid makes samples."""

    def __call__(
        self,
        key: PRNGKey,
        functions: Functions,
        guide: Guide,
        x0: State,
        cond: Condition,
        grid: np.ndarray,
        path: Interpolant,
        /,
    ) -> tuple[State, int]:
        """Return the samples and the number of (guided) evaluations."""
        ...


def jumps(
    key: PRNGKey,
    functions: Functions,
    guide: Guide,
    x0: State,
    cond: Condition,
    grid: np.ndarray,
    path: Interpolant,
    /,
) -> tuple[State, int]:
    """Jump along the grid with the flow map."""
    x = sampling.few_step(guide(functions.u), x0, cond=cond, grid=grid)
    return x, len(grid) - 1


def euler_steps(
    key: PRNGKey,
    functions: Functions,
    guide: Guide,
    x0: State,
    cond: Condition,
    grid: np.ndarray,
    path: Interpolant,
    /,
) -> tuple[State, int]:
    """Take Euler steps along the velocity."""
    u = euler_step(diagonal(guide(functions.u)))
    return sampling.few_step(u, x0, cond=cond, grid=grid), len(grid) - 1


def restarts(
    key: PRNGKey,
    functions: Functions,
    guide: Guide,
    x0: State,
    cond: Condition,
    grid: np.ndarray,
    path: Interpolant,
    /,
) -> tuple[State, int]:
    """Jump to the data and back with fresh noise: the field is defined for s = 1."""
    x = sampling.restart(
        key,
        guide(functions.u),
        x0,
        cond=cond,
        grid=grid,
        gamma=1.0,
        interpolant=path,
    )
    return x, len(grid) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One way to learn a field.

    Class attributes: ``velocity``, whether the field has a velocity at every time,
    ``u(x, t, t)``, for a solver to follow; ``exact``, whether its loss is stationary at
    the exact field, at the end of training and with the marginal velocity;
    ``from_pairs``, whether it learns from a teacher's pairs of noise and data in place
    of the data; ``few_step``, how few steps are taken; ``recipe``, what else it needs
    to learn well, ``part -> options`` of the experiment, or a part as a whole.
    """

    velocity: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    from_pairs: ClassVar[bool] = False
    few_step: ClassVar[FewStep] = staticmethod(jumps)
    recipe: ClassVar[Mapping[str, Any]] = {}

    def modules(self, network: Network, channels: int) -> dict[str, nn.Module]:
        """Return the modules in training: ``field``, and what is needed besides."""
        return {"field": network}

    def field(self, apply: Mapping[str, Callable[..., Array]]) -> AverageVelocityField:
        """Return the average velocity that the modules' functions stand for."""
        return apply["field"]

    def target_modules(
        self, modules: Mapping[str, nn.Module]
    ) -> Mapping[str, nn.Module]:
        """Return the modules that targets are computed with."""
        return modules

    def averaged_targets(self) -> bool:
        """Say whether targets come from the average of the parameters."""
        return False

    def check(self, path: Interpolant, network: Network) -> None:
        """Raise ValueError where the method can't be joined with these."""

    def loss(self, b: Batch) -> LossAndMetrics:
        """Return the loss of every row and metrics."""
        raise NotImplementedError


def bind(
    method: Method, modules: Mapping[str, Any], params: Mapping[str, Any]
) -> Functions:
    """Return the functions of the modules with their parameters bound."""
    apply: dict[str, Any] = {
        name: partial(module.apply, params[name]) for name, module in modules.items()
    }
    module = modules["field"]
    u = method.field(apply)
    v = diagonal(u)
    if module.velocity_head:
        v = partial(
            _second_head, partial(module.apply, params["field"], method="heads")
        )
    features = partial(module.apply, params["field"], method="features")
    return Functions(apply, apply["field"], u, v, features)


def _second_head(heads: Any, x: State, t: Time, cond: Condition = None, /) -> State:
    return heads(x, t, t, cond)[1]


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
