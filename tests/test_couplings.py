"""Laws of every coupling: marginals stay, conditions travel with their data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import couplings, typing

COUPLINGS = {"independent": couplings.independent}


def rows(a):
    return sorted(map(tuple, np.asarray(a).reshape(len(a), -1).tolist()))


@pytest.mark.parametrize("name", COUPLINGS)
def test_both_marginals_and_the_labels_of_the_data_survive(key, name):
    x0, x1 = jax.random.normal(key, (2, 8, 3))
    label = jnp.arange(8)
    pairs = COUPLINGS[name](key, x0, x1, {"label": label})
    assert rows(pairs.x0) == rows(x0)
    assert rows(pairs.x1) == rows(x1)
    np.testing.assert_array_equal(pairs.x1, x1[pairs.cond["label"]])
    assert isinstance(COUPLINGS[name], typing.Coupling)


@pytest.mark.parametrize("name", COUPLINGS)
def test_one_pair_stays_as_it_is(key, name):
    x0, x1 = jax.random.normal(key, (2, 1, 3))
    pairs = COUPLINGS[name](key, x0, x1)
    np.testing.assert_array_equal(pairs.x0, x0)
    np.testing.assert_array_equal(pairs.x1, x1)
    assert pairs.cond is None


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", COUPLINGS)
def test_batches_that_do_not_fit_are_refused(key, name):
    x0, x1 = jnp.zeros((4, 3)), jnp.zeros((5, 3))
    with pytest.raises(ValueError, match=r"\(5, 3\), and batch is that of `x0`"):
        COUPLINGS[name](key, x0, x1)
    with pytest.raises(ValueError, match="leading axis batch=5"):
        COUPLINGS[name](key, x1, x1, jnp.zeros(4))
