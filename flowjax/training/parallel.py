"""Running one pure step on many devices: jit over a mesh (the default), or pmap.

Both take the same arguments and return the same `Executor`, so a training script
chooses between them by name. They agree in loss and gradient for a loss that draws no
random numbers; draws themselves don't depend on the number of devices under jit, while
under pmap every device folds its index into the key.

Several processes (hosts) call `jax.distributed.initialize()` before anything else; each
then puts its own share of the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from flowjax.training.state import TrainState
from flowjax.training.step import Batch, Step, batch_size
from flowjax.typing import PRNGKey

DATA_AXIS = "data"


StepFactory: TypeAlias = Callable[..., Step]
"""``axis_name -> step`` or, with ``frozen``, ``(frozen, axis_name) -> step``.

`make_step` with everything bound but ``axis_name``, passed by name.
"""

Init: TypeAlias = Callable[..., TrainState]
"""``key -> state`` or, with ``frozen``, ``(key, frozen) -> state``; traceable."""


class Executor(NamedTuple):
    """A compiled step and the ways of its arguments to the devices and back.

    Attributes:
        init: ``key -> state``, the state built on the devices.
        step: ``(state, batch) -> (state, metrics)``; it consumes the state it is given
            (donated buffers), and its metrics are scalars.
        put: ``batch -> batch`` on the devices; it takes the rows of this process.
        gather: ``state -> state`` in the layout of checkpoints, where every leaf has
            its own shape on one mesh. A checkpoint is restored into the layout of
            ``gather(init(key))``.
        scatter: the inverse of gather, from a restored state to one that step takes.
    """

    init: Callable[[PRNGKey], TrainState]
    step: Step
    put: Callable[[Batch], Batch]
    gather: Callable[[TrainState], TrainState]
    scatter: Callable[[TrainState], TrainState]


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh with the one axis ``data`` over ``devices`` (None: all).

    The axis is automatic: the compiler places what lies between input and output.
    """
    count = len(jax.devices() if devices is None else devices)
    return jax.make_mesh(
        (count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def jit_over_mesh(
    init: Init,
    make: StepFactory,
    *,
    mesh: Mesh | None = None,
    shard_state: bool = False,
    frozen: Any = None,
) -> Executor:
    """Compile the step over a mesh: batch sharded over ``data``, state replicated.

    The state is built inside a compiled ``init``: typed keys can't be moved to devices
    of other processes from outside.

    Args:
        init: ``key -> TrainState``, traceable, such as `init_state` on the parameters
            of a network initialised from the key; see `Init`.
        make: ``axis_name -> step``, such as ``partial(make_step, loss, optimizer,
            ema_decay=...)``; see `StepFactory`.
        mesh: has an automatic axis named ``data``; None takes all devices.
        shard_state: split parameters, optimiser state and average over the devices
            too, each leaf along its longest divisible axis (fully sharded data
            parallel), for memory against communication.
        frozen: a tree of arrays that the step reads and leaves as they are, such as the
            parameters of a teacher, equal in all processes; they are laid out like the
            state. Arrays that a loss closes over become constants of the program, which
            may not exceed 2 GB.

    Raises:
        ValueError: if the mesh has no axis ``data``.
    """
    mesh = data_mesh() if mesh is None else mesh
    if DATA_AXIS not in mesh.axis_names:
        raise ValueError(f"`mesh` must have the axis `data`; got {mesh.axis_names}")
    devices = mesh.shape[DATA_AXIS]
    replicated = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = _longest_axis(leaf.shape, devices) if shard_state else PartitionSpec()
        return NamedSharding(mesh, spec)

    last = () if frozen is None else (frozen,)
    layout = jax.tree.map(sharding, jax.eval_shape(lambda: last))
    last = jax.tree.map(_from_every_process, last, layout)
    state = jax.tree.map(sharding, jax.eval_shape(init, jax.random.key(0), *last))
    step = jax.jit(
        _over_axis(make, frozen, None),
        in_shardings=(state, rows, *layout),
        out_shardings=(state, replicated),
        donate_argnums=0,
    )

    def put(batch: Batch) -> Batch:
        _check_divisible(
            batch, devices // len({d.process_index for d in mesh.devices.flat})
        )
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(rows, x), batch
        )

    return Executor(
        init=_bind_last(jax.jit(init, out_shardings=state), last),
        step=_bind_last(step, last),
        put=put,
        gather=_unchanged,
        scatter=_unchanged,
    )


def pmap_over_devices(
    init: Init,
    make: StepFactory,
    *,
    devices: Sequence[Any] | None = None,
    frozen: Any = None,
) -> Executor:
    """Compile the step with `jax.pmap`: one copy of the state per device.

    Args:
        init: see `jit_over_mesh`; every device runs it on the same key.
        make: see `jit_over_mesh`.
        devices: None takes all devices of all processes.
        frozen: see `jit_over_mesh`; every device holds a copy.
    """
    mesh = data_mesh(devices)
    # pmap takes and returns the part of each array that lies in this process.
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    rows = NamedSharding(data_mesh(own), PartitionSpec(DATA_AXIS))
    replicated = NamedSharding(mesh, PartitionSpec())
    last = jax.tree.map(
        lambda x: jax.device_put(np.broadcast_to(x, (len(own), *x.shape)), rows),
        () if frozen is None else (frozen,),
    )
    # pmap needs one mapped argument to know how many devices there are.
    build = jax.pmap(
        lambda key, _, *frozen: init(key, *frozen),
        axis_name=DATA_AXIS,
        in_axes=(None, 0, *[0 for _ in last]),
        devices=devices,
    )
    step = jax.pmap(
        _over_axis(make, frozen, DATA_AXIS),
        axis_name=DATA_AXIS,
        out_axes=(0, None),
        donate_argnums=0,
        devices=devices,
    )

    def put(batch: Batch) -> Batch:
        _check_divisible(batch, len(own))
        return jax.tree.map(
            lambda x: jax.device_put(
                np.reshape(x, (len(own), len(x) // len(own), *np.shape(x)[1:])), rows
            ),
            batch,
        )

    def gather(state: TrainState) -> TrainState:
        return jax.tree.map(lambda x: _relayout(x, x.shape[1:], replicated), state)

    def scatter(state: TrainState) -> TrainState:
        return jax.tree.map(lambda x: _relayout(x, (len(own), *x.shape), rows), state)

    return Executor(
        init=lambda key: build(key, np.arange(len(own)), *last),
        step=_bind_last(step, last),
        put=put,
        gather=gather,
        scatter=scatter,
    )


def _bind_last(function: Any, last: tuple[Any, ...]) -> Any:
    """Return the function with its last arguments, if there are any, given."""
    if not last:
        return function
    return lambda *arguments: function(*arguments, *last)


def _over_axis(make: StepFactory, frozen: Any, axis_name: str | None) -> Any:
    """Return the step, which takes ``frozen`` after state and batch if there is one."""
    if frozen is None:
        return make(axis_name=axis_name)

    def step(state: TrainState, batch: Batch, frozen: Any) -> tuple[TrainState, Any]:
        return make(frozen, axis_name=axis_name)(state, batch)

    return step


def _from_every_process(x: Any, sharding: NamedSharding) -> Array:
    """Lay out an array that every process holds as a whole."""
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda i: whole[i])


def _longest_axis(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """Return the spec that splits the longest axis which ``devices`` divides."""
    divisible = [i for i, size in enumerate(shape) if size and size % devices == 0]
    if not divisible:
        return PartitionSpec()
    axis = max(divisible, key=lambda i: shape[i])
    return PartitionSpec(*[None] * axis, DATA_AXIS)


def _check_divisible(batch: Batch, devices: int) -> None:
    rows = batch_size(batch)
    if rows == 0 or rows % devices:
        raise ValueError(
            f"`batch` must be divisible by the {devices} devices of this process; "
            f"got {rows} rows"
        )


def _relayout(x: Array, shape: tuple[int, ...], sharding: NamedSharding) -> Array:
    """Add or drop the device axis, each device reshaping the copy that it holds."""
    local = sharding.shard_shape(shape)
    pieces = [jnp.reshape(shard.data, local) for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def _unchanged(state: Any) -> Any:
    return state
