"""Numbers per row against events: shapes, dtypes, and nothing of the neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.events import (
    event_mean,
    event_sum,
    expand_like,
    flatten_event,
    over_event,
)


@pytest.mark.parametrize("event", [(), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_number_per_row_multiplies_its_row(key, event, dtype):
    x = jax.random.normal(key, (5, *event), dtype)
    w = jnp.arange(5, dtype=jnp.float32)
    scaled = over_event(w, x) * x
    assert scaled.dtype == dtype
    for row in range(5):
        np.testing.assert_array_equal(scaled[row], row * x[row])


def test_leading_axes_are_kept():
    x = jnp.ones((5, 2, 3, 4))
    w = jnp.arange(10.0).reshape(5, 2)
    assert expand_like(w, x).shape == (5, 2, 1, 1)
    np.testing.assert_array_equal((expand_like(w, x) * x)[..., 2, 3], w)
    assert expand_like(w[:, 0] > 1, x).dtype == bool


@pytest.mark.parametrize("event", [(), (3,), (2, 3, 4)])
def test_an_event_is_gathered_row_by_row(key, event):
    x = jax.random.normal(key, (5, *event))
    axes = tuple(range(1, x.ndim))
    assert flatten_event(x).shape == (5, int(np.prod(event)))
    np.testing.assert_allclose(event_sum(x), x.sum(axes), rtol=1e-5)
    np.testing.assert_allclose(event_mean(x), x.mean(axes), rtol=1e-5)
