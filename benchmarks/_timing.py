"""How the benchmarks of samplers take times, and what they say about the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike


def limit_cores(cores: int) -> None:
    """Keep this process on its first ``cores`` cores.

    JAX counts them when its CPU client starts: call this before any computation.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def blocking(program: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Return a call of ``program`` that waits for the result."""
    return lambda: jax.block_until_ready(program(*args))


def take_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of ``repeats`` rounds in which every call has its turn.

    The calls must block until they are done. A busy machine slows neighbours alike;
    every round begins with another call, so that none always follows the same one.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        calls[name]()
    for round_ in range(repeats):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(values: ArrayLike, base: ArrayLike) -> float:
    """Return the median of the ratios within each round."""
    return statistics.median(np.divide(values, base).tolist())


def temporary_bytes(program: jax.stages.Compiled) -> int:
    """Return the memory that XLA sets aside beside arguments and results."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def describe_machine(*packages: str) -> None:
    """Print the hardware, its load, and the versions of ``packages``."""
    kind = jax.devices()[0].device_kind
    cores = f"{usable_cores()} of {os.cpu_count()} cores"
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{kind} x {jax.device_count()}, {platform.machine()}, {cores}, load {load}")
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    print(", ".join(versions))
