"""One pure step under jit on one device, jit over a mesh, and pmap: equal numbers."""

import os
import re
import socket
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.training import (
    data_mesh,
    ema,
    init_state,
    jit_over_mesh,
    make_step,
    pmap_over_devices,
)
from tests.counting import collectives

OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def squared_error(params, key, batch, state=None):
    """One layer of regression; draws nothing."""
    del key
    error = jnp.tanh(batch["x"] @ params["w"]) + params["b"][None] - batch["y"]
    return jnp.sum(error**2, axis=1), {"error": jnp.abs(error)}


def noisy_error(params, key, batch, state=None):
    noise = jax.random.normal(key, batch["y"].shape, batch["y"].dtype)
    loss, _ = squared_error(params, key, {"x": batch["x"], "y": batch["y"] + noise})
    return loss, {"noise": noise}


def initial(key):
    key_params, key_state = jax.random.split(key)
    params = {"w": jax.random.normal(key_params, (5, 16)), "b": jnp.zeros(16)}
    return init_state(key_state, params, OPTIMIZER)


def make(loss=squared_error, **options):
    return partial(
        make_step, loss, OPTIMIZER, ema_decay=ema.half_life(9, ramp_up=0.5), **options
    )


def data(seed=0, rows=32):
    """Return a batch as a data pipeline does: NumPy arrays, None for no condition."""
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(rows, 5)).astype(jnp.result_type(float)),
        "y": random.normal(size=(rows, 16)).astype(jnp.result_type(float)),
        "cond": None,
    }


def on_one_device(init, make, **options):
    return jit_over_mesh(init, make, mesh=data_mesh(jax.devices()[:1]), **options)


def on_four_of_the_mesh(init, make, **options):
    return jit_over_mesh(init, make, mesh=data_mesh(jax.devices()[4:]), **options)


def sharded_state(init, make, **options):
    return jit_over_mesh(init, make, shard_state=True, **options)


def pmap_over_four(init, make, **options):
    return pmap_over_devices(init, make, devices=jax.devices()[:4], **options)


EXECUTORS = {
    f.__name__: f
    for f in (
        on_one_device,
        jit_over_mesh,
        on_four_of_the_mesh,
        sharded_state,
        pmap_over_devices,
        pmap_over_four,
    )
}
every_executor = pytest.mark.parametrize("name", EXECUTORS)


@every_executor
def test_frozen_arrays_are_arguments_of_the_step(key, name):
    """A program that held them as constants would grow with them."""
    executor, options = EXECUTORS[name], {"ema_decay": ema.half_life(9)}
    teacher, traced = {"w": np.asarray(jax.random.normal(key, (5, 16)))}, []

    def against(frozen, params, key, batch, state):
        traced.append(isinstance(frozen["w"], jax.core.Tracer))
        batch = {**batch, "y": batch["x"] @ frozen["w"]}
        return squared_error(params, key, batch, state)

    def make_against(frozen, *, axis_name):
        loss = partial(against, frozen)
        return make_step(loss, OPTIMIZER, axis_name=axis_name, **options)

    def start(key, frozen):
        traced.append(isinstance(frozen["w"], jax.core.Tracer))
        state = initial(key)
        return state._replace(params={**state.params, "w": 0.5 * frozen["w"]})

    given = executor(start, make_against, frozen=teacher)
    state = given.init(key)
    np.testing.assert_allclose(given.gather(state).params["w"], 0.5 * teacher["w"])
    state, metrics = given.step(state, given.put(data()))
    assert len(traced) >= 2
    assert all(traced)

    closed = executor(lambda key: start(key, teacher), partial(make_against, teacher))
    again, expected = closed.step(closed.init(key), closed.put(data()))
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        given.gather(state).params,
        closed.gather(again).params,
    )


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("jit_over_mesh", 1),
        ("pmap_over_devices", 1),
        *((name, 2) for name in EXECUTORS),
    ],
)
@pytest.mark.usefixtures("x64")
def test_every_executor_computes_the_same_training(key, name, parts):
    """Against the plain step, uncompiled: loss, gradient norm, parameters, average."""
    executor = EXECUTORS[name](initial, make(accumulate=parts))
    plain = make()(axis_name=None)
    state, expected = executor.init(key), initial(key)
    for seed in range(3):
        state, metrics = executor.step(state, executor.put(data(seed)))
        expected, expected_metrics = plain(expected, data(seed))
        chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-12)
    state = executor.gather(state)
    # The schedule of the average is in float32, which XLA may round in another way.
    chex.assert_trees_all_close(state.ema_params, expected.ema_params, rtol=1e-6)
    compared = [s._replace(key=None, ema_params=None) for s in (state, expected)]
    chex.assert_trees_all_close(*compared, rtol=1e-12, atol=1e-14)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
    np.testing.assert_array_equal(
        jax.random.key_data(state.key), jax.random.key_data(expected.key)
    )


@every_executor
def test_state_is_donated(key, name):
    executor = EXECUTORS[name](initial, make())
    old = executor.init(key)
    executor.step(old, executor.put(data()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert not key.is_deleted()


@every_executor
def test_step_is_traced_once(key, name):
    traces = []

    def counted(params, key, batch, state=None):
        traces.append(None)
        return squared_error(params, key, batch)

    executor = EXECUTORS[name](initial, make(counted))
    state = executor.init(key)
    for seed in range(3):
        state, _ = executor.step(state, executor.put(data(seed)))
    state = executor.scatter(executor.gather(state))
    executor.step(state, executor.put(data()))
    assert len(traces) == 1


@every_executor
def test_gathered_state_has_its_own_shapes_and_scatters_back(key, name):
    executor = EXECUTORS[name](initial, make())
    state = executor.init(key)
    gathered = executor.gather(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(gathered, initial(key))
    scattered = executor.scatter(gathered)
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, scattered, state)
    assert all(jax.tree.leaves(same))
    chex.assert_trees_all_equal(scattered.params, state.params)


def test_a_run_moves_from_pmap_to_jit(key):
    """What pmap gathers is what jit takes, as when a checkpoint is restored."""
    by_pmap = pmap_over_devices(initial, make())
    by_jit = jit_over_mesh(initial, make())
    state, _ = by_pmap.step(by_pmap.init(key), by_pmap.put(data(0)))
    state, metrics = by_jit.step(by_pmap.gather(state), by_jit.put(data(1)))
    expected, _ = by_jit.step(by_jit.init(key), by_jit.put(data(0)))
    expected, expected_metrics = by_jit.step(expected, by_jit.put(data(1)))
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-5, atol=1e-6)


# What the devices tell each other.


def compiled(executor, key):
    state = jax.eval_shape(executor.init, key)
    return executor.step.lower(state, executor.put(data())).compile().as_text()


@pytest.mark.parametrize("loss", [squared_error, noisy_error])
@pytest.mark.parametrize("parts", [1, 2])
def test_only_gradient_and_scalars_are_reduced(key, loss, parts):
    """Two arrays of gradients, the loss and one metric; the parts move no rows."""
    text = compiled(jit_over_mesh(initial, make(loss, accumulate=parts)), key)
    assert collectives(text) == {"all-reduce": 4}


def test_contiguous_parts_would_move_rows(key):
    """The test above is able to fail: slicing whole rows needs other collectives."""

    def sliced(params, key, batch, state=None):
        half = {name: batch[name][: len(batch["y"]) // 2] for name in ("x", "y")}
        losses, metrics = squared_error(params, key, half)
        return jnp.concatenate([losses, losses]), {"error": metrics["error"].mean()}

    text = compiled(jit_over_mesh(initial, make(sliced)), key)
    assert set(collectives(text)) > {"all-reduce"}


def test_collectives_are_counted_by_arrays():
    text = """
      %all-reduce.1 = (f32[8]{0}, f32[8,16]{1,0}) all-reduce(%a, %b), channel_id=1
      %get = f32[8]{0} get-tuple-element(%all-reduce.1), index=0
      %p = f32[4]{0} collective-permute(%c), channel_id=2
    """
    assert collectives(text) == {"all-reduce": 2, "collective-permute": 1}


def test_a_sharded_state_takes_a_share_of_the_memory(key):
    state = sharded_state(initial, make()).init(key)
    (momentum,) = (x for x in jax.tree.leaves(state.opt_state) if x.shape == (5, 16))
    for leaf in (state.params["w"], state.ema_params["w"], momentum):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(5, 2)}
    assert state.key.sharding.is_fully_replicated


# Randomness.


def test_draws_under_jit_do_not_depend_on_the_devices(key):
    noises = []
    for name in ("on_one_device", "on_four_of_the_mesh", "jit_over_mesh"):
        executor = EXECUTORS[name](initial, make(noisy_error))
        _, metrics = executor.step(executor.init(key), executor.put(data()))
        noises.append(float(metrics["noise"]))
    np.testing.assert_allclose(noises, noises[0], rtol=1e-5)


def test_every_device_under_pmap_draws_its_own_noise(key):
    executor = pmap_over_devices(initial, make(noisy_error))
    state = executor.init(key)
    step_key = jax.random.fold_in(executor.gather(state).key, 0)
    _, metrics = executor.step(state, executor.put(data()))
    draws = [
        jax.random.normal(jax.random.fold_in(step_key, device), (4, 16))
        for device in range(8)
    ]
    np.testing.assert_allclose(metrics["noise"], np.mean(draws), rtol=1e-5)


# Errors.


@pytest.mark.parametrize(
    ("name", "rows"),
    [("on_one_device", 0)]
    + [(name, rows) for name in EXECUTORS if "one" not in name for rows in (0, 30)],
)
def test_batch_that_the_devices_do_not_divide(name, rows):
    executor = EXECUTORS[name](initial, make())
    with pytest.raises(ValueError, match=rf"divisible by the \d devices .* {rows} row"):
        executor.put(data(rows=rows))


@every_executor
def test_batch_whose_leaves_disagree(name):
    executor = EXECUTORS[name](initial, make())
    with pytest.raises(ValueError, match=r"share the leading axis .*batch\['extra'\]"):
        executor.put({**data(), "extra": np.zeros(8)})


def test_mesh_without_a_data_axis():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match=r"the axis `data`; got \('x',\)"):
        jit_over_mesh(initial, make(), mesh=mesh)


# Several processes.

PROCESS = """
import sys
import jax
port, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index)
import numpy as np
import tests.test_parallel as t
from flowjax.training import Checkpointer

class Cursor:
    def __init__(self): self.at = 0
    def get_state(self): return {"at": self.at, "process": "ab"[index] * (index + 1)}
    def set_state(self, state): self.at, self.process = state["at"], state["process"]

for name in ("jit_over_mesh", "pmap_over_devices", "sharded_state"):
    executor = t.EXECUTORS[name](t.initial, t.make())
    state = executor.init(jax.random.key(0))
    cursor = Cursor()
    for seed in range(3):
        mine = {k: v if v is None else v[16 * index:][:16]
                for k, v in t.data(seed).items()}
        state, metrics = executor.step(state, executor.put(mine))
        cursor.at += 1
        if seed == 1:
            with Checkpointer(f"{folder}/{name}") as checkpointer:
                checkpointer.save(2, executor.gather(state), cursor)
    loss = float(metrics["loss"])
    cursor = Cursor()
    with Checkpointer(f"{folder}/{name}") as checkpointer:
        template = executor.gather(executor.init(jax.random.key(1)))
        state, step = checkpointer.restore(template, cursor)
    assert (cursor.at, cursor.process, step) == (2, "ab"[index] * (index + 1), 2)
    state, metrics = executor.step(executor.scatter(state), executor.put(mine))
    assert float(metrics["loss"]) == loss
    print("loss", name, repr(loss), flush=True)
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(key, tmp_path):
    """Each process has four devices and half of the rows; both save and restore."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.path.dirname(os.path.dirname(__file__)),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(index), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    executor = jit_over_mesh(initial, make())
    state = executor.init(key)
    for seed in range(3):
        state, metrics = executor.step(state, executor.put(data(seed)))
    for output, _ in outputs:
        losses = [float(x) for x in re.findall(r"^loss \w+ (\S+)$", output, re.M)]
        np.testing.assert_allclose(losses, [metrics["loss"]] * 3, rtol=1e-5)


def test_points_are_drawn_on_the_device_that_uses_them():
    """Nothing of the batch's full length is left in a device's program."""
    from experiments import configs
    from experiments.engine.experiment import smoke
    from experiments.engine.model import Model
    from experiments.engine.road import make_loss, make_prepare

    rows = 4096
    experiment = smoke(configs.get("density_mean_flow"))
    model = Model(experiment, experiment.data.build().example())
    prepare, loss = make_prepare(model), make_loss(model, None, None)

    def step(key, batch):
        state = model.init(key)
        return loss(state.params, key, prepare(key, batch), state)[0].mean()

    mesh = data_mesh()
    alone, split = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((), mesh.axis_names)
    )
    batch = {"index": jnp.arange(rows, dtype=jnp.uint32)}
    with jax.numpy_dtype_promotion("standard"):
        lowered = jax.jit(step, in_shardings=(alone, split)).lower(
            jax.random.key(0), batch
        )
    program = lowered.compile().as_text()
    assert re.search(rf"\[{rows // 8}[,\]]", program)
    assert not re.search(rf"\[{rows}[,\]]", program)
