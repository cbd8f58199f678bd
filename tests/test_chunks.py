"""Sampling in chunks: the same rows, less memory, no traffic between devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flowjax import sampling


def field(x, t, cond):
    return jnp.sin(3 * x) * cond[:, None] - t[:, None]


def sample(rows):
    return sampling.ode(field, rows["x"], cond=rows["cond"], steps=(0.0, 0.3, 1.0))


def batch(n=16):
    x = jax.random.normal(jax.random.key(0), (n, 3))
    return {"x": x, "cond": jnp.linspace(0.5, 2, n)}


@pytest.mark.parametrize("chunks", [1, 2, 16])
def test_chunks_give_the_same_rows_and_their_own_statistics(chunks, x64):
    rows = batch()
    x, stats = jax.jit(lambda r: sampling.in_chunks(sample, r, chunks=chunks))(rows)
    whole, counted = jax.jit(sample)(rows)
    np.testing.assert_allclose(x, whole, rtol=1e-11)
    assert stats.nfe.shape == (chunks,)
    assert (stats.nfe == counted.nfe).all()
    assert stats.success.all()


def test_a_random_sampler_takes_a_key_per_row():
    keys = jax.random.split(jax.random.key(1), 8)
    draw = jax.vmap(lambda key: jax.random.normal(key, (2,)))
    np.testing.assert_array_equal(sampling.in_chunks(draw, keys, chunks=4), draw(keys))


def test_memory_is_that_of_a_chunk():
    weight = jnp.zeros((8, 4096))

    def wide(x):  # activations of 4096 numbers per row
        return jnp.tanh(jnp.tanh(x @ weight) @ weight.T)

    def peak(chunks):
        program = jax.jit(lambda x: sampling.in_chunks(wide, x, chunks=chunks))
        compiled = program.lower(jnp.zeros((512, 8))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(8) < peak(1) / 4


def test_sharded_rows_stay_on_their_devices(x64):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    rows = jax.device_put(batch(32), sharding)
    program = jax.jit(
        lambda r: sampling.in_chunks(sample, r, chunks=4)[0], out_shardings=sharding
    )
    text = program.lower(rows).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    np.testing.assert_allclose(program(rows), sample(batch(32))[0], rtol=1e-11)


@pytest.mark.parametrize(
    ("rows", "chunks", "message"),
    [
        (jnp.zeros((6, 2)), 4, "`chunks` must divide the batch 6; got 4"),
        (jnp.zeros((6, 2)), 0, "`chunks` must be at least 1; got 0"),
        ((jnp.zeros((6, 2)), jnp.zeros(5)), 1, "one leading axis"),
        (jnp.zeros(()), 1, "one leading axis"),
        (None, 1, "one leading axis"),
    ],
)
def test_bad_chunks(rows, chunks, message):
    with pytest.raises(ValueError, match=message):
        sampling.in_chunks(lambda r: r, rows, chunks=chunks)
