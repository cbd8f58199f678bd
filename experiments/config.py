"""The configuration of an experiment: frozen dataclasses, one field per decision.

A configuration is data. It is stored as JSON in the run folder and with every
checkpoint, and a run folder refuses to continue under another one.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Data:
    """What to learn."""

    name: str = "digits"
    """digits, an image set of tensorflow-datasets, or a density of flowjax.data."""
    data_dir: str | None = None
    """Root of the prepared image sets; None: that of tensorflow-datasets."""
    train_split: str = "train"
    """Records to train on."""
    test_split: str = "test"
    """Records held out for the evaluation."""
    batch_size: int = 128
    """Rows per optimiser step over all devices."""
    flip: bool = False
    """Mirror images left to right at random."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What learns it: an average-velocity field u(x, t, s, label)."""

    kind: Literal["dit", "mlp"] = "dit"
    """dit for images, mlp for points."""
    width: int = 192
    """Features of a token or a hidden layer."""
    depth: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Attention heads of the DiT."""
    patch_size: int = 4
    """Side of a patch of the DiT in pixels."""
    max_frequency: float = 4.0
    """Highest angular frequency of the time features."""
    qk_norm: bool = False
    """Normalise queries and keys in the DiT."""
    context_tokens: int = 0
    """Tokens of the DiT per condition, in place of adaLN-zero."""
    dtype: Precision = "float32"
    """Arithmetic of the blocks; parameters are float32."""
    remat: bool = False
    """Recompute the DiT's blocks in the backward pass: memory against time."""
    scan: bool = False
    """Compile the DiT's blocks as one loop: compile time against speed."""
    times: Literal["start_duration", "start", "duration"] = "start_duration"
    """Which times it sees: t and s - t, t alone (a velocity), s - t alone."""
    zero_init_duration: bool = False
    """Start as the velocity field whose parameters it is given, for every s."""
    decoder_depth: int = 0
    """Blocks at the end that see s in place of t; needs times start."""
    velocity_head: int = 0
    """Blocks at the end that exist twice, the second time for the velocity."""
    guidance: bool = False
    """See the scale and interval of guidance, to be chosen when sampling."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss and the laws it is averaged over. Times: 0 is noise, 1 is data.

    The entries are what the members of `experiments.members` have in common; each reads
    those that mean something to it.
    """

    name: str = "mean_flow"
    """A member of experiments.members: what is learned, and from which identity."""
    interpolant: Literal[
        "linear", "trigonometric", "variance_preserving", "linear_variance_preserving"
    ] = "linear"
    """The path between noise and data."""
    time_law: Literal["logit_normal", "uniform", "arctan_normal", "u_shaped"] = (
        "logit_normal"
    )
    """Law of the times; for an interval, of the smaller and the larger of two draws."""
    time_mean: float = 0.4
    """Location of the times; logit-normal: positive is nearer the data, arctan-normal:
    negative is."""
    time_std: float = 1.0
    """Scale of these times."""
    share_equal: float = 0.5
    """Share of the rows with s = t, the anchor: flow matching, without derivative."""
    structure: Literal["nested", "two_phases"] = "nested"
    """The derivative inside the gradient's pass, or first the target, then the pass."""
    target: Literal["own", "average"] = "own"
    """Parameters that targets are computed from: the current or the averaged ones."""
    target_dtype: Precision | None = None
    """Arithmetic of the targets of two_phases; None: the network's own."""
    weight_power: float = 0.0
    """Power of the adaptive weight; 0 is unbiased, 1 usual for images."""
    weight_offset: float = 1e-2
    """Offset of the adaptive weight."""
    learned_weight: bool = False
    """Learn a weight of (t, s), which balances them without a bias."""
    huber: float | None = None
    """Scale of the pseudo-Huber penalty; None: the square."""
    normalise: float | None = None
    """Divide the residual by its norm plus this; None: do not."""
    clip: float | None = None
    """Clip the entries of the residual to this; None: do not."""
    target_clip: float | None = 4.0
    """Clip the entries of a bootstrap's target to this; None: do not."""
    warmup: float = 0.0
    """Part of the run over which the derivative (modular: its gradient) comes on."""
    decay: tuple[float, float] = (0.0, 1.0)
    """Part of the run along which AlphaFlow's alpha falls from 1 to 0."""
    dispersion: float = 0.0
    """mean_flow: weight of the dispersive loss on the features of a block."""
    adversarial_weight: float = 0.0
    """self_corrected_distillation: weight of the adversarial term."""
    components: int = 8
    """Policies: number of components."""
    states: int = 2
    """Policies: states visited per segment."""
    group: int = 4
    """moment_matching: rows per group."""
    second_weight: float = 1.0
    """Weight of the second term of a member that has one."""
    step: float = 0.01
    """Length of the finite step of a member that takes one."""
    segments: int = 2
    """consistency_flow_matching: number of straight segments."""
    label_dropout: float = 0.1
    """Chance of a row to train the unconditional field."""
    omega: float = 1.0
    """Weight of the data's velocity in the guided target."""
    kappa: float = 0.0
    """Weight of the network's own velocity in it; the scale is omega / (1 - kappa)."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times at which the target is guided."""
    teacher: str | None = None
    """Run folder of the teacher, for the members that need one."""
    teacher_guidance: float = 1.0
    """Classifier-free guidance scale of the teacher."""
    teacher_steps: int = 32
    """Steps of the solver that makes the teacher's pairs and trajectories."""
    pairs: int = 10_000
    """Number of the teacher's pairs."""
    longest_pair: float | None = None
    """Leave out pairs whose mean squared distance exceeds this."""
    start_from_teacher: bool = False
    """Start from the teacher's parameters where their names and shapes agree."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam with a warm-up, a schedule, clipping and an average of the parameters."""

    learning_rate: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: stay, or fall to 1 % of the peak along a cosine."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    b2: float = 0.99
    """Adam's decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest 2-norm of the gradient."""
    ema_half_life: float = 100.0
    """Half-life of the parameter average, in steps."""
    ema_ramp_up: float | None = 0.1
    """The half-life is at most this share of the steps so far; None: no bound."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, and what to leave behind."""

    steps: int = 2500
    """Optimiser steps in all."""
    seed: int = 0
    """Determines data order, initialisation, noise and times."""
    accumulate: int = 1
    """Work a batch off in this many parts."""
    parallel: Literal["jit", "pmap"] = "jit"
    """Compile the step over a mesh of all devices, or with pmap."""
    shard_state: bool = False
    """jit: split parameters and optimiser state over the devices as well."""
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go besides metrics.jsonl; needs the extra `log`."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; a multiple of log_every."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to measure at the end of training."""

    samples: int = 1500
    """Samples drawn with each sampler."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Numbers of flow-map jumps (flow_matching: Euler steps) to compare."""
    tolerance: float = 1e-4
    """rtol and atol of the adaptive solver."""
    guidance: float = 1.0
    """Classifier-free guidance scale at sampling time; 1 is none."""
    batch_size: int = 500
    """Samples drawn at a time."""
    seed: int = 1
    """Determines the noise, the projections and the classifier."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment, complete."""

    data: Data = Data()
    network: Network = Network()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        """Refuse at once what would fail or mislead after hours."""
        t, o = self.training, self.optimizer
        positive = {
            "data.batch_size": self.data.batch_size,
            "network.width": self.network.width,
            "network.depth": self.network.depth,
            "training.steps": t.steps,
            "training.log_every": t.log_every,
            "training.checkpoint_every": t.checkpoint_every,
            "training.keep_checkpoints": t.keep_checkpoints,
            "optimizer.learning_rate": o.learning_rate,
            "optimizer.clip_norm": o.clip_norm,
            "evaluation.samples": self.evaluation.samples,
            "evaluation.batch_size": self.evaluation.batch_size,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        if t.checkpoint_every % t.log_every:
            raise ValueError(
                "training.checkpoint_every must be a multiple of "
                f"training.log_every={t.log_every}; got {t.checkpoint_every}"
            )
        if any(steps < 1 for steps in self.evaluation.steps):
            raise ValueError(
                f"evaluation.steps must be positive; got {self.evaluation.steps}"
            )


# What may change when a run is continued: it does not change what was trained so far.
MAY_DIFFER = (
    "evaluation",
    "data.data_dir",
    "training.log_to",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
)


def to_dict(config: Experiment) -> dict[str, Any]:
    """Return the configuration as JSON would give it back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(stored: dict[str, Any]) -> Experiment:
    """Rebuild a configuration from `to_dict`.

    Raises:
        ValueError: if an entry is unknown to this version of the code.
    """
    default = Experiment()
    names = [part.name for part in dataclasses.fields(Experiment)]
    if unknown := sorted(stored.keys() - set(names)):
        raise ValueError(f"unknown parts of a configuration: {', '.join(unknown)}")
    parts = {}
    for name in names:
        part = getattr(default, name)
        values = stored.get(name, {})
        if unknown := sorted(values.keys() - dataclasses.asdict(part).keys()):
            raise ValueError(f"unknown entries of {name}: {', '.join(unknown)}")
        # JSON has no tuples; every list of a configuration is one.
        parts[name] = dataclasses.replace(
            part,
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()},
        )
    return Experiment(**parts)


def load(run: Path) -> Experiment:
    """Read the configuration of a run folder.

    Raises:
        FileNotFoundError: if the folder holds no configuration.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no config.json")
    return from_dict(json.loads(path.read_text()))


def smoke(config: Experiment) -> Experiment:
    """Return the same experiment, small enough to run through in seconds.

    It exercises every branch that the full one takes; its numbers mean nothing.
    """
    replace = dataclasses.replace
    return replace(
        config,
        data=replace(config.data, batch_size=16),
        network=replace(config.network, width=16, depth=2, num_heads=2),
        optimizer=replace(config.optimizer, warmup_steps=2),
        training=replace(config.training, steps=8, log_every=2, checkpoint_every=4),
        evaluation=replace(
            config.evaluation, samples=64, batch_size=64, tolerance=1e-2
        ),
    )


def compute_dtype(precision: Precision) -> Any:
    """Return the JAX dtype of a configured precision."""
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[precision]
