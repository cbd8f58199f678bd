"""Who works in a run folder, and who has: its lock, and the record of its starts."""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from experiments.engine.files import read_object, write_atomically

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "grain")
"""The libraries whose versions may change what a run computes."""


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Be the only training in a run folder, which is made if it does not exist.

    The kernel releases the lock of a process that dies, however it does. Of several
    processes of one training the first has it.

    Raises:
        ValueError: if another process, which the message names, is training there.
    """
    if jax.process_index() != 0:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("a+", encoding="utf-8", errors="replace") as file:
        taken = _take(file.fileno(), run)
        file.seek(0)
        holder = " ".join(file.read().split())
        if not taken:
            raise ValueError(
                f"{run} is in use by {holder or 'another process'}; wait for it, stop "
                "it, or choose another --run"
            )
        if holder:
            print(f"{holder} left {run} without a word; going on from there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _take(descriptor: int, run: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        warnings.warn(
            f"{run} can't be locked ({error}): see to it that no other process trains "
            "there",
            RuntimeWarning,
            stacklevel=4,
        )
    return True


def note_start(run: Path) -> str:
    """Add to the record what starts here, where and with which versions.

    Returns:
        An identifier of the run, made when it first started.
    """
    path = run / "record.json"
    stored: dict[str, Any] = {}
    if path.is_file():
        try:
            stored = read_object(path)
        except ValueError as error:
            warnings.warn(f"{error}; it is begun anew", RuntimeWarning, stacklevel=2)
    name, starts = stored.get("id"), stored.get("starts")
    if not isinstance(name, str) or not isinstance(starts, list):
        name, starts = f"{run.absolute().name}-{uuid.uuid4().hex[:8]}", []
    record = {"id": name, "starts": [*starts, _start()]}
    write_atomically(path, json.dumps(record, indent=2) + "\n")
    return name


def _start() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "code": _code(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "process": os.getpid(),
        "processes": jax.process_count(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _code() -> dict[str, Any]:
    """Return the commit of a checkout and whether it was changed since."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None}
