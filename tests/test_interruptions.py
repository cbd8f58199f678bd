"""Runs that are asked to stop at random moments, as a user's processes are.

Whatever the moment, the newest checkpoint is of the step that was printed, the exit
code says that the same command goes on, and the end is that of a run left in peace.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.engine import run
from experiments.entry import STOPPED

ROOT = Path(__file__).parents[1]


def flags_of(folder, steps):
    """Long enough in all of its phases for a signal to hit them."""
    flags = ["density_mean_flow", "--smoke", "--run", folder]
    flags += ["--training.steps", steps, "--training.log-every", 20]
    return [*flags, "--training.checkpoint-every", 100, "--evaluation.steps", 1, 2]


class Process:
    """A training in a process of its own, with the lines that it has printed.

    Attributes:
        steps: optimiser steps in all.
        began: set when it has printed a line.
    """

    def __init__(self, folder, *more, steps=1200):
        command = [sys.executable, "-m", "experiments.train"]
        command += [*flags_of(folder, steps), *more]
        self.steps = steps
        flags = os.environ.get("XLA_FLAGS", "").split()
        kept = " ".join(f for f in flags if "device_count" not in f)
        self.process = subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, "XLA_FLAGS": kept, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self.began = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip())
                self.began.set()
        self.began.set()

    def end(self, timeout=120):
        """Return the exit code and all that was printed."""
        code = self.process.wait(timeout)
        self._reader.join()
        return code, "\n".join(self.lines)


def newest(folder):
    steps = [p.name for p in folder.glob("checkpoints/*") if p.name.isdigit()]
    return max(map(int, steps), default=0)


def check_end(folder, before, steps, code, text):
    """Check what a stopped process says against the folder; return the phase."""
    named = re.search(r"stopped after step (\d+); the same command", text)
    if code == 0 or "\ntrained; now on" in text or "\npictures, figures" in text:
        # There is nothing left to stop but the interpreter.
        phase, code, expected = "done", 0, steps
    elif named:
        phase, expected = "training", int(named[1])
    elif "the training is complete" in text:
        phase, expected = "evaluation", steps
    else:
        assert "nothing is lost" in text, text
        phase, expected = "opening", before
    assert code == (0 if phase == "done" else STOPPED), text
    assert newest(folder) == expected, text
    return phase


def final_state(folder):
    leaves = jax.tree_util.tree_leaves_with_path(run.restore(folder).state)
    typed = jax.dtypes.prng_key
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, typed) else x
        )
        for path, x in leaves
    }


def assert_same_state(folder, other):
    one, two = final_state(folder), final_state(other)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def interrupt(rng, folder, count, seconds, start):
    """Run in the folder until done, a signal after a random time to each process.

    Args:
        rng: draws time and signal.
        folder: of the run.
        count: signals to send at most.
        seconds: the longest wait after the first line of output.
        start: ``folder -> processes``.

    Returns:
        The phases in which the processes were stopped.
    """
    phases = []
    while True:
        before = newest(folder)
        processes = start(folder)
        for process in processes:
            assert process.began.wait(120)
        if len(phases) < count:
            time.sleep(rng.uniform(0, seconds))
            for process in rng.sample(processes, rng.randint(1, len(processes))):
                if process.process.poll() is None:
                    number = rng.choice([signal.SIGINT, signal.SIGTERM])
                    process.process.send_signal(number)
        ends = [process.end() for process in processes]
        steps = processes[0].steps
        found = {check_end(folder, before, steps, *end) for end in ends}
        if found == {"done"} or len(phases) >= count:
            return phases
        phases.append("/".join(sorted(found)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run left in peace, and the seconds that it took after its first line."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = Process(folder)
    process.began.wait(120)
    began = time.monotonic()
    code, text = process.end()
    assert code == 0, text
    return folder, time.monotonic() - began


@pytest.mark.slow
def test_thirty_random_moments(whole, tmp_path):
    folder, seconds = whole
    rng, phases = random.Random(0), []
    for number in range(30):
        other = tmp_path / str(number)
        phases += interrupt(
            rng, other, 30 - len(phases), seconds, lambda f: [Process(f)]
        )
        assert_same_state(other, folder)
        if len(phases) >= 30:
            break
    print({phase: phases.count(phase) for phase in sorted(set(phases))})
    assert {"training", "evaluation"} <= set(phases)


def pair(folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = ["--distributed", "--coordinator", f"localhost:{port}"]
    return [
        Process(folder, *flags, "--process-count", 2, "--process-index", i, steps=300)
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_stop_at_one_step(tmp_path):
    alone = tmp_path / "alone"
    processes = pair(alone)
    for process in processes:
        process.began.wait(120)
    began = time.monotonic()
    for process in processes:
        code, text = process.end()
        assert code == 0, text
    seconds = time.monotonic() - began
    rng, phases = random.Random(1), []
    for number in range(6):
        other = tmp_path / str(number)
        phases += interrupt(rng, other, 6 - len(phases), 0.7 * seconds, pair)
        assert_same_state(other, alone)
        if len(phases) >= 6:
            break
    print({phase: phases.count(phase) for phase in sorted(set(phases))})
    assert "training" in phases
