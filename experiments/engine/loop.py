"""The training loop: what happens at every, some and the last of the steps."""

import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from experiments.engine import run as run_folder
from experiments.engine.experiment import Experiment, Training
from experiments.engine.model import Guidance, Model
from experiments.engine.road import make_loss, make_prepare, open_batches, try_once
from experiments.engine.some_conditions import SomeConditions
from experiments.engine.teachers import Teacher
from flowjax.data import BatchIterator
from flowjax.training import (
    Checkpointer,
    Executor,
    Step,
    TrainState,
    jit_over_mesh,
    make_step,
    pmap_over_devices,
)
from flowjax.typing import PRNGKey


def make_model(experiment: Experiment) -> Model:
    """Return the model of an experiment, every option of it checked.

    Opens the data, to see what an example looks like.

    Raises:
        ValueError: if an option is out of range or two parts can't be joined.
        FileNotFoundError: if the data are not where they should be.
    """
    for name, part in vars(experiment).items():
        if name not in ("network", "optimizer"):  # they need what the road gives
            part.build()
    if "teacher" in experiment.method and experiment.method["teacher"] is not None:
        experiment.method["teacher"].build().check()
    start = experiment.training["start_from"]
    if start is not None and not (Path(start) / "config.json").is_file():
        raise ValueError(
            f"training.start_from: {start} is no run folder; train it first, or say "
            "--training.start_from"
        )
    model = Model(experiment, experiment.data.build().example())
    model.optimizer()
    _ = model.modules
    model.guided(Guidance(experiment.evaluation["guidance"]))
    # Whatever is wrong with a shape shows here, before anything is compiled.
    jax.eval_shape(model.init, jax.random.key(0))
    return model


def open_teacher(model: Model) -> Teacher | None:
    """Return the teacher of a model, or None.

    Raises:
        ValueError: if it leaves no velocity to learn from, or can't be guided.
    """
    experiment = model.experiment
    chosen = experiment.method["teacher"] if "teacher" in experiment.method else None
    if chosen is None:
        return None
    data = experiment.data.build()
    return chosen.build().open(run_folder.restore, data, model.path)


def make_executor(model: Model, teacher: Teacher | None) -> Executor:
    """Compile the step of a model for the devices at hand."""
    training = model.experiment.training
    folder = training["start_from"]
    start = None if folder is None else run_folder.restore(Path(folder)).params
    # The teacher's parameters are arguments of the step, not constants of its program.
    taught = None if teacher is None else teacher.params
    frozen = {"teacher": taught, "start": start}

    def make(frozen: Any = None, *, axis_name: str | None) -> Step:
        params = None if frozen is None else frozen["teacher"]
        return make_step(
            make_loss(model, teacher, params),
            model.optimizer(),
            ema_decay=model.experiment.ema.build(),
            prepare=make_prepare(model),
            accumulate=training["accumulate"],
            axis_name=axis_name,
        )

    def init(key: PRNGKey, frozen: Any = None) -> TrainState:
        return model.init(key, None if frozen is None else frozen["start"])

    given = None if taught is None and start is None else frozen
    if training["parallel"] == "pmap":
        return pmap_over_devices(init, make, frozen=given)
    return jit_over_mesh(init, make, shard_state=training["shard_state"], frozen=given)


def train(experiment: Experiment, run: Path, *, progress: bool = True) -> TrainState:
    """Train, or continue, the run in the folder ``run`` to its last step.

    Returns:
        The final state, in the layout of checkpoints.

    Raises:
        ValueError: if the folder belongs to another experiment, or an option of this
            one is out of range or does not fit the others.
        FloatingPointError: when the loss is no longer finite.
    """
    training = experiment.training.build()
    model = make_model(experiment)
    teacher = open_teacher(model)
    batches = open_batches(model, experiment.data.build(), teacher)
    try_once(model, batches, teacher)
    run_folder.claim(run, model)
    if jax.process_index() == 0:
        SomeConditions.write(run, experiment.data.build(), model.example)
    executor = make_executor(model, teacher)
    with Checkpointer(
        run / "checkpoints", keep=training.keep_checkpoints
    ) as checkpointer:
        state = executor.init(jax.random.key(training.seed))
        restored = checkpointer.restore(executor.gather(state), batches)
        first = 0
        if restored is not None:
            state, first = executor.scatter(restored[0]), restored[1]
        log = run_folder.MetricLog(
            run / "metrics.jsonl",
            first_step=first,
            log_to=training.log_to if jax.process_index() == 0 else (),
        )
        with _Progress(first, training.steps, shown=progress) as bar, _Stop() as stop:
            loop = _Loop(training, executor, batches, checkpointer, log, bar, stop)
            state = loop.run(state, first)
        checkpointer.wait()
    return executor.gather(state)


class _Loop:
    """The training loop: what happens at every, some and the last of the steps."""

    def __init__(
        self,
        training: Training,
        executor: Executor,
        batches: BatchIterator,
        checkpointer: Checkpointer,
        log: run_folder.MetricLog,
        bar: "_Progress",
        stop: "_Stop",
    ):
        self._training = training
        self._rows = training.batch_size
        self._executor = executor
        self._batches = batches
        self._checkpointer = checkpointer
        self._log = log
        self._bar = bar
        self._stop = stop

    def run(self, state: TrainState, first: int) -> TrainState:
        """Take the steps after ``first``."""
        training, pending = self._training, []
        began, since = time.perf_counter(), first
        for step in range(first + 1, training.steps + 1):
            batch = self._executor.put(next(self._batches))
            state, metrics = self._executor.step(state, batch)
            pending.append(metrics)
            last = step == training.steps or self._stop.asked
            if step % training.log_every == 0 or last:
                # The values of a whole interval are fetched at once: fetching each
                # would make the device wait for the host at every step.
                means = _means(jax.device_get(pending), step)
                now = time.perf_counter()
                means["rows_per_second"] = (step - since) * self._rows / (now - began)
                pending, began, since = [], now, step
                if jax.process_index() == 0:
                    self._log.write(step, means)
                self._bar.update(step, means)
            if step % training.checkpoint_every == 0 or last:
                self._checkpointer.save(
                    step, self._executor.gather(state), self._batches
                )
            if self._stop.asked:
                self._checkpointer.wait()
                raise SystemExit(
                    f"stopped after step {step}; the same command continues the run"
                )
        return state


def _means(rows: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Average the metrics of an interval; a loss that is not finite ends the run."""
    means = {
        name: math.fsum(float(r[name]) for r in rows) / len(rows) for name in rows[0]
    }
    if not math.isfinite(means["loss"]):
        raise FloatingPointError(
            f"the loss is {means['loss']} between steps {step - len(rows) + 1} and "
            f"{step}; the checkpoints before are intact"
        )
    return means


class _Stop:
    """Notes SIGTERM and SIGINT, so that the loop can save before it leaves."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:
                break  # not in the main thread: the host program has the signals
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:  # the second time it is meant at once
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _Progress:
    """A progress bar on a terminal, one status line per interval elsewhere."""

    def __init__(self, first: int, steps: int, *, shown: bool):
        self._steps = steps
        self._shown = shown and jax.process_index() == 0
        self._bar = None
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=first, unit="step", smoothing=0.05)
        elif self._shown and first:
            print(f"continuing after step {first}", flush=True)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        text = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items()
        )
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(f"loss {metrics['loss']:.4g}")
        elif self._shown:
            print(f"step {step}/{self._steps}: {text}", flush=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
