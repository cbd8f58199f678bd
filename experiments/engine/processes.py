"""Several processes: how they find each other, and stop at the same step."""

from collections import deque
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from flowjax.training import data_mesh

LAG = 2
"""Steps between a process's word and all processes' heeding it."""


def join(
    coordinator: str | None,
    process_count: int | None,
    process_index: int | None,
    *,
    distributed: bool,
) -> None:
    """Join the other processes, if there are to be any; before all work with JAX.

    Args:
        coordinator: HOST:PORT of the first process.
        process_count: number of processes.
        process_index: number of this process, from 0.
        distributed: whether there are others. Without the three above, which go
            together, the cluster says them (Slurm, Open MPI, Kubernetes, TPUs).

    Raises:
        ValueError: if only some of the three are given, they do not fit together, or
            no cluster is detected and none is given.
        ConnectionError: if the others can't be reached.
    """
    given = (coordinator, process_count, process_index)
    said = [value is not None for value in given]
    if any(said) and not (distributed and all(said)):
        raise ValueError(
            "--coordinator HOST:PORT, --process-count and --process-index go together, "
            f"and with --distributed; got {coordinator}, {process_count} and "
            f"{process_index} {'with' if distributed else 'without'} --distributed"
        )
    if not distributed:
        return
    if coordinator is not None and process_count is not None:
        _check(coordinator, process_count, process_index or 0)
    try:
        jax.distributed.initialize(*given)
    except ValueError as error:
        raise ValueError(
            f"no cluster is detected ({error}); say --coordinator HOST:PORT, "
            "--process-count and --process-index"
        ) from error
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ConnectionError(
            f"the other processes can't be joined: {first}"
        ) from error


def _check(coordinator: str, process_count: int, process_index: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator must be HOST:PORT; got {coordinator}")
    if not 0 <= process_index < process_count:
        raise ValueError(
            "--process-index must lie in [0, process-count); got "
            f"{process_index} of {process_count}"
        )


def agreement() -> Callable[[bool], bool]:
    """Return ``asked -> stop``, to be called by all processes after every step.

    Every process says whether it was asked, and is told whether any was `LAG` calls
    ago. All decide from the same numbers, so they stop at the same step; the device has
    them long before the host asks, so no step waits for it.
    """
    if jax.process_count() == 1:
        return lambda asked: asked
    mesh = data_mesh()
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    words = {
        word: jax.make_array_from_callback(
            mesh.devices.shape, rows, lambda i, word=word: np.full(mesh.size, word)[i]
        )
        for word in (False, True)
    }
    any_of = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
    pending: deque[jax.Array] = deque()

    def stop(asked: bool) -> bool:
        pending.append(any_of(words[asked]))
        return len(pending) > LAG and bool(pending.popleft())

    return stop
