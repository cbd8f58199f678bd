"""A run that is asked to stop saves the step it names, and goes on bit for bit."""

import importlib
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import chex
import jax
import pytest

import experiments
from experiments import entry
from experiments.engine import loop, metric_log
from experiments.engine.experiment import TABLES
from experiments.engine.stopping import REPEATED, Stop, Stopped
from flowjax.training import Checkpointer
from tests.toy_experiment import Line, experiment_of, sgd

ROOT = Path(__file__).parents[1]
STEPS = 8
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def ask(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture
def sudden(monkeypatch):
    """Two signals in a test come as fast as those of a launcher; no second one is."""
    monkeypatch.setattr("experiments.engine.stopping.REPEATED", 1e9)


# The signals.


def wait_for(capfd, text):
    """Wait for what a thread writes."""
    shown = ""
    deadline = time.monotonic() + 10
    while text not in shown:
        assert time.monotonic() < deadline, shown
        shown += capfd.readouterr().err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_where_nothing_can_be_lost(number, capfd):
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Stopped, match="nothing is lost"), Stop():
        ask(number)
    wait_for(capfd, "stopping as soon as possible; again to quit at once")
    assert [signal.getsignal(n) for n in SIGNALS] == before


def ask_while_held(stop, number, capfd):
    with stop.hold(), stop.hold():
        assert not stop.asked
        ask(number)
        assert stop.asked
        wait_for(capfd, "stopping after this step; again to quit at once")
        stop.so_far = "it is done"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_held_signal_waits_for_its_moment(number, capfd):
    with Stop() as stop, pytest.raises(Stopped, match="it is done"):
        ask_while_held(stop, number, capfd)


def test_nothing_that_goes_on_after_an_error_goes_on_after_a_stop():
    assert not issubclass(Stopped, Exception)


def test_without_its_context_the_signals_are_the_host_programs():
    stop = Stop()
    with pytest.raises(KeyboardInterrupt) as error, stop.hold():
        signal.raise_signal(signal.SIGINT)
    assert not isinstance(error.value, Stopped)
    assert not stop.asked


TWICE = """
import ctypes
from experiments.engine.stopping import Stop
with Stop() as stop, stop.hold():
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)
"""


def test_a_second_signal_ends_the_process_wherever_it_is():
    """In C code that no handler of Python interrupts, as a compiler is."""
    with subprocess.Popen(
        [sys.executable, "-c", TWICE],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "\n"
        assert "again to quit at once" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)  # a launcher passes it on
        time.sleep(1.2 * REPEATED)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT


# How an entry point ends.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, None),
        (ValueError("a sentence"), "error: a sentence"),
        (FileExistsError(17, "File exists", "runs"), "error: .*File exists: 'runs'"),
        (ImportError("a sentence"), "error: a sentence"),
        (FloatingPointError("a sentence"), "error: a sentence"),
        (Stopped("a sentence"), "75"),
        (KeyboardInterrupt(), "130"),
        (SystemExit(2), "2"),
        (KeyError("a bug"), KeyError),
        (TypeError("a bug"), TypeError),
    ],
)
def test_an_entry_point_ends_in_a_sentence(error, code, capsys):
    @entry.entry_point
    def main():
        if error is not None:
            raise error

    if code is None:
        main()
    elif isinstance(code, str):
        with pytest.raises(SystemExit) as exit_:
            main()
        assert re.fullmatch(code, str(exit_.value.code))
    else:
        with pytest.raises(code):
            main()
    assert ("a sentence" in capsys.readouterr().err) == isinstance(error, Stopped)


def test_an_error_does_not_wait_for_the_other_processes(monkeypatch, capsys):
    """They wait for this one: in a barrier, for minutes."""

    def leave(code):
        raise SystemExit(f"at once, {code}")

    @entry.entry_point
    def main():
        raise ValueError("a sentence")

    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit, match="at once, 1"):
        main()
    assert capsys.readouterr().err == "error: a sentence\n"


def test_a_warning_is_a_sentence():
    def said():
        return warnings.formatwarning("a file is broken", RuntimeWarning, "x.py", 3)

    before, during = said(), []
    entry.entry_point(lambda: during.append(said()))()
    assert during == ["warning: a file is broken\n"]
    assert said() == before != during[0]


def test_every_entry_point_ends_so():
    modules = [m.name for m in pkgutil.iter_modules(experiments.__path__)]
    modules = [m for m in modules if (ROOT / "experiments" / f"{m}.py").is_file()]
    points = [
        m
        for m in modules
        if "__main__" in (ROOT / "experiments" / f"{m}.py").read_text()
    ]
    assert {"train", "sample", "evaluate"} <= set(points)
    for name in points:
        main = importlib.import_module(f"experiments.{name}").main
        assert main.__globals__ is vars(entry), name


# The loop.


def experiment():
    options = {"steps": STEPS, "log_every": 2, "checkpoint_every": 4}
    return experiment_of("mean_flow", training=options)


def train(folder):
    """Train; return the state as NumPy has it, or the message of a stop."""
    try:
        with Stop() as stop:
            state = loop.train(experiment(), folder, progress=False, stop=stop)
    except Stopped as stopped:
        return str(stopped)
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def newest(folder):
    steps = [p.name for p in folder.glob("checkpoints/*") if p.name.isdigit()]
    return max(map(int, steps), default=0)


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    """What the experiment of the tests is stored by."""
    monkeypatch.setitem(TABLES["data"], "line", Line)
    monkeypatch.setitem(TABLES["optimizer"], "sgd", sgd)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state of a run that nobody stopped."""
    return train(tmp_path_factory.mktemp("whole"))


MOMENTS = {
    "the state is made": (loop, "_restore", 1),
    "a step is given to the devices": (loop.Progress, "dispatched", 3),
    "the values are fetched": (loop, "_means", 1),
    "the values are written": (metric_log.MetricLog, "write", 1),
    "the state is saved": (Checkpointer, "save", 1),
    "the end is waited for": (Checkpointer, "wait", 2),
}
"""Where in a run a signal comes: a function, and which of its calls."""


IN_SHORT = [("the values are fetched", False), ("the end is waited for", True)]


@pytest.mark.parametrize(
    ("moment", "after"),
    [
        pytest.param(m, a, marks=[] if (m, a) in IN_SHORT else pytest.mark.slow)
        for m in MOMENTS
        for a in (False, True)
    ],
)
def test_the_step_that_is_named_is_saved(
    moment, after, whole, tmp_path, monkeypatch, sudden
):
    """A signal comes in every run until one is through, or two were stopped."""
    holder, name, nth = MOMENTS[moment]
    method, calls = getattr(holder, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        now = len(calls) == nth
        if now and not after:
            ask()
        result = method(*args, **kwargs)
        if now and after:
            ask()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, wrapped)
        for _ in range(2):
            before = newest(tmp_path)
            calls.clear()
            message = train(tmp_path)
            assert len(calls) >= nth
            assert isinstance(message, str), "it was not stopped"
            if "nothing is lost" in message:
                assert newest(tmp_path) == before
            elif "stopped after" in message:
                step = re.match(r"stopped after step (\d+);", message)[1]
                assert newest(tmp_path) == int(step) > before
            else:
                assert "the training is complete" in message
                assert newest(tmp_path) == STEPS
            if newest(tmp_path) == STEPS:
                break
    chex.assert_trees_all_equal(train(tmp_path), whole)
    rows = metric_log.read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["step"] == STEPS
