"""From an experiment to pure functions: modules, parameters, fields."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.data import Example
from experiments.engine.experiment import Experiment
from experiments.engine.sampling import Field, need_velocity
from experiments.methods import Method
from experiments.methods.base import Functions, bind
from flowjax import guidance
from flowjax.guidance import Rule, rules
from flowjax.interpolants import Interpolant
from flowjax.networks import Network, graft, named_conditions
from flowjax.training import TrainState, init_state
from flowjax.typing import Condition, PRNGKey, VelocityField


class Guidance(NamedTuple):
    """How sampling is guided.

    Attributes:
        scale: classifier-free guidance scale, one for all rows or one each; 1 is none.
        rule: how the guided prediction is formed.
        interval: times to guide at.
    """

    scale: Any = 1.0
    rule: Rule = rules.extrapolation
    interval: tuple[float, float] = (0.0, 1.0)


NO_GUIDANCE = Guidance()


@dataclasses.dataclass(frozen=True)
class Model:
    """An experiment and the shape of its data: all that its functions depend on.

    Attributes:
        experiment: the experiment.
        example: what its data look like.
    """

    experiment: Experiment
    example: Example

    @cached_property
    def method(self) -> Method:
        """The method with its options."""
        return self.experiment.method.build()

    @cached_property
    def path(self) -> Interpolant:
        """The interpolant."""
        return self.experiment.path.build()

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The modules in training: ``field``, and what the method needs besides.

        Raises:
            ValueError: if the method can't be joined with the path or the network.
        """
        network: Network = self.experiment.network.build(
            **self.example.conditions.options
        )
        self.method.check(self.path, network)
        return self.method.modules(network, self.example.event[-1])

    @property
    def sees_guidance(self) -> bool:
        """Whether the network is told the scale and interval of guidance."""
        return self.experiment.network["guidance"]

    def optimizer(self) -> Any:
        """Return the optimiser of the run."""
        steps = self.experiment.training["steps"]
        return self.experiment.optimizer.build(steps_in_all=steps)

    def init(self, key: PRNGKey, start: Any = None) -> TrainState:
        """Return the state before the first step; traceable.

        ``start`` holds the parameters of another run, which are taken where names and
        shapes agree.
        """
        key_params, key_training = jax.random.split(key)
        params = self._init_parameters(key_params)
        if start is not None:
            params = {**params, "field": graft(start["field"], params["field"])}
        return init_state(key_training, params, self.optimizer())

    def _init_parameters(self, key: PRNGKey) -> dict[str, Any]:
        time = jnp.zeros((1,))
        x = jnp.zeros((1, *self.example.event))
        cond = self.example.conditions.zeros(1, self.example.event)
        if self.sees_guidance:
            cond = with_guidance(cond, time + 1, jnp.array([[0.0, 1.0]]))
        inputs = {
            "acceleration": (jnp.concatenate([x, x], -1), time, time, cond),
            "log_variance": (time, time),
        }
        keys = jax.random.split(key, len(self.modules))
        return {
            name: module.init(k, *inputs.get(name, (x, time, time, cond)))
            for k, (name, module) in zip(
                keys, sorted(self.modules.items()), strict=True
            )
        }

    def functions(self, params: Mapping[str, Any]) -> Functions:
        """Return what the modules mean, with parameters."""
        return bind(self.method, self.modules, params)

    def field(self, params: Mapping[str, Any], guide: Guidance = NO_GUIDANCE) -> Field:
        """Return the field under guidance, ready to be sampled.

        Raises:
            ValueError: if the run can't be guided in this way.
        """
        transform, cost = self.guided(guide)
        functions = self.functions(params)
        return Field(self.method, functions, transform, cost, self.path)

    def guided(self, guide: Guidance) -> tuple[Any, int]:
        """Return the transformation of fields, and evaluations per call of theirs.

        Raises:
            ValueError: if the run can't be guided in this way.
        """
        plain = isinstance(guide.scale, float | int) and guide.scale == 1.0
        if self.sees_guidance:
            if guide.rule is not rules.extrapolation:
                raise ValueError(
                    "this run's network was told the scale in training; a rule can't "
                    "be chosen beside it"
                )
            return partial(_at_guidance, guide), 1
        if plain:
            return lambda field: field, 1
        self.need_unconditional()
        return partial(
            guidance.classifier_free,
            null=self.example.conditions.null,
            **guide._asdict(),
        ), 2

    def need_unconditional(self) -> None:
        """Raise ValueError unless an unconditional field is trained as well."""
        if not self.example.conditions.kinds:
            raise ValueError("guidance needs a condition, and these data have none")
        if not self.experiment.data["condition_dropout"]:
            raise ValueError(
                "guidance needs an unconditional field, and this run never drops a "
                "condition: its data.condition_dropout is 0"
            )

    def velocity(self, params: Any, scale: Any) -> VelocityField:
        """Return the velocity under guidance of a scale, one for all or per row."""
        return self.field(params, Guidance(scale)).velocity("a student to learn from")

    def need_velocity(self, purpose: str) -> None:
        """Raise ValueError if the method leaves no velocity."""
        need_velocity(self.method, purpose)

    def noise(self, key: PRNGKey, count: int) -> Array:
        """Draw from the source."""
        return self.experiment.source.build()(key, count, self.example.event)


def with_guidance(cond: Condition, scale: Array, interval: Array) -> dict[str, Any]:
    """Return the condition of a network that is told the guidance it is used with."""
    return {**named_conditions(cond), "scale": scale, "interval": interval}


def _at_guidance(guide: Guidance, field: Any) -> Any:
    """Return a field that is told the guidance, at one scale and interval."""

    def guided(x: Array, t: Array, *rest: Any) -> Array:
        *ends, cond = rest if rest else (None,)
        scales = jnp.broadcast_to(jnp.asarray(guide.scale, t.dtype), t.shape)
        interval = jnp.broadcast_to(jnp.array([guide.interval], t.dtype), (len(t), 2))
        return field(x, t, *ends, with_guidance(cond, scales, interval))

    return guided
