"""The training loop: what happens at every, some and the last of the steps."""

import contextlib
import math
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.data.example_record import decode_example, encode_example
from experiments.engine import record
from experiments.engine import run as run_folder
from experiments.engine.experiment import Experiment, Training, to_dict
from experiments.engine.extension import takes_the_same_steps
from experiments.engine.metric_log import MetricLog, Opening
from experiments.engine.model import Guidance, Model
from experiments.engine.preview import draw_preview
from experiments.engine.processes import agreement
from experiments.engine.progress import Progress, describe
from experiments.engine.road import make_loss, make_prepare, open_batches, try_once
from experiments.engine.some_conditions import SomeConditions
from experiments.engine.stopping import NOTHING_LOST, Stop, Stopped
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
    data = experiment.data.build()
    data.check()
    # As a run folder will give it back: what could not be read must not be trained.
    model = Model(experiment, decode_example(encode_example(data.example())))
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


def train(
    experiment: Experiment,
    run: Path,
    *,
    progress: bool = True,
    stop: Stop | None = None,
) -> TrainState:
    """Train, or continue, the run in the folder ``run`` to its last step.

    Args:
        experiment: what to train.
        run: the run folder; of several processes the same one.
        progress: whether to say what is being done.
        stop: where it is noticed that the process is asked to stop; None: signals do
            what they do otherwise.

    Returns:
        The final state, in the layout of checkpoints.

    Raises:
        ValueError: if the folder belongs to another experiment, another process trains
            in it, or an option of this experiment is out of range or does not fit the
            others.
        FloatingPointError: when the loss or the state is no longer finite.
        Stopped: after a stop that was asked for; the step it names is saved.
    """
    stop = Stop() if stop is None else stop
    stop.so_far = NOTHING_LOST
    with contextlib.ExitStack() as stack:
        if jax.process_count() > 1:
            # One that left on its own would leave the others waiting for it.
            stack.enter_context(stop.hold())
        shown = stack.enter_context(
            Progress(experiment.training["steps"], shown=progress)
        )
        shown.say("opening the data")
        model = make_model(experiment)
        teacher = open_teacher(model)
        batches = open_batches(model, experiment.data.build(), teacher)
        try_once(model, batches, teacher)
        stack.enter_context(record.lock(run))
        same = partial(takes_the_same_steps, model, batches=batches, teacher=teacher)
        run_folder.claim(run, model, same)
        if jax.process_index() == 0:
            SomeConditions.write(run, experiment.data.build(), model.example)
        shown.say(describe(model))
        executor = make_executor(model, teacher)
        checkpointer = stack.enter_context(
            Checkpointer(
                run / "checkpoints", keep=experiment.training["keep_checkpoints"]
            )
        )
        state, first = _restore(executor, checkpointer, batches, model)
        shown.say(_plan(first, experiment.training["steps"]))
        log = _open_log(run, model, first)
        work = Work(run, executor, batches, checkpointer, log)
        stack.enter_context(stop.hold())
        state = _Loop(model, work, shown, stop).run(state, first)
        stop.so_far = "the training is complete: the same command only evaluates"
        checkpointer.wait()
        return executor.gather(state)


def _restore(
    executor: Executor,
    checkpointer: Checkpointer,
    batches: BatchIterator,
    model: Model,
) -> tuple[TrainState, int]:
    """Return the state to go on from, and the steps that it has taken."""
    state = executor.init(jax.random.key(model.experiment.training["seed"]))
    restored = checkpointer.restore(executor.gather(state), batches)
    if restored is None:
        return state, 0
    return executor.scatter(restored[0]), restored[1]


def _plan(first: int, steps: int) -> str:
    if first == steps:
        return f"all {steps} steps are taken"
    before = f"continuing after step {first}; " if first else ""
    return f"{before}compiling the step"


def _open_log(run: Path, model: Model, first: int) -> MetricLog | None:
    """Note the start and open the log, in the one process that writes."""
    if jax.process_index() != 0:
        return None
    name = record.note_start(run)
    opening = Opening(run, name, to_dict(model.experiment), first)
    return MetricLog(opening, log_to=model.experiment.training["log_to"])


class Work(NamedTuple):
    """What a training works with.

    Attributes:
        run: the run folder.
        executor: the compiled step.
        batches: the data.
        checkpointer: where states go.
        log: where metrics go; None in a process that writes none.
    """

    run: Path
    executor: Executor
    batches: BatchIterator
    checkpointer: Checkpointer
    log: MetricLog | None


class _Loop:
    """The training loop: what happens at every, some and the last of the steps."""

    def __init__(self, model: Model, work: Work, shown: Progress, stop: Stop):
        self._model = model
        self._training: Training = model.experiment.training.build()
        self._work = work
        self._shown = shown
        self._stop = stop
        self._saved = 0

    def run(self, state: TrainState, first: int) -> TrainState:
        """Take the steps after ``first``.

        Raises:
            FloatingPointError: when the loss or the state is no longer finite.
            Stopped: after a stop that was asked for; the step it names is saved.
        """
        self._saved = first
        try:
            return self._run(state, first)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self._way_on()}") from error

    def _run(self, state: TrainState, first: int) -> TrainState:
        training, executor, pending = self._training, self._work.executor, []
        agreed = agreement()
        began, since = time.perf_counter(), first
        for step in range(first + 1, training.steps + 1):
            batch = executor.put(next(self._work.batches))
            state, metrics = executor.step(state, batch)
            self._shown.dispatched(step)
            pending.append(metrics)
            # A signal may come at any time: it is looked at here and nowhere else, so
            # that the step that is saved is the step that is left at.
            stopping = agreed(self._stop.asked)
            last = stopping or step == training.steps
            if step % training.log_every == 0 or last:
                # The values of a whole interval are fetched at once: fetching each
                # would make the device wait for the host at every step.
                means = _means(jax.device_get(pending), step)
                now = time.perf_counter()
                rows = (step - since) * training.batch_size
                means["rows_per_second"] = rows / (now - began)
                pending, began, since = [], now, step
                self._log(step, means)
            if step % training.checkpoint_every == 0 or last:
                self._save(step, state)
            if stopping:
                self._leave(step)
        return state

    def _log(self, step: int, means: dict[str, float]) -> None:
        if self._work.log is not None:
            self._work.log.write(step, means)
        self._shown.logged(step, means)

    def _save(self, step: int, state: TrainState) -> None:
        gathered = self._work.executor.gather(state)
        self._work.checkpointer.save(step, gathered, self._work.batches)
        self._saved = step
        if self._training.previews and jax.process_count() == 1:
            draw_preview(self._model, gathered, self._work.run)

    def _leave(self, step: int) -> None:
        self._work.checkpointer.wait()
        rest = "continues the run"
        if step == self._training.steps:
            rest = "only evaluates: the training is complete"
        raise Stopped(f"stopped after step {step}; the same command {rest}")

    def _way_on(self) -> str:
        """Return what can be done about a run that diverged."""
        if not self._saved:
            return "nothing was saved: a smaller optimizer.learning_rate may help"
        return (
            f"the checkpoint of step {self._saved} is intact. The same command would "
            "take the same steps again; --training.start-from this run, with another "
            "--run and a smaller --optimizer.learning-rate, goes on from there"
        )


def _means(rows: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Average the metrics of an interval; a loss that is not finite ends the run."""
    means = {
        name: math.fsum(float(r[name]) for r in rows) / len(rows) for name in rows[0]
    }
    if not math.isfinite(means["loss"]):
        raise FloatingPointError(
            f"the loss is {means['loss']} between steps {step - len(rows) + 1} and "
            f"{step}"
        )
    return means
