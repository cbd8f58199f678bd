"""What a method is, and the batch that its loss is given.

A method is one object. Its fields are its options and the joints that it reads; its
class says what it needs and leaves; its methods say which modules it trains, what their
functions mean, its loss on a batch, and how its field is sampled in few steps.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, TypeAlias

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array

from flowjax import sampling
from flowjax.fields import diagonal
from flowjax.interpolants import Interpolant, Path, sample_path
from flowjax.networks import Network
from flowjax.objectives import penalties, schedules
from flowjax.times import to_data
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
