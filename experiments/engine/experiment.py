"""An experiment: what is joined how, every word of it chosen from a table.

An experiment is data. It is stored as JSON in the run folder and with every checkpoint,
and a run folder refuses to continue under another one.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from experiments.data import DATA
from experiments.data.base import LEAST
from experiments.data.images import Digits
from experiments.engine import teachers
from experiments.engine.optimizers import OPTIMIZERS, adamw
from experiments.engine.sampling import DIFFUSIONS, GRIDS, RULES, SAMPLERS, SOLVERS
from experiments.language import grammar
from experiments.language.grammar import Node
from experiments.language.sentence import REQUIRED, Use, options_of, table, use
from experiments.methods import METHODS
from experiments.methods.base import TEACHER
from experiments.methods.mean_flow import MeanFlow
from flowjax import couplings, guidance, interpolants, sources, times, weights
from flowjax.data import DENSITIES
from flowjax.networks import MLP, DiT
from flowjax.objectives import features, penalties
from flowjax.training import ema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How long, and what to leave behind.

    Attributes:
        steps: optimiser steps in all.
        batch_size: rows per optimiser step over all devices.
        seed: determines data order, initialisation, noise and times.
        start_from: a run whose averaged parameters training starts from where names and
            shapes agree; None: a fresh start.
        accumulate: work a batch off in this many parts.
        parallel: compile the step over a mesh of all devices, or with pmap.
        shard_state: with jit, split parameters and optimiser state over the devices.
        log_to: where metrics go besides metrics.jsonl; needs the extra `log`.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints; a multiple of log_every.
        keep_checkpoints: how many of the newest checkpoints stay.
        previews: draw samples at every checkpoint; not with several processes.
    """

    steps: int = 2500
    batch_size: int = 128
    seed: int = 0
    start_from: str | None = None
    accumulate: int = 1
    parallel: Literal["jit", "pmap"] = "jit"
    shard_state: bool = False
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    log_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    previews: bool = False

    may_differ: ClassVar = frozenset(
        {"log_to", "log_every", "checkpoint_every", "keep_checkpoints", "previews"}
    )
    """Options that may change in a continued run: they don't change what is trained."""

    def __post_init__(self) -> None:
        """Refuse at once what would fail or mislead after hours."""
        _check_positive("training", self)
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                "training.checkpoint_every must be a multiple of "
                f"training.log_every={self.log_every}; got {self.checkpoint_every}"
            )
        if self.shard_state and self.parallel == "pmap":
            raise ValueError(
                "training.shard_state needs training.parallel=jit; pmap keeps a copy "
                "of the state on every device"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to measure at the end of training.

    Attributes:
        samples: samples drawn with each sampler.
        steps: numbers of evaluations to compare in few-step sampling.
        tolerance: rtol and atol of the adaptive solver.
        guidance: classifier-free guidance scale; 1 is none.
        batch_size: samples drawn at a time.
        seed: determines the noise, the projections and the classifier.
    """

    samples: int = 1500
    steps: tuple[int, ...] = (1, 2, 4)
    tolerance: float = 1e-4
    guidance: float = 1.0
    batch_size: int = 500
    seed: int = 1

    may_differ: ClassVar[frozenset[str]]

    def __post_init__(self) -> None:
        """Refuse at once what would fail after the training."""
        _check_positive("evaluation", self)
        if self.samples < LEAST:
            raise ValueError(
                f"evaluation.samples must be at least {LEAST}; got {self.samples}"
            )
        if any(steps < 1 for steps in self.steps):
            raise ValueError(f"evaluation.steps must be positive; got {self.steps}")


# Training reads none of it.
Evaluation.may_differ = frozenset(options_of(Evaluation))


def _check_positive(part: str, options: Any) -> None:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name == "seed" and value < 0:
            raise ValueError(f"{part}.seed must not be negative; got {value}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and field.name != "seed" and not 0 < value < math.inf:
            raise ValueError(f"{part}.{field.name} must be positive; got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment, complete.

    Attributes:
        data: what to learn.
        source: where the noise at t=0 comes from.
        coupling: which noise is paired with which example.
        path: how a pair is joined: the interpolant.
        method: what is learned, and from which identity.
        network: what learns it, an average-velocity field u(x, t, s, cond).
        optimizer: how parameters follow gradients.
        ema: how fast the average of the parameters follows them.
        training: how long, and what to leave behind.
        evaluation: what to measure at the end.
    """

    data: Use = use(Digits)
    source: Use = use(sources.normal)
    coupling: Use = use(couplings.independent)
    path: Use = use(interpolants.linear)
    method: Use = use(MeanFlow)
    network: Use
    optimizer: Use = use(adamw)
    ema: Use = use(ema.half_life, steps=100.0, ramp_up=0.1)
    training: Use = use(Training)
    evaluation: Use = use(Evaluation)

    @property
    def sentence(self) -> Use:
        """The experiment as one use, of all its parts."""
        return Use(Experiment, vars(self))

    def vary(self, **parts: Use | Mapping[str, Any]) -> "Experiment":
        """Return the experiment with some parts replaced, or some of their options."""
        new = {
            name: part if isinstance(part, Use) else getattr(self, name).vary(**part)
            for name, part in parts.items()
        }
        return dataclasses.replace(self, **new)


TABLES: grammar.Tables = {
    "data": DATA,
    "density": DENSITIES,
    "source": table(sources.normal),
    "coupling": table(couplings.independent),
    "path": table(
        interpolants.linear,
        interpolants.trigonometric,
        interpolants.polynomial,
        interpolants.minimum_noise,
        interpolants.linear_variance_preserving,
        interpolants.variance_preserving,
    ),
    "method": METHODS,
    "times": (
        LAWS := table(
            times.uniform, times.logit_normal, times.arctan_normal, times.u_shaped
        )
    ),
    "sampler": LAWS,
    "second": LAWS,
    "pairs": table(
        times.ordered_pairs,
        times.interval_pairs,
        times.reflow_pairs,
        times.dyadic_pairs,
        times.any_step_pairs,
        times.either_direction,
    ),
    "penalty": table(
        penalties.mean_square,
        penalties.root_mean_square,
        penalties.pseudo_huber,
        penalties.adaptive,
        penalties.weighted,
        penalties.learned,
        penalties.logarithmic,
        penalties.displaced,
        penalties.clipped,
        penalties.normalised,
        penalties.clipped_cosine,
    ),
    "weight": table(
        weights.prediction_weight,
        weights.likelihood_weight,
        weights.moment_weight,
    ),
    "guidance": table(guidance.guided_velocity),
    "teacher": table(teachers.Run, teachers.Exact),
    "dispersion": table(
        features.infonce_l2,
        features.infonce_cosine,
        features.infonce_relative,
        features.hinge,
        features.covariance,
    ),
    "network": table(MLP, DiT),
    "optimizer": OPTIMIZERS,
    "ema": table(ema.half_life, ema.constant_decay),
    "training": table(Training),
    "evaluation": table(Evaluation),
    "sampling": SAMPLERS,
    "solver": SOLVERS,
    "grid": GRIDS,
    "diffusion": DIFFUSIONS,
    "rule": RULES,
}
"""What may stand at every joint."""


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as JSON has it, with all defaults."""
    return grammar.encode(experiment.sentence)


def from_dict(stored: Any) -> Experiment:
    """Return the experiment that `to_dict` was given.

    Raises:
        ValueError: if it is of the form that this code had before, or says what this
            code does not read.
    """
    if isinstance(stored, Mapping) and "objective" in stored:
        raise ValueError(
            "it is a configuration of an earlier form, with an `objective`; this code "
            "can't read it. Train the run again, or go back to the code that wrote it"
        )
    return Experiment(**grammar.decode(TABLES, Experiment, stored).options)


def smoke(experiment: Experiment) -> Experiment:
    """Return the same experiment, small enough to run through in seconds.

    It exercises every branch that the full one takes; its numbers mean nothing.
    """
    small = {"width": 16, "depth": 2, "num_heads": 2}
    return experiment.vary(
        network={k: v for k, v in small.items() if k in experiment.network},
        optimizer={"warmup_steps": 2},
        training={
            "steps": 8,
            "batch_size": 16,
            "log_every": 2,
            "checkpoint_every": 4,
        },
        evaluation={"samples": 64, "batch_size": 64, "tolerance": 1e-2},
    )


def with_method(experiment: Experiment, thing: Any, *, teacher: str) -> Experiment:
    """Return the experiment with another method, and what that method needs.

    The method has its own defaults. What the experiment says differently from a default
    that both methods share stays said. The method's recipe is followed.

    Args:
        experiment: another experiment on the same data.
        thing: the method's class.
        teacher: folder of the teacher's run, for a method that needs one.
    """
    method = Use(thing)
    if "teacher" in method and method["teacher"] is REQUIRED:
        method = method.vary(teacher=Use(teachers.Run, {"folder": teacher}))
    before = {n.flag: n for n in grammar.nodes(Use(experiment.method.thing))}
    said = {n.flag: n for n in grammar.nodes(experiment.method)}
    for node in grammar.nodes(method):
        old, now = before.get(node.flag), said.get(node.flag)
        if old and now and old.value == node.value and now.value != old.value:
            method = grammar.assign(method, node.place, now.value)
    parts: dict[str, Any] = {"method": method}
    for part, wanted in thing.recipe.items():
        if not isinstance(wanted, Use):
            known = options_of(getattr(experiment, part).thing)
            filled = {k: teacher if v == TEACHER else v for k, v in wanted.items()}
            wanted = {k: v for k, v in filled.items() if k in known}
        parts[part] = wanted
    return experiment.vary(**parts)


def choose(root: Use, node: Node, thing: Any, *, teacher: str) -> Use:
    """Put a thing at a joint of an experiment; a method brings what it needs."""
    if node.place == ("method",):
        # The root may say more than an experiment does, as a command line.
        names = [field.name for field in dataclasses.fields(Experiment)]
        experiment = Experiment(**{name: root[name] for name in names})
        return root.vary(**vars(with_method(experiment, thing, teacher=teacher)))
    return grammar.choose(root, node, thing)
