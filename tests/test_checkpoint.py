"""A stopped run goes on bit for bit; damage is noticed, foreign runs are refused."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.training import (
    Checkpointer,
    checkpoint_record,
    ema,
    init_state,
    jit_over_mesh,
    make_step,
    pmap_over_devices,
)

CONFIG = {"model": {"width": 5, "depth": (1, 2)}, "seed": 0, "steps": 10}


def optimizer():
    def update(*args):
        # Adam of optax raises a float to an integer power.
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(*args)

    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    return optax.GradientTransformation(adam.init, update)


def noisy_error(params, key, batch, state=None):
    x = batch[:, None].astype(jnp.float32) / 100
    noise = jax.random.normal(key, (len(x), 3))
    predicted = jnp.tanh(x @ params["w"]).astype(jnp.float32) + params["b"][None]
    return jnp.sum((predicted - noise - x) ** 2, axis=1), {}


def initial(key, width=3):
    key_params, key_state = jax.random.split(key)
    params = {"w": jax.random.normal(key_params, (1, width)), "b": jnp.zeros(width)}
    return init_state(key_state, params, optimizer())


def executor(parallel=jit_over_mesh):
    decay = ema.half_life(9, ramp_up=0.5)
    return parallel(
        initial, partial(make_step, noisy_error, optimizer(), ema_decay=decay)
    )


def numbers():
    """Return shuffled, repeated, batched numbers, as a training set would come."""
    source = grain.MapDataset.source(np.arange(100)).shuffle(seed=1).repeat()
    return iter(source.to_iter_dataset().batch(8))


def train(run, state, iterator, steps):
    for _ in range(steps):
        state, metrics = run.step(state, run.put(next(iterator)))
    return state, metrics


def saved(folder, *steps, **options):
    """Save a state filled differently at each of the steps."""
    with Checkpointer(folder, **options) as checkpointer:
        for step in steps:
            checkpointer.save(step, filled(step))
    return folder


def filled(value):
    """Return a state with an array so large and random that it fills a file."""
    key = jax.random.key(value)
    params = {"w": jax.random.normal(key, (100, 100)), "b": jnp.zeros(3)}
    return init_state(key, params, optax.sgd(0.1, momentum=0.9))


def restore(folder, template=None, **options):
    with Checkpointer(folder, **options) as checkpointer:
        return checkpointer.restore(filled(0) if template is None else template)


def assert_restored(restored, step):
    state, number = restored
    assert number == step
    chex.assert_trees_all_equal(state, filled(step))


# Resuming.


@pytest.mark.parametrize("parallel", [jit_over_mesh, pmap_over_devices])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(key, tmp_path, parallel):
    run = executor(parallel)
    iterator = numbers()
    straight, metrics = train(run, run.init(key), iterator, 10)
    position = iterator.get_state()

    iterator = numbers()
    state, _ = train(run, run.init(key), iterator, 5)
    with Checkpointer(tmp_path, config=CONFIG) as checkpointer:
        checkpointer.save(5, run.gather(state), iterator)
        # The state is donated while it is being saved.
        train(run, state, iterator, 3)

    run, iterator = executor(parallel), numbers()
    with Checkpointer(tmp_path, config=CONFIG) as checkpointer:
        template = run.gather(run.init(jax.random.key(7)))
        state, step = checkpointer.restore(template, iterator)
    assert step == state.step == 5
    resumed, resumed_metrics = train(run, run.scatter(state), iterator, 5)
    chex.assert_trees_all_equal(resumed, straight)
    chex.assert_trees_all_equal(resumed_metrics, metrics)
    assert iterator.get_state() == position
    np.testing.assert_array_equal(next(iterator), next(numbers_after(10)))


def numbers_after(batches):
    iterator = numbers()
    for _ in range(batches):
        next(iterator)
    return iterator


def test_a_restored_state_is_placed_as_the_template(key, tmp_path):
    """Saved from eight replicas, restored in eight shares, or on one device."""
    saved(tmp_path, 1)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    shares = jax.sharding.NamedSharding(mesh, jax.P("data"))
    template = jax.eval_shape(lambda: filled(0))
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=shares if x.shape == (100, 100) else sharding
        ),
        template,
    )
    state, _ = restored = restore(tmp_path, template)
    assert_restored(restored, 1)
    assert state.params["w"].sharding == shares
    assert state.key.sharding == sharding


def test_saving_survives_donation(tmp_path):
    """The buffers that are being written are overwritten by the next steps at once."""
    state = filled(1)._replace(params={"w": jnp.ones((1000, 1000)), "b": jnp.zeros(3)})
    advance = jax.jit(
        lambda s: s._replace(params=jax.tree.map(lambda x: x + 1, s.params)),
        donate_argnums=0,
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        for _ in range(5):
            state = advance(state)
        checkpointer.wait()
        restored, _ = checkpointer.restore(state)
    np.testing.assert_array_equal(restored.params["w"], 1)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "bfloat16", "complex64"])
def test_every_dtype_survives(tmp_path, dtype):
    leaf = jnp.arange(6).reshape(2, 3).astype(dtype)
    state = filled(1)._replace(params={"a": leaf})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        restored, _ = checkpointer.restore(state)
    chex.assert_trees_all_equal(restored, state)


class Counter:
    """The least that counts as a resumable iterator."""

    def __init__(self, at=0, *, as_bytes=False):
        self.at, self.as_bytes = at, as_bytes

    def get_state(self):
        return str(self.at).encode() if self.as_bytes else {"at": self.at}

    def set_state(self, state):
        self.at = int(state) if self.as_bytes else state["at"]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_any_iterator_with_a_state_is_resumed(tmp_path, as_bytes):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, filled(1), Counter(7, as_bytes=as_bytes))
        iterator = Counter(as_bytes=as_bytes)
        checkpointer.restore(filled(0), iterator)
    assert iterator.at == 7


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]


def test_empty_folder(tmp_path):
    assert restore(tmp_path / "new") is None
    with Checkpointer(tmp_path / "new") as checkpointer:
        assert checkpointer.stored_config() is None


# Damage.


@pytest.fixture
def collected():
    """Let what orbax leaves behind perish in the test that caused it."""
    yield
    gc.collect()


def damaging(test):
    """Mark a test in which orbax fails to read: it abandons its other reads then.

    Python reports each of these coroutines when it is collected as garbage.
    """
    ignore = "ignore::pytest.PytestUnraisableExceptionWarning"
    return pytest.mark.usefixtures("collected")(
        pytest.mark.filterwarnings(ignore)(test)
    )


def large_file(checkpoint):
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=_size)


def _size(path):
    return path.stat().st_size


def truncate(path):
    path.write_bytes(path.read_bytes()[: _size(path) // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def truncate_everything(checkpoint):
    for path in checkpoint.rglob("*"):
        if path.is_file():
            truncate(path)


DAMAGE = {
    "array truncated": lambda checkpoint: truncate(large_file(checkpoint)),
    "array emptied": lambda checkpoint: large_file(checkpoint).write_bytes(b""),
    "array deleted": lambda checkpoint: large_file(checkpoint).unlink(),
    "one bit": lambda checkpoint: flip_a_bit(large_file(checkpoint)),
    "state deleted": lambda checkpoint: shutil.rmtree(checkpoint / "state"),
    "record deleted": lambda checkpoint: shutil.rmtree(checkpoint / "record"),
    "metadata deleted": lambda checkpoint: (checkpoint / "state/_METADATA").unlink(),
    "all truncated": truncate_everything,
    "all deleted": lambda checkpoint: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in checkpoint.iterdir()
    ],
}


@damaging
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, name):
    saved(tmp_path, 1, 2)
    DAMAGE[name](tmp_path / "2")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(RuntimeWarning, match=rf"step 2 in {tmp_path} is damaged"):
            restored = checkpointer.restore(filled(0))
        assert_restored(restored, 1)
        # The step can be saved again, and is the newest then.
        checkpointer.save(2, filled(2))
    assert_restored(restore(tmp_path), 2)
    assert (tmp_path / "damaged-2").is_dir()


@damaging
def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    """Nothing else notices it: orbax would return another number without a word."""
    saved(tmp_path, 1)
    flip_a_bit(large_file(tmp_path / "1"))
    # The parameters or their average, which are equally large.
    named = r"checksums differ for \.(ema_)?params\['w'\]"
    with (
        pytest.warns(RuntimeWarning, match=named),
        pytest.raises(OSError, match="all checkpoints"),
    ):
        restore(tmp_path)


def flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def bits_of(path, count, rng):
    """Places of bits, as byte and bit."""
    places = rng.integers(0, 8 * _size(path), count)
    return [divmod(int(place), 8) for place in places]


def check_every_file(tmp_path, count):
    """Flip bits one by one; what is restored is right, or the checkpoint before."""
    with Checkpointer(tmp_path / "run", config=CONFIG) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, filled(step), Counter(8000 + step))
    files = [p for p in (tmp_path / "run" / "2").rglob("*") if p.is_file()]
    assert {"record", "state"} <= {p.parent.name for p in files}
    rng = np.random.default_rng(0)
    steps = set()
    for path in filter(_size, files):
        whole = path.read_bytes()
        for position, bit in bits_of(path, count, rng):
            flip(path, position, bit)
            iterator = Counter()
            with (
                warnings.catch_warnings(),
                Checkpointer(tmp_path / "run", config=CONFIG, read_only=True) as c,
            ):
                warnings.simplefilter("ignore", RuntimeWarning)
                restored = c.restore(filled(0), iterator)
            where = f"{path.relative_to(tmp_path)}, bit {bit} of byte {position}"
            assert iterator.at == 8000 + restored[1], where
            assert_restored(restored, restored[1])
            path.write_bytes(whole)
            steps.add((path.name, restored[1]))
    return steps


@damaging
def test_a_flipped_bit_in_any_file_is_harmless_or_found(tmp_path):
    assert len(check_every_file(tmp_path, 2)) > 5


@pytest.mark.slow
@damaging
def test_every_kind_of_flipped_bit_is_harmless_or_found(tmp_path):
    check_every_file(tmp_path, 40)


@damaging
@pytest.mark.parametrize("old", ["8002", "sha256", "cursors"])
def test_no_bit_of_the_record_is_trusted(tmp_path, old):
    """Neither the position in the data, nor the checksum, nor what it is called."""
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, filled(step), Counter(8000 + step))
    (path,) = [
        p for p in (tmp_path / "2/record").iterdir() if b"8002" in p.read_bytes()
    ]
    place = path.read_bytes().index(old.encode())
    flip(path, place, 0)
    iterator = Counter()
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(RuntimeWarning, match="step 2"):
            restored = checkpointer.restore(filled(0), iterator)
    assert_restored(restored, 1)
    assert iterator.at == 8001


FULL = """
import resource, sys, jax, jax.numpy as jnp, optax
from flowjax.training import Checkpointer, init_state
params = {"w": jax.random.normal(jax.random.key(0), (200, 200))}
state = init_state(jax.random.key(0), params, optax.sgd(0.1))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with Checkpointer(sys.argv[1]) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_in_a_line(tmp_path):
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        # A file that is cut off must not be what other processes read.
        env={
            **os.environ,
            "PYTHONPATH": root,
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path} can't be written: ")
    assert "File too large" in line


def test_a_record_of_an_earlier_version_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_record, "seal", lambda record: record)
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match="an earlier version of this code"):
        restore(tmp_path)


# Numbers that are not finite.


def spoilt(field, value, step=2):
    """A state with one number spoilt, in a leaf of a field."""
    state = filled(step)
    leaves, structure = jax.tree.flatten(getattr(state, field))
    (i, leaf), *_ = [(i, x) for i, x in enumerate(leaves) if x.ndim == 1]
    leaves[i] = leaf.at[1].set(value)
    return state._replace(**{field: jax.tree.unflatten(structure, leaves)})


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("field", ["params", "ema_params", "opt_state"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, field, value):
    saved(tmp_path, 1)
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(FloatingPointError, match=rf"after step 2 .* \.{field}.*'b'\]"),
    ):
        checkpointer.save(2, spoilt(field, value))
    assert_restored(restore(tmp_path), 1)


def test_an_optimiser_may_begin_at_infinity(tmp_path):
    state = filled(1)._replace(opt_state={"best": jnp.array(jnp.inf)})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        restored, _ = checkpointer.restore(state)
        chex.assert_trees_all_equal(restored, state)
        with pytest.raises(FloatingPointError, match="best"):
            checkpointer.save(2, state._replace(opt_state={"best": jnp.array(jnp.nan)}))


@damaging
def test_a_stored_state_that_is_not_finite_is_passed_over(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    survey = checkpoint_record.survey
    with monkeypatch.context() as patch, Checkpointer(tmp_path) as checkpointer:
        patch.setattr(
            checkpoint_record, "survey", lambda state: survey(state)._replace(broken=[])
        )
        checkpointer.save(2, spoilt("params", jnp.nan))
    with pytest.warns(RuntimeWarning, match=r"step 2 .* not finite: \.params\['b'\]"):
        assert_restored(restore(tmp_path), 1)
    assert (tmp_path / "damaged-2").is_dir()


@damaging
def test_all_checkpoints_damaged(tmp_path):
    saved(tmp_path, 1, 2)
    for step in ("1", "2"):
        truncate(large_file(tmp_path / step))
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(OSError, match=rf"all .* in {tmp_path} .*step 2: .*step 1:"),
    ):
        restore(tmp_path)
    # Nothing replaces them, so they are left as they are.
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2"}


@damaging
def test_a_step_damaged_twice_is_kept_twice(tmp_path):
    for _ in range(2):
        saved(tmp_path, *([1, 2] if not (tmp_path / "1").exists() else [2]))
        truncate(large_file(tmp_path / "2"))
        with pytest.warns(RuntimeWarning):
            assert_restored(restore(tmp_path), 1)
    assert {p.name for p in tmp_path.iterdir()} == {"1", "damaged-2", "damaged-2+"}


def test_an_interrupted_save_is_no_checkpoint(tmp_path):
    saved(tmp_path, 1, 2)
    half = tmp_path / "3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "2", half)
    shutil.rmtree(half / "record")
    assert_restored(restore(tmp_path, read_only=True), 2)
    assert half.exists()
    saved(tmp_path, 3)
    assert not half.exists()
    assert_restored(restore(tmp_path), 3)


@damaging
def test_reading_next_to_a_training_changes_nothing(tmp_path):
    saved(tmp_path, 1, 2, config=CONFIG)
    truncate(large_file(tmp_path / "2"))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.stored_config() == json.loads(json.dumps(CONFIG))
        with pytest.warns(RuntimeWarning):
            assert_restored(checkpointer.restore(filled(0)), 1)
        with pytest.raises(ValueError, match="read_only=True"):
            checkpointer.save(3, filled(3))
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


KILLED = """
import sys, jax, jax.numpy as jnp, optax
from flowjax.training import Checkpointer, init_state
checkpointer = Checkpointer(sys.argv[1])
for step in range(1, 1000):
    params = {"w": jnp.full((2000, 1000), float(step))}
    checkpointer.save(step, init_state(jax.random.key(step), params, optax.sgd(0.1)))
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.02])
def test_a_killed_process_leaves_only_complete_checkpoints(tmp_path, delay):
    root = os.path.dirname(os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    with process:
        while int(process.stdout.readline()) < 4:
            pass
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    template = init_state(
        jax.random.key(0), {"w": jnp.zeros((2000, 1000))}, optax.sgd(0.1)
    )
    # Warnings are errors: nothing that looks complete may be damaged.
    state, step = restore(tmp_path, template)
    assert step >= 3
    np.testing.assert_array_equal(state.params["w"], step)


# Another run's folder, another network, other mistakes.


@pytest.mark.parametrize(
    ("change", "may_differ", "message"),
    [
        ({"seed": 1}, (), r"configuration .*: seed: 0 -> 1$"),
        ({"seed": 1, "steps": 20}, ("steps",), r": seed: 0 -> 1$"),
        ({"model": {"width": 6, "depth": [1, 2]}}, (), r": model.width: 5 -> 6$"),
        ({"model": {"width": 5}}, (), r": model.depth: \[1, 2\] -> absent$"),
        ({"steps_more": 1}, ("steps",), r": steps_more: absent -> 1$"),
        ({"model": {"width": 6}}, ("model.width",), r": model.depth"),
    ],
)
def test_another_configuration_is_refused(tmp_path, change, may_differ, message):
    saved(tmp_path, 1, config=CONFIG)
    with pytest.raises(ValueError, match=message):
        restore(tmp_path, config={**CONFIG, **change}, may_differ=may_differ)


@pytest.mark.parametrize(
    ("change", "may_differ"),
    [
        ({}, ()),
        ({"steps": 20}, ("steps",)),
        ({"model": {"width": 6, "depth": (1, 2)}}, ("model.width",)),
        ({"model": None}, ("model",)),
    ],
)
def test_allowed_differences_of_the_configuration(tmp_path, change, may_differ):
    saved(tmp_path, 1, config=CONFIG)
    restored = restore(tmp_path, config={**CONFIG, **change}, may_differ=may_differ)
    assert_restored(restored, 1)


def test_without_a_configuration_every_stored_one_is_accepted(tmp_path):
    assert_restored(restore(saved(tmp_path, 1, config=CONFIG)), 1)


def wider():
    params = {"w": jnp.zeros((100, 101)), "b": jnp.zeros(3)}
    return init_state(jax.random.key(0), params, optax.sgd(0.1, momentum=0.9))


def without_bias():
    params = {"w": jnp.zeros((100, 100))}
    return init_state(jax.random.key(0), params, optax.sgd(0.1, momentum=0.9))


def in_half_precision():
    params = {"w": jnp.zeros((100, 100), jnp.bfloat16), "b": jnp.zeros(3)}
    return init_state(jax.random.key(0), params, optax.sgd(0.1, momentum=0.9))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (wider, r"params\['w'\]: \[\[100, 100\], 'float32'\] -> \[\[100, 101\]"),
        (without_bias, r"params\['b'\]: \[\[3\], 'float32'\] -> absent"),
        (in_half_precision, r"params\['w'\]: .*'float32'\] -> .*'bfloat16'\]"),
    ],
)
def test_another_network_is_refused_and_not_taken_for_damage(
    tmp_path, template, message
):
    saved(tmp_path, 1, 2)
    with pytest.raises(ValueError, match=message):
        restore(tmp_path, template())
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2"}


def test_an_iterator_without_a_stored_position(tmp_path):
    saved(tmp_path, 1)
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(ValueError, match=r"a position for each of 1 .* holds 0"),
    ):
        checkpointer.restore(filled(0), Counter())


@pytest.mark.parametrize("step", [1, 2])
def test_a_folder_with_later_steps(tmp_path, step):
    saved(tmp_path, 2)
    with pytest.raises(ValueError, match=rf"already holds step 2, .* step {step}"):
        saved(tmp_path, step)


def test_an_array_without_elements(tmp_path):
    state = filled(1)._replace(params={"a": jnp.zeros((0, 3))})
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(ValueError, match=r"state.params\['a'\] of shape \(0, 3\)"),
    ):
        checkpointer.save(1, state)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 0}, ValueError, r"`keep` must be at least 1; got 0"),
        ({"config": {"a": object()}}, ValueError, r"representable in JSON"),
        ({"read_only": True}, FileNotFoundError, r"no folder .*missing"),
    ],
)
def test_wrong_arguments(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        Checkpointer(tmp_path / "missing", **options)
    assert not (tmp_path / "missing").exists()
