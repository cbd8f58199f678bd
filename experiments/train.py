"""Train one experiment, then evaluate it.

    python -m experiments.train                                # digits, about 3 minutes
    python -m experiments.train density_mean_flow --data.name spirals
    python -m experiments.train digits_mean_flow --training.steps 5000 --run runs/long
    python -m experiments.train --help

The same command again continues a run that was interrupted, bit for bit; a finished run
is only evaluated again.
"""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import tyro
from tqdm import tqdm

from experiments import build, config, configs, evaluate, teachers
from experiments import run as run_folder
from experiments.config import Experiment
from flowjax._typing import PRNGKey
from flowjax.training import (
    Checkpointer,
    Executor,
    Step,
    TrainState,
    jit_over_mesh,
    make_step,
    pmap_over_devices,
)


def make_executor(experiment: Experiment, dataset: build.Dataset) -> Executor:
    """Compile the step of an experiment for the devices at hand."""
    modules = build.make_modules(experiment, dataset)
    training, options = experiment.training, experiment.objective
    teacher = teachers.load(experiment)

    def make(frozen: Any = None, *, axis_name: str | None) -> Step:
        velocity = None
        if teacher is not None:
            velocity = teachers.velocity(teacher._replace(params=frozen), options)
        return make_step(
            build.make_loss(experiment, modules, dataset, velocity),
            build.make_optimizer(experiment.optimizer, training.steps),
            ema_decay=build.make_ema(experiment.optimizer),
            accumulate=training.accumulate,
            axis_name=axis_name,
        )

    def init(key: PRNGKey, frozen: Any = None) -> TrainState:
        start = frozen if options.start_from_teacher else None
        return run_folder.make_init(experiment, modules, dataset, start)(key)

    # The teacher's parameters are arguments of the step, not constants of its program.
    frozen = None if teacher is None else teacher.params
    if training.parallel == "pmap":
        return pmap_over_devices(init, make, frozen=frozen)
    return jit_over_mesh(init, make, shard_state=training.shard_state, frozen=frozen)


def train(experiment: Experiment, run: Path, *, progress: bool = True) -> TrainState:
    """Train, or continue, the run in the folder ``run`` to its last step.

    Returns:
        The final state, in the layout of checkpoints.

    Raises:
        ValueError: if the folder belongs to another configuration.
        FloatingPointError: when the loss is no longer finite.
    """
    training = experiment.training
    build.check_member(experiment, need_teacher=True)
    dataset = teachers.open_data(experiment)
    run_folder.claim(run, experiment)
    executor = make_executor(experiment, dataset)
    with Checkpointer(
        run / "checkpoints", keep=training.keep_checkpoints
    ) as checkpointer:
        state = executor.init(jax.random.key(training.seed))
        restored = checkpointer.restore(executor.gather(state), dataset.batches)
        first = 0
        if restored is not None:
            state, first = executor.scatter(restored[0]), restored[1]
        log = run_folder.MetricLog(
            run / "metrics.jsonl",
            first_step=first,
            log_to=training.log_to if jax.process_index() == 0 else (),
        )
        with _Progress(first, training.steps, shown=progress) as bar, _Stop() as stop:
            loop = _Loop(experiment, executor, dataset, checkpointer, log, bar, stop)
            state = loop.run(state, first)
        checkpointer.wait()
    return executor.gather(state)


class _Loop:
    """The training loop: what happens at every, some and the last of the steps."""

    def __init__(
        self,
        experiment: Experiment,
        executor: Executor,
        dataset: build.Dataset,
        checkpointer: Checkpointer,
        log: run_folder.MetricLog,
        bar: "_Progress",
        stop: "_Stop",
    ):
        self._training = experiment.training
        self._rows = experiment.data.batch_size
        self._executor = executor
        self._batches = dataset.batches
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


@dataclasses.dataclass(frozen=True)
class Command(Experiment):
    """The command line: the entries of a configuration, and these."""

    run: Path | None = None
    """Run folder, new or to be continued; by default runs/NAME."""
    smoke: bool = False
    """Run a tiny version, to see in seconds that everything works."""
    distributed: bool = False
    """Join the other processes of a cluster: one process per host, same command."""


def main(arguments: Sequence[str]) -> None:
    """Parse ``[NAME] [--part.entry VALUE ...]``, train and evaluate."""
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else configs.DEFAULT
    try:
        entries = _entries(configs.get(name))
        command = tyro.cli(
            Command,
            prog=f"python -m experiments.train {name}",
            description=_description(name),
            args=list(arguments[1:] if named else arguments),
            default=Command(**entries),
        )
        experiment = Experiment(**_entries(command))
        if command.smoke:
            experiment, name = config.smoke(experiment), f"{name}_smoke"
        run = command.run or Path("runs") / name
        if command.distributed:
            jax.distributed.initialize()
        train(experiment, run)
        if jax.process_count() == 1:
            evaluate.evaluate(run)
        elif jax.process_index() == 0:
            print(f"trained; now on one host: python -m experiments.evaluate {run}")
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


def _entries(experiment: Experiment) -> dict[str, Any]:
    parts = dataclasses.fields(Experiment)
    return {part.name: getattr(experiment, part.name) for part in parts}


def _description(name: str) -> str:
    others = "; ".join(f"{n}: {configs.summary(n)}" for n in configs.names())
    return f"{configs.summary(name)} Experiments: {others}"


if __name__ == "__main__":
    main(sys.argv[1:])
