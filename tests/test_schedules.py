"""Schedules of the training step: ends, monotony, and one compilation for all steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.objectives import schedules


def test_warm_up_rises_linearly_and_stays():
    value = jax.jit(jax.vmap(schedules.warmup(10, maximum=0.5)))(jnp.arange(20))
    np.testing.assert_allclose(value[:6], np.arange(6) / 10, rtol=1e-6)
    np.testing.assert_array_equal(value[5:], jnp.float32(0.5))


def test_no_warm_up_is_the_maximum_from_the_start():
    assert schedules.warmup(0)(0) == 1


def test_sigmoid_decay_starts_at_one_and_ends_at_zero_exactly():
    steps = jnp.arange(0, 401)
    value = jax.jit(jax.vmap(schedules.sigmoid_decay(100, 300)))(steps)
    assert (jnp.diff(value) <= 0).all()
    np.testing.assert_array_equal(value[:101], 1)
    np.testing.assert_array_equal(value[300:], 0)
    np.testing.assert_allclose(value[200], 0.5)
    # One unit of the logit per (end - start) / steepness steps.
    np.testing.assert_allclose(value[208], jax.nn.sigmoid(-1.0), rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: schedules.sigmoid_decay(5, 5)])
def test_an_empty_schedule_is_refused(make):
    with pytest.raises(ValueError, match="less than"):
        make()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"steps": -1}, "`steps`"), ({"steps": 1, "maximum": 1.5}, "`maximum`")],
)
def test_a_bad_warm_up_is_refused(options, name):
    with pytest.raises(ValueError, match=name):
        schedules.warmup(**options)
