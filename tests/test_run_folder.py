"""A run folder: one trains in it, one damaged piece costs itself, starts are noted."""

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import types

import pytest

from experiments import plots
from experiments.engine import metric_log, record, run
from experiments.engine.experiment import TABLES
from experiments.engine.files import write_atomically
from experiments.engine.metric_log import MetricLog, Opening, read_metrics
from experiments.engine.processes import agreement, join
from experiments.engine.progress import Progress
from tests.toy_experiment import Line, experiment_of, model_of, sgd

ROOT = os.path.dirname(os.path.dirname(__file__))


def opening(folder, first_step=0):
    return Opening(folder, "name-1", {"steps": 8}, first_step)


def lines(*steps):
    return [b'{"step": %d, "loss": %d.5}' % (step, step) for step in steps]


# Metrics.

DAMAGE = {
    "cut off": b'{"step": 2, "lo',
    "empty": b"",
    "blank": b"  ",
    "not UTF-8": b'{"step": 2, "\xff": 1}',
    "zeros": b"\x00" * 20,
    "a list": b"[2, 1.5]",
    "a number": b"2",
    "nothing": b"null",
    "no step": b'{"loss": 1.5}',
    "a step that is none": b'{"step": "2", "loss": 1.5}',
    "a value that is none": b'{"step": 2, "loss": "1.5"}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_costs_itself(tmp_path, name):
    path = tmp_path / "metrics.jsonl"
    first, last = lines(1, 3)
    path.write_bytes(b"\n".join([first, DAMAGE[name], last, b""]))
    with pytest.warns(RuntimeWarning, match=rf"line 2 of {path} is damaged"):
        assert [row["step"] for row in read_metrics(path)] == [1, 3]
    with pytest.warns(RuntimeWarning, match="line 2"):
        log = MetricLog(opening(tmp_path, 3))
    log.write(4, {"loss": 0.5})
    assert [row["step"] for row in read_metrics(path)] == [1, 3, 4]


def test_a_last_line_that_was_cut_off_needs_no_word(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*lines(1, 2), b'{"step": 3']))
    MetricLog(opening(tmp_path, 2)).write(3, {"loss": 0.5})
    assert [row["loss"] for row in read_metrics(path)] == [1.5, 2.5, 0.5]


def test_a_continued_run_drops_the_lines_that_it_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*lines(1, 2, 3), b""]))
    MetricLog(opening(tmp_path, 1)).write(2, {"loss": 0.5})
    assert [row["loss"] for row in read_metrics(path)] == [1.5, 0.5]


def test_a_file_that_is_whole_is_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*lines(1, 2), b""]))
    before = path.stat()
    MetricLog(opening(tmp_path, 2))
    assert path.stat().st_ino == before.st_ino


def test_metrics_go_to_other_writers_too(tmp_path, monkeypatch):
    seen = []
    writers = metric_log.WRITERS
    monkeypatch.setitem(writers, "tensorboard", lambda _: lambda *row: seen.append(row))
    log = MetricLog(opening(tmp_path), log_to=["tensorboard"])
    log.write(3, {"loss": 0.5})
    assert seen == [(3, {"loss": 0.5})]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")]
)
def test_a_writer_that_is_not_installed_is_named(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"`{module}` is not installed.*'{module}>="):
        MetricLog(opening(tmp_path), log_to=[name])


def test_tensorboard_forgets_the_steps_that_come_again(tmp_path, monkeypatch):
    given = []

    class Summary:
        def __init__(self, folder, *, purge_step):
            given.append((folder, purge_step))

    module = types.SimpleNamespace(SummaryWriter=Summary)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    MetricLog(opening(tmp_path, 5), log_to=["tensorboard"])
    assert given == [(str(tmp_path / "tensorboard"), 6)]


def test_wandb_is_told_the_run_and_its_configuration(tmp_path, monkeypatch):
    given = {}
    module = types.SimpleNamespace(init=given.update)
    monkeypatch.setitem(sys.modules, "wandb", module)
    MetricLog(opening(tmp_path), log_to=["wandb"])
    assert (given["id"], given["config"]) == ("name-1", {"steps": 8})


# Files.


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# The record of starts.


def test_every_start_is_noted_under_one_name(tmp_path):
    name = record.note_start(tmp_path)
    assert record.note_start(tmp_path) == name
    stored = json.loads((tmp_path / "record.json").read_text())
    assert stored["id"] == name
    first, second = stored["starts"]
    assert first.keys() == second.keys()
    assert first["command"] == shlex.join(sys.orig_argv)
    assert re.fullmatch(r"[0-9a-f]{40}", first["code"]["commit"] or "0" * 40)
    assert first["libraries"]["jax"] == second["libraries"]["jax"] is not None


def test_folders_of_one_name_are_two_runs(tmp_path):
    names = set()
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        names.add(record.note_start(tmp_path / parent / "run"))
    assert len(names) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"id": 1, "starts": []}', "\x00"])
def test_a_damaged_record_does_not_keep_a_run_from_going_on(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    if text.startswith('{"'):
        record.note_start(tmp_path)
    else:
        with pytest.warns(RuntimeWarning, match=r"record\.json can't be read"):
            record.note_start(tmp_path)
    assert len(json.loads((tmp_path / "record.json").read_text())["starts"]) == 1


# The lock.

HOLDER = """
import pathlib, sys
from experiments.engine import record
with record.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_is_trained_in_by_one(tmp_path, holder, capsys):
    folder = tmp_path / "run"
    message = rf"in use by process {holder.pid} on \S+; wait for it"
    with pytest.raises(ValueError, match=message), record.lock(folder):
        pass
    # What died says no more; that it did not leave in peace is said.
    holder.kill()
    holder.wait()
    with record.lock(folder):
        assert f"process {os.getpid()} " in (folder / "lock").read_text()
    assert f"process {holder.pid} on" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt), record.lock(folder):
        raise KeyboardInterrupt
    with record.lock(folder):
        pass
    assert not capsys.readouterr().out


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(RuntimeWarning, match="can't be locked"), record.lock(tmp_path):
        pass


# What is shown.


def test_all_that_is_logged_is_drawn(tmp_path, monkeypatch):
    titles = []

    def keep(figure, path):
        titles.extend(axis.get_title() for axis in figure.axes)

    monkeypatch.setattr(plots, "_save", keep)
    rows = [{"step": 1, "loss": 1.0, "residual": -1.0}, {"step": 2, "loss": 2.0}]
    plots.loss_curves([*rows, {"step": 3, "grad_norm": 1.0}], tmp_path / "a.png")
    assert titles[:3] == ["loss", "grad norm", "residual"]
    titles.clear()
    plots.loss_curves([], tmp_path / "a.png")
    assert not titles


TERMINAL = """
import sys
from experiments.engine.progress import Progress
from tests.toy_experiment import Line, experiment_of, model_of, sgd
with Progress(4, shown=True) as progress:
    progress.say("compiling")
    for step in range(1, 5):
        progress.dispatched(step)
    progress.logged(4, {"loss": 0.5})
"""


@pytest.mark.parametrize("columns", [0, 80])
def test_a_bar_moves_on_a_terminal_of_any_width(columns):
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL],
        env={**os.environ, "PYTHONPATH": ROOT},
        stderr=inside,
        stdout=inside,
    ) as process:
        assert process.wait(60) == 0
    text = os.read(terminal, 10_000).decode()
    os.close(terminal)
    os.close(inside)
    assert text.startswith("compiling")
    assert "4/4" in text
    assert "loss 0.5" in text


def test_without_a_terminal_there_is_a_line_per_interval(capsys):
    with Progress(4, shown=True) as progress:
        progress.dispatched(1)
        progress.logged(2, {"loss": 0.5, "grad_norm": 2.0})
    assert capsys.readouterr().out == "step 2/4: loss 0.5, grad norm 2\n"


# Several processes.


@pytest.mark.parametrize(
    ("given", "distributed", "message"),
    [
        (("a:1", 2, None), True, "go together"),
        ((None, 2, 0), True, "go together"),
        (("a:1", 2, 0), False, "without --distributed"),
        (("a", 2, 0), True, "must be HOST:PORT; got a"),
        (("a:b", 2, 0), True, "must be HOST:PORT"),
        (("a:1", 2, 2), True, r"\[0, process-count\); got 2 of 2"),
        (("a:1", 2, -1), True, "got -1 of 2"),
        (("a:1", 0, 0), True, "got 0 of 0"),
    ],
)
def test_how_processes_find_each_other_is_said_in_full(given, distributed, message):
    with pytest.raises(ValueError, match=message):
        join(*given, distributed=distributed)


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (ValueError("no address"), ValueError, "no cluster is detected.*--coordinator"),
        (RuntimeError("timed out\nmore"), ConnectionError, "joined: timed out$"),
    ],
)
def test_where_no_cluster_is_detected_it_is_said(monkeypatch, raised, error, message):
    def initialize(*_):
        raise raised

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(error, match=message):
        join(None, None, None, distributed=True)


def test_alone_nobody_is_joined(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", None)
    join(None, None, None, distributed=False)
    assert [agreement()(asked) for asked in (False, True)] == [False, True]


# The configuration.


def changed(*path, to):
    """Return what changes one value of a configuration."""

    def change(stored):
        *places, last = path
        for place in places:
            stored = stored[place]
        stored[last] = to

    return change


CONFIGURATIONS = {
    "empty": b"",
    "cut off": b'{"network": {"use',
    "no object": b"[]",
    "nothing": b"null",
    "not UTF-8": b'{"network": "\xff\xfe"}',
    "zeros": b"\x00" * 100,
    "deep": b"[" * 100_000,
    "a network that is none": changed("network", "use", to="unet"),
    "a path that is none": changed("path", "use", to="../x"),
    "no network": changed("network", to=None),
    "an absurd width": changed("network", "width", to=10**9),
    "a width beyond numbers": changed("network", "width", to=10**30),
    "a width that is a word": changed("network", "width", to="wide"),
    "no width": changed("network", "width", to=0),
    "a negative width": changed("network", "width", to=-4),
    "endless depth": changed("network", "depth", to=10**9),
    "steps that are none": changed("training", "steps", to=[1]),
    "no steps": changed("training", "steps", to=0),
    "a rate that is none": changed("optimizer", "learning_rate", to="fast"),
    "no shape": changed("example", to={}),
    "a shape that is none": changed("example", to=[2]),
    "an empty shape": changed("example", "event", to=[]),
    "an absurd shape": changed("example", "event", to=[10**12]),
    "absurd labels": changed("example", "conditions", "num_classes", to=10**12),
    "more than is read": changed("more", to=1),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_damaged_configuration_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.setitem(TABLES["data"], "line", Line)
    monkeypatch.setitem(TABLES["optimizer"], "sgd", sgd)
    path, damage = tmp_path / "config.json", CONFIGURATIONS[name]
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        run.claim(tmp_path, model_of(experiment_of("mean_flow"))[0])
        run.load(tmp_path)
        stored = json.loads(path.read_text())
        damage(stored)
        path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=rf"^{path} (can't be read: |lacks)"):
        run.load(tmp_path)
