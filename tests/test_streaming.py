"""Streams of frames: each comes out as if it had been sampled alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import times
from flowjax.sampling import solvers
from flowjax.sampling.multistep import multistep
from flowjax.sampling.streaming import stream_start, stream_step

pytestmark = pytest.mark.usefixtures("x64")

GRID = times.power_grid(4)
SOLVERS = {
    "one_row": solvers.euler([0.0, 1.0]),
    "euler": solvers.euler(GRID),
    "rk4": solvers.rk4(GRID[:3]),
    "ab_3": solvers.adams_bashforth(GRID, order=3),
    "unipc_3": solvers.unipc(GRID, order=3),
    "back": solvers.fireflow(GRID[::-1]),
}
SHAPE = (2, 3, 1)  # two streams in step, of events [3, 1]


def wavy(x, t, cond):
    shift = cond["shift"] + cond["label"].astype(x.dtype)[:, None, None]
    return jnp.sin(2 * x + shift) + t[:, None, None]


def frames(key, n):
    key_x, key_shift = jax.random.split(key)
    cond = {
        "shift": jax.random.normal(key_shift, (n, 2, 3, 1)),
        "label": jnp.arange(2 * n).reshape(n, 2),
    }
    return jax.random.normal(key_x, (n, *SHAPE)), cond


def first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_frame_is_what_the_solver_makes_of_it(key, name):
    solver = SOLVERS[name]
    late = len(solver.times) - 1
    x0, cond = frames(key, late + 5)

    @jax.jit
    def play(x0, cond):
        stream = stream_start(solver, x0[0], cond=first(cond))

        def step(stream, frame):
            stream, x1, finished = stream_step(wavy, stream, *frame)
            return stream, (x1, finished)

        return jax.lax.scan(step, stream, (x0, cond))

    stream, (x1, finished) = play(x0, cond)
    assert stream.waiting == 0
    assert jnp.isnan(x1[:late]).all()
    sample = jax.jit(lambda x, cond: multistep(wavy, x, solver, cond=cond))
    expected = jax.vmap(sample)(x0, cond)[:5]
    np.testing.assert_allclose(x1[late:], expected, rtol=1e-13, atol=1e-14)
    for name, leaf in finished.items():
        np.testing.assert_array_equal(leaf[late:], cond[name][:5])


def test_each_frame_costs_one_call_with_all_frames_on_the_way(key):
    solver, traced, seen = SOLVERS["ab_3"], [], []

    def field(x, t, cond):
        traced.append(1)
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
        return wavy(x, t, cond)

    x0, cond = frames(key, 3)
    stream = stream_start(solver, x0[0], cond=first(cond))

    @jax.jit
    def step(stream, x, cond):
        return stream_step(field, stream, x, cond)

    step.trace(stream, x0[0], first(cond))
    once = len(traced)
    for i in range(3):
        stream, x1, _ = step(
            stream, x0[i], jax.tree.map(lambda leaf, i=i: leaf[i], cond)
        )
    jax.effects_barrier()
    assert len(seen) == 3
    np.testing.assert_allclose(seen, [np.repeat(solver.times, 2)] * 3)
    # The states keep their shapes and dtypes: no frame is traced anew.
    assert len(traced) == once
    # The empty slots hold copies of the first frame.
    assert jnp.isnan(x1).all()
    assert jnp.isfinite(stream.z).all()


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", "float32"), ("float64", "float64")]
)
def test_streams_are_kept_in_float32_at_least(dtype, expected):
    x = jnp.ones((1, 2), dtype)
    stream = stream_start(SOLVERS["euler"], x)
    after, x1, cond = stream_step(lambda x, t, cond: -x, stream, x)
    assert cond is None
    for leaf in (x1, after.z, after.memory, *after.solver):
        assert leaf.dtype == expected


@pytest.mark.usefixtures("untyped")
def test_frames_of_another_kind_are_refused():
    x, cond = jnp.ones((2, 3)), {"a": jnp.zeros(2)}
    stream = stream_start(SOLVERS["euler"], x, cond=cond)
    field = lambda x, t, cond: -x  # noqa: E731
    for other, its_cond in (
        (jnp.ones((2, 3), jnp.float32), cond),
        (x, None),
        (x, {"b": jnp.zeros(2)}),
        (x, {"a": jnp.zeros(2, int)}),
        (x, {"a": jnp.zeros((2, 1))}),
    ):
        with pytest.raises(ValueError, match=r"a frame of this stream needs .* got"):
            stream_step(field, stream, other, its_cond)
    for other, its_cond in (
        (jnp.ones((2, 4)), cond),
        (jnp.ones((1, 3)), {"a": jnp.zeros(1)}),
    ):
        with pytest.raises(ValueError, match=r"`x0` must have shape .*=\(2, 3\)"):
            stream_step(field, stream, other, its_cond)
    with pytest.raises(ValueError, match="leading axis batch=2"):
        stream_step(field, stream, x, {"a": jnp.zeros(3)})
    with pytest.raises(ValueError, match="`x0` must have"):
        stream_start(SOLVERS["euler"], jnp.ones(3))
    with pytest.raises(ValueError, match="`field` must return shape"):
        stream_step(lambda x, t, cond: x[:1], stream, x, cond)
